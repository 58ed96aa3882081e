"""Entries taken as they are, to be tried apart: what SQL has already is passed over, whatever it looks like."""

import pytest

from writebehind.engine.core.payload import Op, encode
from writebehind.engine.core.positions import EntryID
from writebehind.flushers.cursor import Cursor
from writebehind.flushers.merging import Merger, Taken
from writebehind.flushers.suspect import Suspect


@pytest.mark.parametrize(
    ("payload", "settled"),
    [(encode(Op.PATCH, "gone", "7", {"id": 7}), {"gone": {"7": b"5-1"}}), (b"\xc1", {}), (b"", {})],
    ids=["not declared", "unreadable", "empty"],
)
def test_what_sql_has_under_another_id(payload: bytes, settled: dict[str, dict[str, bytes]]) -> None:
    """It ends nothing, and is not tried; its record is settled also where its table is not declared."""
    merger = Merger({})
    cursor = Cursor(number=3, token=1, committed=EntryID(5, 0), rewritten={EntryID(5, 1)})
    changes = merger.blank(3)
    suspects: list[Suspect] = []
    entries = [(b"5-1", [b"m", b"x", b"p", payload]), (b"5-2", [b"x", b"y"])]
    assert merger.gather(cursor, entries, changes, Taken(40), suspects) == 2
    assert [(suspect.entry_id, suspect.place) for suspect in suspects] == [(b"5-2", 41)]
    assert {name: table.versions[3] for name, table in changes.tables.items()} == settled
