"""Faults of what is written: rows that SQL refuses."""

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

from writebehind.drills.fault import Fault
from writebehind.drills.looks import look_at, named
from writebehind.drills.stage import RECOVERY_SECONDS_MAX, Stage
from writebehind.drills.stories import Ending, Fate, Story, Write, stories_of
from writebehind.drills.tables import guardians, wards
from writebehind.engine import Batch, Receipt
from writebehind.engine.core.payload import Op
from writebehind.recovery import DeadLetter, LetterID, LetterState, dead_letters, discard, replay, resolutions, verify
from writebehind.recovery import Fate as LetterFate

__all__ = ["REFUSED"]

LETTER_SECONDS_MAX = 20.0
KILL_SECONDS_MAX = 0.04
"""In about this time a flusher has read a batch, been refused it and set it aside."""
POLL_SECONDS = 0.02

Sent = tuple[Story, Write, Receipt]


def refused(stage: Stage) -> None:
    """Write rows that SQL refuses, and more of the same rows; kill a flusher; decide about what was set aside."""
    app, stories = stage.app, stories_of(len(stage.incidents))
    stage.stories += stories
    _send(stage, [(story, write) for story in stories for write in story.opening])
    stage.probe.beat(RECOVERY_SECONDS_MAX)
    stage.hit("writes that SQL refuses")
    sent = _write_and_kill(stage, stories)
    stage.looks.append(look_at(app, "while they were set aside", stories, aside=_named(sent)))
    stage.hit("what was set aside is replayed or discarded")
    troubles = _decide(stage, stories)
    _await_letters(stage, there=False)
    troubles += [
        f"verify: {each.name} {each.verdict.value}" for each in verify(app, tables=[guardians, wards]).findings
    ]
    stage.looks.append(look_at(app, "after it was decided", stories, troubles=troubles))


def _write_and_kill(stage: Stage, stories: Sequence[Story]) -> list[Sent]:
    """Write all but the openings, step by step; a flusher dies while it sets the first ones aside."""
    rests = [(story, story.writes[len(story.opening) :]) for story in stories]
    first, *steps = [
        [(story, rest[number]) for story, rest in rests if number < len(rest)]
        for number in range(max(len(rest) for _, rest in rests))
    ]
    middle = len(first) // 2
    sent = _send(stage, first[:middle])
    _await_letters(stage, there=True)
    victim = stage.victim()
    sent += _send(stage, first[middle:])
    stage.load(stage.chance.uniform(0, KILL_SECONDS_MAX))
    stage.hit(f"SIGKILL {victim.name}")
    victim.kill()
    for step in steps:
        sent += _send(stage, step)
    stage.recover()
    victim.start()
    return sent


def _send(stage: Stage, writes: Iterable[tuple[Story, Write]]) -> list[Sent]:
    """Write in one batch."""
    with stage.app.batch() as batch:
        return [(story, write, _written(batch, story.key, write)) for story, write in writes]


def _written(batch: Batch, key: int, write: Write) -> Receipt:
    if write.op is Op.PUT:
        return batch.put(wards, {"id": key, **write.values})
    if write.op is Op.PATCH:
        return batch.patch(wards, key, write.values)
    return batch.increment(wards, key, write.values)


def _named(sent: Iterable[Sent]) -> list[str]:
    """Name the letters that there should be, partition by partition in the log's order."""
    aside = [(receipt.partition, receipt.entry_id, story, write) for story, write, receipt in sent
             if write.fate is not Fate.TAKEN]  # fmt: skip
    return [
        named(partition, entry, f"{wards.name} {story.key}", waits=write.fate is Fate.WAITS)
        for partition, entry, story, write in sorted(aside, key=lambda each: each[:2])
    ]


def _await_letters(stage: Stage, *, there: bool) -> None:
    """Wait until there are letters, or none; where that does not come, the next look says what there is."""
    deadline = time.monotonic() + LETTER_SECONDS_MAX
    while any(True for _ in dead_letters(stage.app)) is not there and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _decide(stage: Stage, stories: Sequence[Story]) -> list[str]:
    """Replay and discard as the stories have it, as an operator does; say which letters are still there then."""
    app = stage.app
    lines: dict[str, list[DeadLetter]] = defaultdict(list)
    for letter in dead_letters(app):
        lines[letter.subject].append(letter)
    asked: dict[LetterID, Receipt] = {}
    for story in stories:
        line = lines[f"{wards.name} {story.key}"]
        guilty = [letter for letter in line if letter.state is not LetterState.WAITING]
        match story.ending:
            case Ending.CORRECTED:
                asked |= _receipts(guilty[:1], replay(app, guilty[:1], story.correction) if guilty else [])
            case Ending.DISCARDED:
                asked |= _receipts(guilty, discard(app, guilty))
            case Ending.GIVEN_UP:
                asked |= _receipts(line, discard(app, line))
            case Ending.PARENT:
                app.put(guardians, {"id": story.key})
            case Ending.NOTHING:
                pass
    return [
        f"letter {letter_id} is {each.fate.value}: {each.detail}"
        for letter_id, each in resolutions(app, asked, RECOVERY_SECONDS_MAX).items()
        if each.fate is not LetterFate.GONE
    ]


def _receipts(letters: Iterable[DeadLetter], receipts: Iterable[Receipt]) -> dict[LetterID, Receipt]:
    return {letter.letter_id: receipt for letter, receipt in zip(letters, receipts, strict=True)}


REFUSED = Fault(
    name="rows-refused",
    summary="SQL refuses rows (CHECK, UNIQUE, a missing parent); a flusher is killed while it sets them aside",
    strike=refused,
)
