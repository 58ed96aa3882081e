"""Entry IDs as they stand in Redis."""

import pytest

from writebehind.engine.core.positions import ORIGIN, EntryID


@pytest.mark.parametrize("found", [ORIGIN, EntryID(0, 0), EntryID(2**53, 7), EntryID(5, 2**63 - 1)])
def test_what_is_written_is_read(found: EntryID) -> None:
    """As text and as bytes."""
    assert EntryID.parse(str(found)) == EntryID.parse(str(found).encode()) == found


@pytest.mark.parametrize(
    "text", ["", "5", "5-", "-3", "5-3 ", " 5-3", "5-3\n", "+5-3", "5-+3", "5_0-3", "5-3-1", "5--2", "a-1"]
)
def test_nothing_else_is(text: str) -> None:
    """What another program has put there is told, not taken for something near it."""
    with pytest.raises(ValueError, match=r"."):
        EntryID.parse(text)
