from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from writebehind.engine.core.columns import Column, Entity, Kind
from writebehind.engine.core.partitioning import partition_of
from writebehind.engine.core.records import KEY_BYTES_MAX, RecordPlan
from writebehind.engine.errors import ConfigurationError, ValidationError

ID = Column(name="id", kind=Kind.INTEGER, nullable=False, primary_key=True)
OWNER = Column(name="owner", kind=Kind.TEXT, nullable=False, length=20)
BALANCE = Column(name="balance", kind=Kind.NUMERIC, nullable=False, precision=12, scale=2, default=Decimal(5))
NOTE = Column(name="note", kind=Kind.TEXT)
MADE = Column(name="made", kind=Kind.DATE, server_default=True)


def plan_of(*columns: Column, partition_by: str | None = None, name: str = "accounts") -> RecordPlan:
    """Return the plan of a table with these columns."""
    return RecordPlan(Entity(name, columns, tuple(c for c in columns if c.primary_key), partition_by))


def key_column(name: str, kind: Kind = Kind.TEXT, **limits: Any) -> Column:
    """Return a column of a primary key."""
    return Column(name=name, kind=kind, nullable=False, primary_key=True, **limits)


ACCOUNTS = plan_of(ID, OWNER, BALANCE, NOTE)


def test_full_record() -> None:
    """A put carries all columns in the order of the table, omitted ones defaulted or NULL."""
    key_text, partition_text, values, fields = ACCOUNTS.full_record({"owner": "\\Ada", "id": 7})
    assert key_text == partition_text == "7"
    assert values == {"id": 7, "owner": "\\Ada", "balance": Decimal("5.00"), "note": None}
    assert list(values) == list(ACCOUNTS.columns)
    assert fields == ["id", "7", "owner", "\\\\Ada", "balance", "5.00", "note", "\\N"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"owner": "a"}, "accounts.id is missing"),
        ({"id": 1}, "accounts.owner is missing"),
        ({"id": 1, "ownr": "a"}, r"accounts has no column 'ownr' \(known are id, owner, balance, note\)"),
        ({"id": 1, "owner": "a", "age": 1}, "accounts has no column 'age'"),
        ({"id": 1, "owner": None}, "accounts.owner cannot be NULL"),
        ({"id": None, "owner": "a"}, "accounts.id cannot be NULL"),
        ({"id": 1, "owner": "a" * 21}, "accounts.owner holds 20 characters"),
    ],
)
def test_refused_records(record: dict[str, Any], message: str) -> None:
    """A record that does not fit its table is refused by name."""
    with pytest.raises(ValidationError, match=message):
        ACCOUNTS.full_record(record)


def test_put_needs_what_only_the_database_knows() -> None:
    """A column with a server default has to be given in a put, and may be omitted from an insert."""
    plan = plan_of(ID, MADE)
    with pytest.raises(ValidationError, match="only the database knows its default"):
        plan.full_record({"id": 1})
    assert plan.full_record({"id": 1, "made": None})[2] == {"id": 1, "made": None}
    assert plan.new_row({"id": 1}) == ("1", "1", {"id": 1})


def test_put_needs_the_key_even_where_it_has_a_default() -> None:
    """A default key serves inserts only: a put under a new key would be an insert."""
    plan = plan_of(key_column("id", Kind.INTEGER, default=9))
    with pytest.raises(ValidationError, match=r"accounts\.id is missing"):
        plan.full_record({})
    assert plan.new_row({}) == ("9", "9", {"id": 9})


def test_patch() -> None:
    """A patch carries the key and what changes; its fields are the changes."""
    expected = ("7", "7", {"id": 7, "note": None, "owner": "Grace"}, ["note", "\\N", "owner", "Grace"])
    assert ACCOUNTS.partial(7, {"note": None, "owner": "Grace"}) == expected
    assert ACCOUNTS.partial({"id": 7}, {"id": 7, "note": None, "owner": "Grace"}) == expected


@pytest.mark.parametrize("changes", [{}, {"id": 7}, {"id": 8, "note": "a"}, {"owner": None}, {"age": 1}, {"note": 5}])
def test_refused_patches(changes: dict[str, Any]) -> None:
    """A patch of nothing, of the key, or of what does not fit is refused."""
    with pytest.raises(ValidationError, match="accounts"):
        ACCOUNTS.partial(7, changes)


def test_increment() -> None:
    """An increment carries the key and the amounts."""
    assert ACCOUNTS.deltas(7, {"balance": -1}) == (
        "7", "7", {"id": 7, "balance": Decimal("-1.00")}, ["balance", "-1.00"],
    )  # fmt: skip


@pytest.mark.parametrize("amounts", [{}, {"id": 1}, {"owner": 1}, {"age": 1}, {"balance": None}, {"balance": 1.5}])
def test_refused_increments(amounts: dict[str, Any]) -> None:
    """An increment of nothing, of the key, of text or by no number is refused."""
    with pytest.raises(ValidationError, match="accounts"):
        ACCOUNTS.deltas(7, amounts)


def test_insert_without_key() -> None:
    """An insert whose key the database makes has neither key text nor partition."""
    plan = plan_of(key_column("id", Kind.INTEGER, autoincrement=True), NOTE)
    assert plan.new_row({"note": "a"}) == (None, None, {"note": "a"})
    assert plan.new_row({"id": None}) == (None, None, {"note": None})
    assert plan.new_row({"id": 3, "note": "a"}) == ("3", "3", {"id": 3, "note": "a"})
    with pytest.raises(ValidationError, match=r"accounts\.id is missing"):
        plan.full_record({"note": "a"})


def test_insert_refuses_unknown_columns() -> None:
    """An insert is checked like a put."""
    for row in ({"id": 1, "owner": "a", "age": 1}, {"owner": "a"}, {"id": 1}, {"id": 1, "owner": None}):
        with pytest.raises(ValidationError):
            ACCOUNTS.new_row(row)


def test_insert_only_entity() -> None:
    """A table partitioned by a column outside its key takes inserts, and nothing else."""
    plan = plan_of(
        key_column("id", Kind.INTEGER, autoincrement=True),
        Column(name="account", kind=Kind.INTEGER),
        partition_by="account",
    )
    assert plan.new_row({"account": 5}) == (None, "5", {"account": 5})
    for write in (
        lambda: plan.full_record({"id": 1, "account": 5}),
        lambda: plan.partial(1, {"account": 5}),
        lambda: plan.key_only(1),
    ):
        with pytest.raises(ValidationError, match="insert-only: it is partitioned by account"):
            write()
    with pytest.raises(ValidationError, match="chooses the partition and cannot be NULL"):
        plan.new_row({"id": 1})


def test_children_lie_beside_their_parent() -> None:
    """A child partitioned by its reference has its parent's partition text."""
    child = plan_of(key_column("account", Kind.INTEGER), key_column("line", Kind.INTEGER), partition_by="account")
    key_text, partition_text, _ = child.key_only((7, 1))
    assert key_text == "7:1"
    assert partition_text == ACCOUNTS.key_only(7)[1] == "7"


def test_key_forms() -> None:
    """A key is a scalar, a tuple in order, or a mapping; all are the same key."""
    plan = plan_of(key_column("b", Kind.DATE), key_column("a"))
    day = date(2024, 2, 29)
    expected = ("2024-02-29:x", "2024-02-29:x", {"b": day, "a": "x"})
    assert plan.key_only((day, "x")) == plan.key_only({"a": "x", "b": day}) == expected
    assert plan.key_text({"a": "x", "b": day, "c": 1}) == expected[0]
    assert ACCOUNTS.key_only(7) == ACCOUNTS.key_only((7,)) == ACCOUNTS.key_only({"id": 7})


@pytest.mark.parametrize("key", [None, (), (1, 2), {}, {"id": 1, "note": "a"}, {"note": "a"}, "1", True, (None,)])
def test_refused_keys(key: Any) -> None:
    """A key of the wrong shape or type is refused."""
    with pytest.raises(ValidationError):
        ACCOUNTS.key_only(key)


@pytest.mark.parametrize(
    ("kind", "limits", "value", "text"),
    [
        (Kind.TEXT, {}, "", "%00"),
        (Kind.TEXT, {}, "a:b{c}%", "a%3Ab%7Bc%7D%25"),
        (Kind.TEXT, {}, "a b\n\x7f\u2028", "a%20b%0A%7F%E2%80%A8"),
        (Kind.TEXT, {}, "äß中\U0001f600", "äß中\U0001f600"),
        (Kind.TEXT, {}, "\\N", "\\N"),
        (Kind.BYTES, {}, b"", "%00"),
        (Kind.BYTES, {}, b"\x00\xff:", "00ff3a"),
        (Kind.FLOAT, {}, -0.0, "0.0"),
        (Kind.FLOAT, {}, 1e300, "1e+300"),
        (Kind.NUMERIC, {"scale": 2}, Decimal("1.5"), "1.50"),
        (Kind.NUMERIC, {}, Decimal("1.500"), "1.5"),
        (Kind.BOOLEAN, {}, True, "true"),
        (Kind.UUID, {}, UUID(int=10), "00000000-0000-0000-0000-00000000000a"),
        (Kind.ENUM, {"labels": {"a b": "a b"}}, "a b", "a%20b"),
    ],
)
def test_key_text(kind: Kind, limits: dict[str, Any], value: Any, text: str) -> None:
    """Key texts are canonical, readable, and free of what Redis keys reserve."""
    plan = plan_of(key_column("k", kind, **limits))
    assert plan.key_only(value)[0] == text
    assert plan.key_text({"k": value}) == text


def test_key_text_of_empty_parts() -> None:
    """Empty parts stay apart from each other and from no key at all."""
    plan = plan_of(key_column("a"), key_column("b"))
    texts = [plan.key_only(key)[0] for key in (("", ""), ("", ":"), (":", ""), ("%00", ""), ("", "%00"))]
    assert len(set(texts)) == 5
    assert all(texts)


def test_key_length() -> None:
    """A key text ends at its limit in bytes, counted after encoding."""
    plan = plan_of(key_column("a"))
    assert plan.key_only("a" * KEY_BYTES_MAX)[0]
    for key in ("a" * (KEY_BYTES_MAX + 1), "ä" * (KEY_BYTES_MAX // 2 + 1), " " * (KEY_BYTES_MAX // 3 + 1)):
        with pytest.raises(ValidationError, match="more than 512 bytes"):
            plan.key_only(key)


def test_unfit_keys() -> None:
    """JSON cannot be a key, and NaN cannot be found by one."""
    with pytest.raises(ConfigurationError, match=r"accounts\.k is JSON"):
        plan_of(key_column("k", Kind.JSON))
    with pytest.raises(ValidationError, match="cannot be NaN"):
        plan_of(key_column("k", Kind.FLOAT)).key_only(float("nan"))


def test_decode_hash() -> None:
    """A whole hash is a record; reserved and foreign fields are passed over; a missing column makes it partial."""
    fields = {b"id": b"7", b"owner": b"\\\\N", b"balance": b"5.00", b"note": b"\\N", b":v": b"1-0", b"gone": b"x"}
    expected = {"id": 7, "owner": "\\N", "balance": Decimal("5.00"), "note": None}
    assert ACCOUNTS.decode_hash(fields) == expected
    del fields[b"note"], expected["note"]
    assert ACCOUNTS.decode_hash(fields) is None
    assert ACCOUNTS.decode_fields(fields) == expected


def test_unreadable_hash() -> None:
    """A text of another kind is reported with its column, and without the text."""
    with pytest.raises(ConfigurationError, match=r"accounts\.id: a text in Redis is not of kind integer") as caught:
        ACCOUNTS.decode_fields({b"id": b"secret"})
    assert "secret" not in str(caught.value)


def test_values_to_user() -> None:
    """Wire values of some columns become user values."""
    plan = plan_of(ID, Column(name="doc", kind=Kind.JSON), Column(name="key", kind=Kind.UUID, as_uuid=False))
    _, _, values, _ = plan.full_record({"id": 1, "doc": {"a": 1}})
    assert plan.values_to_user(values) == {"id": 1, "doc": {"a": 1}, "key": None}
    assert plan.values_to_user({"key": UUID(int=1)}) == {"key": str(UUID(int=1))}


def test_default_row() -> None:
    """An increment begins with the defaults, NULL where allowed, and the given columns at nothing."""
    count = Column(name="count", kind=Kind.INTEGER, nullable=False)
    plan = plan_of(ID, BALANCE, NOTE, count)
    assert plan.default_row({"id": 1}, {"count"}) == {"id": 1, "balance": Decimal("5.00"), "note": None, "count": None}
    assert plan.default_row({"id": 1}, {"balance"}) is None
    assert plan_of(ID, count, MADE).default_row({"id": 1}, {"count"}) is None


def test_adders() -> None:
    """Numeric columns have a sum of values and a sum of increments."""
    plan = plan_of(ID, BALANCE, NOTE)
    assert set(plan.adders) == set(plan.delta_adders) == {"id", "balance"}
    assert plan.adders["balance"](None, Decimal("1.00")) == 1
    with pytest.raises(ValidationError):
        plan.adders["balance"](Decimal("9999999999.99"), Decimal("0.01"))
    assert plan.delta_adders["balance"](Decimal("9999999999.99"), Decimal("0.01")) == 10**10


def test_partitions_are_stable() -> None:
    """The partition of a key is fixed for all releases: other numbers here would move keys away from their log."""
    assert [partition_of(text, 16) for text in ("1", "2", "3", "ä", "%00")] == [7, 13, 11, 3, 6]
    assert {partition_of(str(number), 16) for number in range(1000)} == set(range(16))
