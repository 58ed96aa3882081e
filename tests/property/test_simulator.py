"""Histories in the simulator: nothing that must not be happens in them, and known mistakes do not go unseen."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import redis
from redis._parsers.base import BaseParser

from simulator.faults import Fault
from simulator.history import History, run
from simulator.mutant import Mutant
from simulator.mutants import MUTANTS
from simulator.redis_keyspace import Refusal, Status
from simulator.shrink import cost, shrink
from simulator.substitution import substituted
from simulator.theme import Theme
from writebehind.engine.adapters import scripts

HISTORIES = 100

TEXTS = {script.sha: script.text for script in vars(scripts).values() if isinstance(script, scripts.Script)}


@pytest.fixture
def _simulated() -> Iterator[None]:
    """Let the product work on the stand-ins."""
    with substituted():
        yield


@pytest.mark.usefixtures("_simulated")
def test_histories() -> None:
    """Whatever is drawn, nothing is lost, doubled, misread or stuck beyond what the settings allow."""
    violated = {}
    happened = 0
    for seed in range(HISTORIES):
        history = run(seed)
        happened += history.happened.total()
        if history.violation is not None:
            violated[seed] = str(history.violation)
    assert violated == {}, "see docs/simulator.md: make simulate ARGS='--seed N'"
    assert happened > HISTORIES, "faults do happen"


@pytest.mark.usefixtures("_simulated")
@pytest.mark.parametrize("seed", [3, 14, 15, 92])
def test_a_seed_is_a_history(seed: int) -> None:
    """The same seed gives the same history, and so do its decisions."""
    first, second = run(seed, trace=True), run(seed, trace=True)
    assert first.trace
    assert first.trace == second.trace
    assert run(seed, first.decisions, trace=True).trace == first.trace


@pytest.mark.usefixtures("_simulated")
def test_what_a_history_is_made_of() -> None:
    """Faults of all kinds occur, at effects and to servers."""
    happened = sum((run(seed).happened for seed in range(150)), start=run(0).happened)
    assert set(happened) >= {fault.name.lower().replace("_", " ") for fault in Fault if fault.value}
    assert set(happened) >= {
        "letter",
        "letter applied",
        "letter behind another",
        "letter discarded",
        "letter superseded",
    }
    assert set(happened) >= {"power loss", "failover", "restart redis", "sql rollback", "sql restart", "kill", "freeze"}


# The judge is judged


@pytest.mark.usefixtures("_simulated")
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_known_mistake_is_seen(mutant: Mutant) -> None:
    """A mistake shows in one of so many histories, and the same history is clean without it."""
    for seed in range(mutant.seeds_max):
        with mutant.make():
            seen = run(seed, theme=mutant.theme).violation
        if seen is not None and seen.rule in mutant.rules and run(seed, theme=mutant.theme).violation is None:
            return
    pytest.fail(f"{mutant.name} is not seen in {mutant.seeds_max} histories: {mutant.harm}")


@pytest.mark.usefixtures("_simulated")
def test_a_violation_is_made_short() -> None:
    """What is shown violates the same rule with far fewer decisions."""
    mutant = next(each for each in MUTANTS if each.name == "takeover from the group's position")

    def replay(decisions: Sequence[int]) -> History:
        return run(0, decisions, theme=mutant.theme)

    with mutant.make():
        found = next(
            history
            for history in (run(seed, theme=mutant.theme) for seed in range(mutant.seeds_max))
            if history.violation is not None and history.violation.rule in mutant.rules
        )
        short = shrink(found, lambda decisions: run(found.seed, decisions, theme=mutant.theme), runs_max=400)
        again = run(found.seed, short.decisions, theme=mutant.theme)
    assert again.violation is not None
    assert found.violation is not None
    assert again.violation.rule == found.violation.rule
    assert cost(short.decisions)[0] * 2 < cost(found.decisions)[0]


# The model of Redis


class Replica:
    """Repeats on a real server what the model has executed, and compares the replies.

    Epochs are numbers of the clock, so those of the model stand for those of the server.
    """

    def __init__(self, client: Any, namespace: str) -> None:
        self._client = client
        self._namespace = namespace.encode()
        self._epochs: dict[bytes, bytes] = {}
        self.compared = 0

    def repeat(self, command: Sequence[bytes], reply: Any) -> None:
        """Execute a command and compare its reply with the model's."""
        name = command[0]
        if name in {b"ACL", b"CONFIG", b"INFO", b"TIME", b"WAIT", b"WAITAOF"} or "NOSCRIPT" in str(reply):
            return
        words = [self._translated(word) for word in command]
        if name == b"EVALSHA":
            words[:2] = [b"EVAL", TEXTS[command[1]]]
        if name == b"XREADGROUP" and b"BLOCK" in words:
            at = words.index(b"BLOCK")
            del words[at : at + 2]
        try:
            answer = self._client.execute_command(*words)
        except redis.ResponseError as error:
            answer = error
        opened = TEXTS.get(command[1]) == scripts.OPEN_EPOCH.text or command[1] == scripts.OPEN_EPOCH.text
        if opened and isinstance(reply, bytes):
            self._epochs[reply] = answer
        self._compare(command, _plain(command, reply), _plain(command, answer))

    def _translated(self, word: bytes) -> bytes:
        for end in (b":", b"}"):  # keys of a partition, and those of the namespace
            word = word.replace(b"{s" + end, b"{" + self._namespace + end)
        for mine, its in self._epochs.items():
            word = word.replace(mine, its)
        return word

    def _compare(self, command: Sequence[bytes], mine: Any, its: Any) -> None:
        self.compared += 1
        assert self._deep(mine) == its, command

    def _deep(self, value: Any) -> Any:
        if isinstance(value, bytes):
            return self._translated(value)
        if isinstance(value, dict):
            return {self._deep(key): self._deep(each) for key, each in value.items()}
        return [self._deep(each) for each in value] if isinstance(value, list) else value


def _plain(command: Sequence[bytes], reply: Any) -> Any:
    """Return what of a reply is compared."""
    if isinstance(reply, Refusal):
        reply = BaseParser.parse_error(str(reply))  # type: ignore[no-untyped-call]
    if isinstance(reply, redis.ResponseError):
        return "NOGROUP" if str(reply).startswith("NOGROUP") else str(reply).rstrip(".")
    if isinstance(reply, Status):
        return bytes(reply)
    if command[0] == b"XINFO" and isinstance(reply, list):
        return _facts(reply) if command[1] == b"STREAM" else [_facts(each) for each in reply]
    if command[0] == b"HGETALL":
        pairs = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
        return {name: value.partition(b"@")[0] for name, value in pairs.items()}
    if command[0] == b"SCAN":
        return sorted(reply[1])
    # How much time is left, each server's clock says.
    return min(reply, 0) if command[0] == b"PTTL" else reply


def _facts(listed: list[Any]) -> dict[Any, Any]:
    known = {b"length", b"last-generated-id", b"groups", b"name", b"pending", b"last-delivered-id"}
    pairs = zip(listed[::2], listed[1::2], strict=True)
    return {name: value for name, value in pairs if name in known}


def _recording(recorded: list[tuple[list[bytes], Any]]) -> Callable[[Sequence[bytes], Any], None]:
    return lambda command, reply: recorded.append((list(command), reply))


@pytest.mark.parametrize("first", [0, 100, 200, 300])
def test_the_model_answers_as_redis_does(redis_url: str, namespace: str, first: int) -> None:
    """Commands and scripts of whole histories get the same replies from a real server."""
    theme = Theme(
        faults=[Fault.UNANSWERED, Fault.KILL_AFTER, Fault.SPLIT, Fault.LATE],
        events=["restart redis", "group destroyed", "group moved", "kill"],
        only=True,
    )
    compared = 0
    with redis.Redis.from_url(redis_url, protocol=2) as client:
        plain: Any = client
        plain.response_callbacks.clear()
        for seed in range(first, first + 12):
            recorded: list[tuple[list[bytes], Any]] = []
            with substituted():
                history = run(seed, theme=theme, answered=_recording(recorded))
            facts = history.facts
            if facts["redis"] == "none" or facts["expires"] or facts["full at"] < 1000 or facts["backlog"][1]:
                continue  # the real server has its data, its time and its memory
            replica = Replica(plain, f"{namespace}{seed}")
            for command, reply in recorded:
                replica.repeat(command, reply)
            compared += replica.compared
    assert compared > 300
