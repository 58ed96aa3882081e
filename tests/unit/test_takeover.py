"""The takeover protocol decides without any server."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from writebehind.engine.adapters.log import LogState
from writebehind.engine.core.positions import ORIGIN, EntryID
from writebehind.recovery.takeover import (
    Claim,
    Confirmed,
    Distrust,
    Doubt,
    Effect,
    Expunge,
    Inspect,
    MakeGroup,
    OpenEpoch,
    Reply,
    Start,
    Trust,
    takeover,
)


def at(text: str) -> EntryID:
    """Read a position."""
    return EntryID.parse(text)


def play(
    offset: EntryID,
    state: LogState,
    pending: tuple[Sequence[bytes], Sequence[bytes]],
    earlier: Mapping[int, EntryID] | None = None,
    *,
    full: bool = False,
    opened: LogState | None = None,
) -> tuple[list[Effect], Start]:
    """Answer the protocol's effects; return them and where to start."""
    protocol = takeover(offset, earlier or {})
    effects = [next(protocol)]
    while True:
        reply: Reply = None
        if isinstance(effects[-1], Inspect):
            reply = state
        elif isinstance(effects[-1], Claim):
            reply = (list(pending[0]), list(pending[1]))
        elif isinstance(effects[-1], MakeGroup | OpenEpoch):
            reply = not full
            state = opened or state
        elif isinstance(effects[-1], Distrust):
            reply = 7
        try:
            effects.append(protocol.send(reply))
        except StopIteration as stop:
            start: Start = stop.value
            return effects, start


def state(end: str | None, delivered: str | None) -> LogState:
    """Make a log of one epoch."""
    return LogState(
        end=at(end) if end else None,
        delivered=at(delivered) if delivered else None,
        watermark=None,
        lineage={5: None},
    )


def test_what_was_loaded_in_a_history_that_nobody_served_is_loaded_again() -> None:
    """SQL may have gone on with another history meanwhile; once this one has been served, it cannot."""
    effects, start = play(at("3-7"), state("5-9", None), ([], []))
    assert effects[:2] == [Inspect(), Distrust(5, ORIGIN)]
    assert start.past_missing
    served = replace(state("5-9", None), watermark=at("5-2"))
    assert not any(isinstance(effect, Distrust) for effect in play(at("3-7"), served, ([], []))[0])
    assert not any(isinstance(effect, Distrust) for effect in play(ORIGIN, state("5-9", None), ([], []))[0])


def test_what_was_delivered_and_not_applied_is_replayed() -> None:
    """Only what SQL has is acknowledged; the rest up to the last delivery is read again."""
    effects, start = play(at("5-3"), state("5-9", "5-7"), ([b"5-2", b"5-3", b"5-4", b"5-7"], []))
    assert effects == [Inspect(), Claim(), Confirmed([b"5-2", b"5-3"], at("5-3"))]
    assert (start.position, start.replay_until, start.claimed) == (at("5-3"), at("5-7"), 4)


def test_nothing_to_replay() -> None:
    """A group that stands at the offset, or behind it, is served at once."""
    assert play(at("5-7"), state("5-9", "5-7"), ([], []))[1].replay_until is None
    assert play(at("5-7"), state("5-9", "5-2"), ([], []))[1].replay_until is None


def test_a_missing_group_is_made_at_the_offset() -> None:
    """Never at 0 and never at the end: at what SQL has applied."""
    effects, start = play(at("5-3"), state("5-9", None), ([], []))
    assert MakeGroup(at("5-3")) in effects
    assert start.group_made


def test_a_full_redis_is_read_by_position() -> None:
    """Where the group is missing and cannot be made, everything up to the end is replayed."""
    effects, start = play(at("5-3"), state("5-9", None), ([], []), full=True)
    assert effects == [Inspect(), MakeGroup(at("5-3"))]
    assert (start.position, start.replay_until, start.served_by_group) == (at("5-3"), at("5-9"), False)


def test_the_first_group_is_no_alarm() -> None:
    """A log that nobody ever served has no group to miss."""
    assert not play(ORIGIN, state(None, None), ([], []))[1].group_made
    assert not play(ORIGIN, state("5-9", None), ([], []))[1].group_made


def test_pending_entries_that_are_gone_are_lost_only_above_the_offset() -> None:
    """What SQL has may have been trimmed; what it has not must not."""
    start = play(at("5-3"), state("5-9", "5-7"), ([], [b"5-1", b"5-5"]))[1]
    assert start.gone == [b"5-5"]


def test_another_history_is_read_from_where_it_parted() -> None:
    """An offset that this log never had gives way to the last common one."""
    start = play(at("9-7"), state("5-9", "5-4"), ([], []), {9: at("5-6")})[1]
    assert start.position == at("5-6")


def test_a_new_primary_is_compared_before_it_is_served() -> None:
    """An epoch is opened; what SQL has newer is removed before the rest is believed, and only then is it served."""
    before = replace(state("5-6", "5-6"), moved=True)
    after = replace(before, moved=False, floor=9, lineage={5: None, 9: at("5-6")})
    effects, start = play(at("5-8"), before, ([], []), opened=after)
    assert effects == [
        Inspect(),
        OpenEpoch(),
        Inspect(),
        Distrust(9, at("5-8")),
        Trust(9, 9),
        Claim(),
        Confirmed([], at("5-8")),
    ]
    assert (start.ahead, start.distrusted, start.judged) == (9, 7, True)


def test_a_history_that_sql_is_not_ahead_of_is_believed() -> None:
    """A restart that lost nothing costs nothing."""
    known = replace(state("5-8", "5-8"), floor=9, lineage={5: None, 9: at("5-8")})
    effects, start = play(at("5-8"), known, ([], []))
    assert effects == [Inspect(), Trust(9, None), Claim(), Confirmed([], at("5-8"))]
    assert start.ahead is None


@pytest.mark.parametrize(("judged", "expected"), [(None, 9), (8, 9), (9, None), (11, None)])
def test_each_rollback_is_judged_once(judged: int | None, expected: int | None) -> None:
    """A restart long after a rollback looks for nothing that an earlier takeover has removed already."""
    lineage = {5: None, 9: at("5-6"), 12: at("9-3")}
    known = replace(state("9-3", "9-3"), floor=12, lineage=lineage, judged=judged)
    effects, start = play(at("9-3"), known, ([], []), {9: at("5-8")})
    assert (Distrust(9, at("9-3")) in effects) == (expected is not None)
    assert Trust(12, expected) in effects
    assert start.ahead == expected


def test_ghosts_go_before_anything_is_believed() -> None:
    """Entries that came back go, and what they left in records, before the records are believed."""
    known = replace(state("9-1", "9-1"), floor=9, lineage={5: None, 9: at("5-8")}, ghosts=[(b"5-9", [])])
    effects, start = play(at("5-8"), known, ([], []))
    assert effects.index(Expunge([(b"5-9", [])], at("5-8"))) < effects.index(Trust(9, None))
    assert start.ghosts == 1


def test_the_last_records_before_an_epoch_are_doubted() -> None:
    """The last transaction of a history may be half: the log has it, and its records are as they were before."""
    known = replace(state("9-1", "9-1"), floor=9, lineage={5: None, 9: at("5-8")}, last_before={9: (b"5-8", [])})
    effects, _ = play(at("5-8"), known, ([], []))
    assert effects.index(Doubt(9, (b"5-8", []), at("5-8"))) < effects.index(Trust(9, None))


def test_a_full_redis_is_served_without_a_verdict() -> None:
    """Where no epoch can be opened the flusher drains nevertheless, and nothing is believed yet."""
    moved = replace(state("5-9", "5-7"), moved=True)
    effects, start = play(at("5-3"), moved, ([], []), full=True)
    assert effects == [Inspect(), OpenEpoch(), Inspect(), Claim(), Confirmed([], at("5-3"))]
    assert (start.judged, start.replay_until) == (False, at("5-7"))
