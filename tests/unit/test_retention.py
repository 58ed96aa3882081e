"""What is kept, what counts as lost, and what may be written again."""

import pytest

from writebehind.engine.core.appending import Call
from writebehind.engine.core.contiguity import Lineage, ahead, end_of
from writebehind.engine.core.payload import Mutation, Op
from writebehind.engine.core.positions import ORIGIN, EntryID
from writebehind.engine.core.retention import Accepted, Ring, commutes, is_lost

KEY = frozenset({"id"})


def at(text: str) -> EntryID:
    """Read a position."""
    return EntryID.parse(text)


def call(partition: int = 0, payload_bytes: int = 100, entries: int = 1) -> Call:
    """Make a call of increments of one record."""
    each = [b"payload", 1, "i", 5, "balance", "i", "1", "", ""]
    return Call(
        partition, "00000000001client1", entries, ["record"] * entries, [entries, 1, *each * entries], payload_bytes
    )


@pytest.mark.parametrize(
    ("entry", "lineage", "lost"),
    [
        ("5-7", {5: None}, False),
        ("5-7", {5: None, 9: at("5-7")}, False),
        ("5-8", {5: None, 9: at("5-7")}, True),
        ("5-7", {9: None}, True),
        ("5-7", {5: None, 9: None}, True),
        ("7-0", {5: None, 7: at("5-3"), 9: at("5-3")}, True),
        ("7-0", {5: None, 7: at("5-3"), 9: at("7-0")}, False),
    ],
    ids=["going on", "whole", "tail lost", "epoch unknown", "log deleted", "epoch left empty", "last of its epoch"],
)
def test_what_a_history_is_without(entry: str, lineage: Lineage, lost: bool) -> None:  # noqa: FBT001
    """An entry above the end of its epoch, or of an epoch that never was, is lost."""
    assert is_lost(at(entry), lineage) is lost


def test_the_ring_is_bounded_in_bytes() -> None:
    """The oldest go first, and leave their position behind."""
    size = Accepted(call(), b"5-0", 0.0).size
    ring = Ring(3 * size, 100.0)
    for number in range(5):
        ring.add(Accepted(call(number % 2), b"5-%d" % number, 0.0))
    assert [each.last for each in [*ring.of(0), *ring.of(1)]] == [b"5-2", b"5-4", b"5-3"]
    assert ring.dropped == {0: {b"5": b"5-0"}, 1: {b"5": b"5-1"}}


def test_the_ring_is_bounded_in_age() -> None:
    """What is too old goes, also where nothing comes after it."""
    ring = Ring(10**6, 10.0)
    ring.add(Accepted(call(), b"5-0", 0.0))
    ring.add(Accepted(call(), b"5-1", 9.0))
    ring.add(Accepted(call(), b"5-2", 11.0))
    assert [each.last for each in ring.of(0)] == [b"5-1", b"5-2"]
    ring.expire(20.0)
    assert ring.partitions() == {0}
    ring.expire(22.0)
    assert ring.of(0) == []
    assert ring.dropped == {0: {b"5": b"5-2"}}
    assert ring.partitions() == {0}


def test_what_is_left_of_an_epoch_may_be_lost_yet() -> None:
    """After a loss was told the ring remembers where it has left the epoch, and nothing where none of it is left."""
    ring = Ring(0, 100.0)
    for number in range(3):
        ring.add(Accepted(call(), b"%d-7" % (5 + number), 0.0))
    ring.cut(0, 5, at("5-3"))
    ring.cut(0, 6, at("5-3"))
    ring.cut(0, 7, None)
    ring.cut(0, 8, at("8-1"))
    assert ring.dropped == {0: {b"5": b"5-3", b"8": b"8-1"}}
    ring.cut(1, 5, None)
    assert ring.partitions() == {0}


def test_a_call_is_taken_apart() -> None:
    """Each entry of a call has its own ID, mutation ID and operations."""
    singles = Accepted(call(entries=3), b"5-9", 0.0).singles()
    assert [str(single.entry_id) for single in singles] == ["5-7", "5-8", "5-9"]
    assert [single.mutation_id for single in singles] == [f"00000000001client1.{number}" for number in (1, 2, 3)]
    assert singles[0].operations == [("i", ["balance", "i", "1", "", ""])]
    assert all(single.original == single.entry_id for single in singles)


def change(op: Op, **values: int) -> Mutation:
    """Make a mutation of one record."""
    return (op, "accounts", "1", {"id": 1, **values})


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (change(Op.INCREMENT, a=1), change(Op.INCREMENT, a=2), True),
        (change(Op.INCREMENT, a=1), change(Op.PATCH, a=2), False),
        (change(Op.INCREMENT, a=1), change(Op.PATCH, b=2), True),
        (change(Op.PATCH, a=1), change(Op.PATCH, b=2), True),
        (change(Op.PATCH, a=1), change(Op.PATCH, a=1), False),
        (change(Op.PUT, a=1), change(Op.INCREMENT, a=1), False),
        (change(Op.INCREMENT, a=1), change(Op.PUT, a=1), False),
        (change(Op.DELETE), change(Op.INCREMENT, a=1), False),
        (change(Op.INCREMENT, a=1), change(Op.DELETE), False),
    ],
)
def test_what_gives_the_same_in_any_order(one: Mutation, other: Mutation, same: bool) -> None:  # noqa: FBT001
    """Only additions, and changes of other columns, may be made after what came later."""
    assert commutes(one, [other], KEY) is same
    assert commutes(one, [], KEY)


@pytest.mark.parametrize(
    ("offset", "earlier", "lineage", "below"),
    [
        (at("5-8"), {}, {5: None}, None),
        (at("5-8"), {}, {5: None, 9: at("5-8")}, None),
        (at("5-8"), {}, {5: None, 9: at("5-6")}, 9),
        (at("9-3"), {9: at("5-8")}, {5: None, 9: at("5-6")}, 9),
        (at("9-3"), {9: at("5-6")}, {5: None, 9: at("5-6")}, None),
        (at("7-2"), {7: at("5-6")}, {5: None, 9: at("5-6")}, 9),
        (at("5-8"), {}, {9: None}, 9),
        (at("7-1"), {7: at("5-9")}, {5: None, 7: at("5-9"), 9: at("5-9")}, 9),
        (ORIGIN, {}, {5: None, 9: at("5-6")}, None),
        (at("5-4"), {}, {5: None, 9: at("5-8")}, None),
    ],
    ids=[
        "one epoch",
        "nothing lost",
        "behind",
        "behind, and served since",
        "never behind",
        "an epoch that this history never had",
        "emptied",
        "an epoch of which only the beginning was kept",
        "nothing applied",
        "SQL behind",
    ],
)
def test_where_sql_is_ahead(offset: EntryID, earlier: dict[int, EntryID], lineage: Lineage, below: int | None) -> None:
    """Redis was rolled back where an epoch begins below what SQL has applied of the one before."""
    assert ahead(offset, earlier, lineage) == below


def test_where_an_epoch_ended() -> None:
    """The next epoch's lineage says it; an epoch that goes on has no end."""
    lineage = {5: None, 7: at("5-3"), 9: at("5-3")}
    assert [end_of(epoch, lineage) for epoch in (5, 7, 9)] == [at("5-3"), at("5-3"), None]
