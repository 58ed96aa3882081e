"""What a poison drill expects: rows as its stories say, told here once more by hand."""

from typing import Any

import pytest

from writebehind.drills.stories import KEYS_PER_STRIKE, Ending, Fate, Story, Ward, stories_of
from writebehind.engine.core.payload import Op

STORIES = stories_of(1)
FIRST = STORIES[0].key


def ward(story: Story, **values: Any) -> Ward:
    """Return a row: as it is first, but for what is given."""
    first = {"code": story.key, "level": 1, "guardian": None, "version": 1, "steps": 0}
    return {"id": story.key, **first, **values}


def of(ending: Ending, op: Op) -> list[Story]:
    """Return the stories with an ending in which such a write is refused."""
    return [
        story
        for story in STORIES
        if story.ending is ending and any(write.op is op and write.fate is Fate.REFUSED for write in story.writes)
    ]


LATER = {"version": 3, "steps": 11}


@pytest.mark.parametrize(
    ("ending", "op", "held", "final"),
    [
        (Ending.CORRECTED, Op.PATCH, {}, {**LATER, "level": 7}),
        (Ending.DISCARDED, Op.PATCH, {}, LATER),
        (Ending.CORRECTED, Op.PUT, None, LATER),
        (Ending.GIVEN_UP, Op.PUT, None, None),
    ],
)
def test_rows_with_a_refused_write(
    ending: Ending, op: Op, held: dict[str, int] | None, final: dict[str, int] | None
) -> None:
    """While what waits is held up, and in the end."""
    stories = of(ending, op)
    assert stories
    for story in stories:
        assert story.held == (None if held is None else ward(story, **held))
        assert story.final == (None if final is None else ward(story, **final))


def test_an_orphan_is_there_once_its_parent_is() -> None:
    """It refers to a parent of its own."""
    for story in of(Ending.PARENT, Op.PUT):
        assert (story.held, story.final) == (None, ward(story, **LATER, guardian=story.key))


def test_rows_without_a_refused_write() -> None:
    """Neighbours, and rows that are written whole after what SQL refuses: the end is there at once."""
    stories = [story for story in STORIES if story.ending is Ending.NOTHING]
    assert [story.held for story in stories] == [story.final for story in stories]
    sound = [ward(story, **LATER) for story in stories if len(story.writes) > 4]
    superseding = [ward(story, version=4) for story in stories if len(story.writes) == 4]
    assert (len(sound), len(superseding)) == (10, 5)
    assert [story.final for story in stories if story.final in sound + superseding] == [s.final for s in stories]


def test_the_code_that_others_want_is_there_first() -> None:
    """So it is they who are refused."""
    assert STORIES[0].opening[0].values["code"] == FIRST
    wanted = [write.values["code"] for story in STORIES for write in story.writes if write.op is Op.PUT]
    assert wanted.count(FIRST) == 1 + len(of(Ending.CORRECTED, Op.PUT)) + len(of(Ending.GIVEN_UP, Op.PUT))


def test_strikes_have_no_keys_in_common() -> None:
    """Every one of a drill writes rows of its own."""
    keys = [story.key for strike in range(1, 4) for story in stories_of(strike)]
    assert len(set(keys)) == len(keys)
    assert max(story.key for story in STORIES) < 2 * KEYS_PER_STRIKE
