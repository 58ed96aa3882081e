"""The write protocol decides without any server."""

from collections.abc import Sequence

import pytest

from writebehind.engine.config import Backpressure
from writebehind.engine.core.appending import (
    Effect,
    Full,
    Lost,
    OpenEpoch,
    Pause,
    Refused,
    Reply,
    Run,
    Unfit,
    Unsent,
    append,
)
from writebehind.engine.core.pressure import OUT_OF_MEMORY, Held
from writebehind.engine.errors import (
    BacklogFull,
    ConfigurationError,
    LogDamaged,
    RedisUnavailable,
    ValidationError,
    WriteBehindError,
    WriteOutcomeUnknown,
)

LOST = Lost(ConnectionError("reset"))
UNSENT = Unsent(ConnectionError("refused"))


def full(policy: Backpressure, *, fenced_off: bool = False) -> Full:
    """Return the reply of a partition that takes no more."""
    return Full(policy, 0, Held("entries", 10, 4), 1.5, fenced_off)


def no_memory(policy: Backpressure) -> Full:
    """Return the reply of a Redis that is full."""
    return Full(policy, 0, Held(OUT_OF_MEMORY, 0, 0), 1.0)


def play(
    replies: Sequence[Reply], *, together: bool = False
) -> tuple[list[Effect], bytes | Full | Refused | WriteBehindError]:
    """Feed replies to the protocol; return its effects and how it ended."""
    protocol = append(together=together)
    effects = [next(protocol)]
    try:
        for reply in replies:
            effects += [protocol.send(reply)]
    except StopIteration as stop:
        return effects, stop.value
    except WriteBehindError as error:
        return effects, error
    raise AssertionError(f"goes on with {effects[-1]}")


def test_accepted_at_once() -> None:
    """The common path is one effect."""
    assert play([b"7-0"]) == ([Run(retry=False)], b"7-0")


def test_another_primary_opens_an_epoch() -> None:
    """A refusal for another timeline opens an epoch and tries again without a pause, and not as a retry."""
    effects, end = play([Refused("TIMELINE", ""), None, b"8-0"])
    assert effects == [Run(retry=False), OpenEpoch(), Run(retry=False)]
    assert end == b"8-0"


def test_a_primary_that_keeps_changing_is_paused_for() -> None:
    """Only the first new epoch comes without a pause."""
    effects, end = play([Refused("TIMELINE", ""), None, Refused("TIMELINE", ""), None, True, b"9-0"])
    assert Pause(2) in effects
    assert end == b"9-0"


def test_a_lost_reply_is_retried_as_a_retry() -> None:
    """Every attempt after a lost reply is a retry, also across refusals and new epochs."""
    effects, end = play(
        [LOST, True, Refused("LOADING", ""), True, Refused("TIMELINE", ""), None, True, UNSENT, True, b"7-3"]
    )
    runs = [effect for effect in effects if isinstance(effect, Run)]
    assert runs == [Run(retry=False)] + [Run(retry=True)] * (len(runs) - 1)
    assert end == b"7-3"


@pytest.mark.parametrize("reply", [no_memory(Backpressure.BLOCK), Refused("READONLY", ""), UNSENT])
def test_nothing_written_is_said_only_when_certain(reply: Reply) -> None:
    """Out of time without a lost reply is RedisUnavailable; with one it is WriteOutcomeUnknown."""
    assert isinstance(play([reply, False])[1], RedisUnavailable)
    assert isinstance(play([LOST, True, reply, False])[1], WriteOutcomeUnknown)
    assert isinstance(play([LOST, False])[1], WriteOutcomeUnknown)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("RANGE", ValidationError),
        ("WRONGTYPE", ConfigurationError),
        ("NOPERM", ConfigurationError),
        ("UNSEARCHED", WriteOutcomeUnknown),
        ("SOMETHING", ConfigurationError),
    ],
)
def test_final_refusals(code: str, error: type[WriteBehindError]) -> None:
    """What no further try overcomes raises its own error at once."""
    effects, end = play([Refused(code, "text")])
    assert isinstance(end, error)
    assert effects == [Run(retry=False)]


@pytest.mark.parametrize("code", ["NOPERM", "WRONGTYPE", "CROSSSLOT", "SOMETHING"])
def test_a_refusal_to_look_leaves_the_outcome_unknown(code: str) -> None:
    """A server that no longer lets the client look for its entry leaves the outcome unknown, whatever the reason."""
    assert isinstance(play([LOST, True, Refused(code, "")])[1], WriteOutcomeUnknown)
    assert isinstance(play([LOST, True, Refused("TIMELINE", ""), Refused(code, "")])[1], WriteOutcomeUnknown)


def test_a_server_that_hides_what_it_is_leaves_a_lost_outcome_unknown() -> None:
    """What cannot be met says why, and that nothing was written only where nothing was lost before."""
    damaged = LogDamaged("the log is damaged")
    assert play([Unfit(damaged)])[1] is damaged
    assert play([Refused("TIMELINE", ""), Unfit(damaged)], together=True)[1] is damaged
    for between in ([], [Refused("TIMELINE", "")]):
        _, error = play([LOST, True, *between, Unfit(damaged)])
        assert isinstance(error, WriteOutcomeUnknown)
        assert "the log is damaged" in error.message


@pytest.mark.parametrize("code", ["RANGE", "WRONGTYPE", "NOPERM"])
def test_one_of_several_calls_hears_what_it_is_refused_for(code: str) -> None:
    """It may be divided and sent again as long as no attempt is lost, and only then."""
    refused = Refused(code, "text")
    assert play([refused], together=True) == ([Run(retry=False)], refused)
    assert isinstance(play([LOST, True, refused], together=True)[1], WriteOutcomeUnknown)
    fenced = Refused(code, "text", fenced_off=True)
    assert play([LOST, True, fenced], together=True)[1] == fenced
    assert isinstance(play([Refused("UNSEARCHED", "")], together=True)[1], WriteOutcomeUnknown)


def test_a_range_error_after_the_fence_is_certain() -> None:
    """A retry that fenced the first attempt off and was refused has written nothing; in another history who knows."""
    assert isinstance(play([LOST, True, Refused("RANGE", "n", fenced_off=True)])[1], ValidationError)
    assert isinstance(play([LOST, True, Refused("RANGE", "n")])[1], WriteOutcomeUnknown)


def test_a_full_backlog_is_waited_for() -> None:
    """A call that may wait does until there is room or time runs out; then nothing was written."""
    block = full(Backpressure.BLOCK)
    effects, end = play([block, True, block, True, b"7-0"])
    assert effects == [Run(retry=False), Pause(1), Run(retry=False), Pause(2), Run(retry=False)]
    assert end == b"7-0"
    _, error = play([block, True, block, False])
    assert isinstance(error, BacklogFull)
    assert error.retry_after_seconds == 1.5


def test_a_full_backlog_rejects_at_once() -> None:
    """A call that will not wait is refused; after a lost reply nothing is said of what is not known."""
    effects, end = play([full(Backpressure.REJECT)])
    assert (effects, type(end)) == ([Run(retry=False)], BacklogFull)
    assert isinstance(play([LOST, True, full(Backpressure.REJECT)])[1], WriteOutcomeUnknown)


def test_a_full_redis_takes_nothing_whatever_the_policy() -> None:
    """Whoever waits is told that Redis refuses; whoever will not wait, at once; nothing can be written through."""
    assert isinstance(play([no_memory(Backpressure.REJECT)])[1], BacklogFull)
    effects, end = play([no_memory(Backpressure.WRITE_THROUGH), True, no_memory(Backpressure.WRITE_THROUGH), False])
    assert effects == [Run(retry=False), Pause(1), Run(retry=False), Pause(2)]
    assert isinstance(end, RedisUnavailable)


@pytest.mark.parametrize(
    "reply", [full(Backpressure.BLOCK), *map(no_memory, (Backpressure.BLOCK, Backpressure.WRITE_THROUGH))]
)
def test_one_of_several_calls_does_not_wait_for_room(reply: Full) -> None:
    """It ends for now, as nothing is written; but not where a lost attempt may be, which it goes on to look for."""
    assert play([reply], together=True) == ([Run(retry=False)], reply)
    effects, end = play([LOST, True, reply, True, b"7-0"], together=True)
    assert effects[-1] == Run(retry=True)
    assert end == b"7-0"


def test_one_of_several_calls_is_rejected_or_let_through_as_any_other() -> None:
    """Only waiting is left to the caller."""
    assert isinstance(play([full(Backpressure.REJECT)], together=True)[1], BacklogFull)
    assert isinstance(play([no_memory(Backpressure.REJECT)], together=True)[1], BacklogFull)
    effects, _ = play([full(Backpressure.WRITE_THROUGH), b"7-0"], together=True)
    assert effects == [Run(retry=False), Run(retry=False, through=True)]
    fenced = full(Backpressure.BLOCK, fenced_off=True)
    assert play([LOST, True, fenced], together=True)[1] == fenced


def test_a_retry_that_found_nothing_and_no_room_begins_anew() -> None:
    """Once lost attempts are fenced off the call is one that was never sent: it is refused, waits or is let through."""
    reject, block, through = (
        full(policy, fenced_off=True)
        for policy in (Backpressure.REJECT, Backpressure.BLOCK, Backpressure.WRITE_THROUGH)
    )
    assert isinstance(play([LOST, True, reject])[1], BacklogFull)
    assert isinstance(play([LOST, True, block, False])[1], BacklogFull)
    effects, end = play([LOST, True, block, True, b"7-0"])
    assert effects[2:] == [Run(retry=True), Pause(2), Run(retry=False)]
    assert end == b"7-0"
    effects, end = play([LOST, True, through, b"7-0"])
    assert effects[2:] == [Run(retry=True), Run(retry=False, through=True)]
    assert end == b"7-0"


def test_a_reply_lost_after_that_is_looked_for_again() -> None:
    """What was certain of the attempts before is not of the next one."""
    fenced = full(Backpressure.BLOCK, fenced_off=True)
    effects, end = play([LOST, True, fenced, True, LOST, True, UNSENT, False])
    runs = [effect for effect in effects if isinstance(effect, Run)]
    assert [run.retry for run in runs] == [False, True, False, True]
    assert isinstance(end, WriteOutcomeUnknown)


def test_a_full_backlog_is_written_through() -> None:
    """A call that is not to be refused is made again at once, whatever the limits say, also as a retry."""
    effects, end = play([full(Backpressure.WRITE_THROUGH), LOST, True, b"7-0"])
    assert effects == [Run(retry=False), Run(retry=False, through=True), Pause(1), Run(retry=True, through=True)]
    assert end == b"7-0"
