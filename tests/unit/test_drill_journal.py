"""The journal says what was meant and what became of it, also after its writer was killed."""

import os
import signal
from pathlib import Path

import msgspec
import pytest

from writebehind.drills import journal
from writebehind.drills.journal import Acknowledged, Ended, Intent, Journal, Kind, LossReport, Outcome, Refused, Unknown
from writebehind.engine.core.positions import EntryID

LINES: list[journal.Line] = [
    Intent(1.0, 10, Kind.PUT, (4, 1, 1)),
    Intent(1.0, 11, Kind.COUNT, (3,)),
    Intent(1.0, 12, Kind.SET, ()),
    Intent(1.5, 13, Kind.TRANSFER, (0, 1, 2, 30)),
    Acknowledged(2.0, 10, 2, 459622224883200, 17, 1),
    Unknown(2.0, 11, "WriteOutcomeUnknown: the reply was lost"),
    Refused(2.0, 12, "RedisUnavailable: OOM"),
    LossReport(3.0, 2, 4, "partition 2: 1-0 to 1-3"),
]


def test_outcomes_follow_intents(tmp_path: Path) -> None:
    """What was never answered is uncertain."""
    path = tmp_path / "journal"
    with Journal(path) as written:
        written.write(*LINES[:4])
        written.write(*LINES[4:])
        written.end()
    lines = journal.read([path])
    assert lines[:-1] == LINES
    assert isinstance(lines[-1], Ended)
    first, second, third, fourth = journal.operations(lines)
    assert (first.kind, first.arguments, first.began, first.ended) == (Kind.PUT, (4, 1, 1), 1.0, 2.0)
    assert (first.outcome, first.partition, first.entry, first.level) == (
        Outcome.ACKNOWLEDGED, 2, EntryID(459622224883200, 17), 1,
    )  # fmt: skip
    assert [second.outcome, third.outcome, fourth.outcome] == [
        Outcome.INDETERMINATE, Outcome.REFUSED, Outcome.INDETERMINATE,
    ]  # fmt: skip
    assert (second.ended, fourth.ended) == (2.0, None)
    assert [each.acknowledged for each in (first, second, third, fourth)] == [True, False, False, False]


def test_a_torn_line_is_left_out(tmp_path: Path) -> None:
    """Only the last one can be torn; anything else unreadable is an error."""
    path = tmp_path / "journal"
    with Journal(path) as written:
        written.write(*LINES)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert journal.read([path]) == LINES[:-1]
    path.write_bytes(whole[:5] + b"\n" + whole)
    with pytest.raises(msgspec.MsgspecError):
        journal.read([path])


def test_a_killed_writer_leaves_whole_lines(tmp_path: Path) -> None:
    """SIGKILL in the middle of writing: every line there can be read."""
    path = tmp_path / "journal"
    path.touch()
    child = os.fork()
    if child == 0:
        written = Journal(path)
        number = 0
        while True:
            written.write(*(Intent(0.0, number + step, Kind.SET, ()) for step in range(50)))
            number += 50
    while path.stat().st_size < 200_000:
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = journal.operations(journal.read([path]))
    assert [each.number for each in found] == list(range(len(found)))
    assert len(found) >= 50


@pytest.mark.parametrize(
    "lines",
    [
        [Acknowledged(1.0, 1, 0, 1, 1, 0)],
        [Intent(1.0, 1, Kind.SET, ()), Refused(2.0, 1, ""), Unknown(3.0, 1, "")],
        [Intent(1.0, 1, Kind.SET, ()), Intent(2.0, 1, Kind.SET, ())],
    ],
    ids=["no intent", "two outcomes", "two intents"],
)
def test_a_journal_that_contradicts_itself(lines: list[journal.Line]) -> None:
    """It is refused: a checker must not be built upon it."""
    with pytest.raises(ValueError, match="operation"):
        journal.operations(lines)


def test_a_tail_gives_what_is_new(tmp_path: Path) -> None:
    """Each line once, whole, and nothing from before."""
    path = tmp_path / "journal"
    with Journal(path) as written:
        written.write(*LINES[:2])
        tail = journal.Tail(path)
        assert tail.new() == []
        written.write(*LINES[2:4])
        assert tail.new() == LINES[2:4]
        with path.open("ab") as file:
            whole = msgspec.json.encode(LINES[4]) + b"\n"
            file.write(whole[:9])
            file.flush()
            assert tail.new() == []
            file.write(whole[9:])
        assert tail.new() == LINES[4:5]
