"""Every bulk path writes on its databases what the changes say, and nothing else."""

import enum
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError, IntegrityError

from writebehind.engine.adapters.declaration import DeclaredTable, declare
from writebehind.engine.core.coalescing import Changes, TableChanges
from writebehind.engine.core.payload import Op
from writebehind.engine.core.values import JsonText
from writebehind.engine.core.wire_types import misfit
from writebehind.engine.errors import ConfigurationError, PoisonEntryError
from writebehind.flushers.bulk import bulk_path, in_foreign_key_order, postgresql, staging, statements
from writebehind.flushers.bulk.generic import GenericPath
from writebehind.flushers.bulk.mysql import MySQLPath
from writebehind.flushers.bulk.path import BulkPath
from writebehind.flushers.bulk.postgresql import CopyPath
from writebehind.flushers.bulk.upsert import UpsertPath
from writebehind.flushers.failures import Failure, classify

Row = dict[str, Any]
Mutation = tuple[Op, str, Row]


class Mood(enum.Enum):
    """Names and values differ."""

    CALM = "calm"
    WILD = "wild"


@dataclass(frozen=True, kw_only=True)
class World:
    """A database and one path to it."""

    engine: sa.Engine
    path: BulkPath

    def declare(self, table: sa.Table) -> DeclaredTable:
        """Create the table, and its schema on PostgreSQL."""
        if table.schema is not None and self.engine.dialect.name == "postgresql":
            with self.engine.begin() as connection:
                connection.execute(sa.schema.CreateSchema(table.schema))
        table.metadata.create_all(self.engine)
        return declare(table, self.engine.dialect.name)

    def flush(self, declared: DeclaredTable, changes: TableChanges) -> int:
        """Commit the changes; give how many updates found no row."""
        with self.engine.begin() as connection:
            absent = self.path.apply(connection, declared, changes)
            self.path.delete(connection, declared, changes)
        return absent

    def rows(self, declared: DeclaredTable) -> dict[str, Row]:
        """The table's rows as user values, by key text."""
        with self.engine.connect() as connection:
            found = connection.execute(sa.select(declared.table)).all()
        rows = [
            {
                name: value if value is None or convert is None else convert(value)
                for (name, convert), value in zip(declared.from_row.items(), row, strict=True)
            }
            for row in found
        ]
        return {declared.plan.key_text(row): row for row in rows}


PATHS: dict[str, tuple[str, Callable[[sa.Dialect], BulkPath]]] = {
    "sqlite-upsert": ("sqlite_url", UpsertPath),
    "sqlite-named": ("sqlite_url", UpsertPath),
    "sqlite-generic": ("sqlite_url", GenericPath),
    "postgresql-copy": ("postgresql_url", CopyPath),
    "postgresql-upsert": ("postgresql_url", UpsertPath),
    "postgresql-generic": ("postgresql_url", GenericPath),
    "mariadb-mysql": ("mariadb_url", MySQLPath),
    "mariadb-generic": ("mariadb_url", GenericPath),
}


def engine_of(url: str) -> sa.Engine:
    """An engine that checks foreign keys."""
    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":

        @sa.event.listens_for(engine, "connect")
        def check_foreign_keys(connection: Any, record: object) -> None:
            connection.execute("PRAGMA foreign_keys = ON")

    return engine


@pytest.fixture(params=PATHS)
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Each path on each of its databases; COPY also for the few rows of a test.

    Drivers that want parameters by name and type are not at hand: one database stands in for them.
    """
    monkeypatch.setattr(postgresql, "COPY_ROWS_MIN", 1)
    if request.param.endswith("-named"):
        monkeypatch.setattr(statements, "_positional", lambda *_: None)
    url, make = PATHS[request.param]
    engine = engine_of(request.getfixturevalue(url))
    yield World(engine=engine, path=make(engine.dialect))
    engine.dispose()


@pytest.fixture
def copying(postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The COPY path alone."""
    monkeypatch.setattr(postgresql, "COPY_ROWS_MIN", 1)
    engine = engine_of(postgresql_url)
    yield World(engine=engine, path=CopyPath(engine.dialect))
    engine.dispose()


def changes_for(declared: DeclaredTable) -> TableChanges:
    """Empty changes, as the flusher makes them."""
    plan = declared.plan
    return TableChanges(
        tuple(column.name for column in declared.entity.key),
        plan.adders,
        plan.default_row,
        delta_adders=plan.delta_adders,
        columns=plan.columns.keys(),
    )


def coalesced(declared: DeclaredTable, *mutations: Mutation) -> TableChanges:
    """Mutations merged into one batch."""
    changes = changes_for(declared)
    for op, key, values in mutations:
        assert changes.accepts(op, key, values)
        changes.merge(op, key, dict(values), b"1-0")
    return changes


def puts(declared: DeclaredTable, *rows: Row) -> TableChanges:
    """A batch of puts."""
    return coalesced(declared, *((Op.PUT, declared.plan.key_text(row), row) for row in rows))


def everything(metadata: sa.MetaData, *strict: sa.Column[Any]) -> sa.Table:
    """A table with a column of each kind."""
    return sa.Table(
        "everything",
        metadata,
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("small", sa.SmallInteger),
        sa.Column("count", sa.Integer),
        sa.Column("total", sa.Numeric(12, 2)),
        sa.Column("score", sa.Double),
        sa.Column("name", sa.String(40)),
        sa.Column("active", sa.Boolean),
        sa.Column("day", sa.Date),
        sa.Column("at", sa.Time),
        sa.Column("made", sa.DateTime),
        sa.Column("seen", sa.DateTime(timezone=True)),
        sa.Column("span", sa.Interval),
        sa.Column("span_emulated", sa.Interval(native=False)),
        sa.Column("blob", sa.LargeBinary),
        sa.Column("data", sa.JSON),
        sa.Column("document", sa.JSON().with_variant(JSONB(), "postgresql")),
        sa.Column("ref", sa.Uuid),
        sa.Column("ref_emulated", sa.Uuid(native_uuid=False)),
        sa.Column("mood", sa.Enum(Mood)),
        sa.Column("mood_text", sa.Enum(Mood, native_enum=False, values_callable=lambda kind: [m.value for m in kind])),
        sa.Column("code", sa.CHAR(6)),
        *strict,
    )


def random_values(chance: random.Random) -> Row:
    """Wire values for ``everything`` that every database keeps."""
    values: Row = {
        "small": chance.randrange(-100, 100),
        "count": chance.randrange(-1000, 1000),
        "total": Decimal(chance.randrange(-100_000, 100_000)) / 100,
        "score": chance.randrange(-1000, 1000) / 4,
        "name": chance.choice(["", "Ada", "%s", "'; --", "ünïcode", "a\\b", "tab\there", "\\N"]),
        "active": chance.random() < 0.5,
        "day": date(2024, 2, 29) + timedelta(days=chance.randrange(500)),
        "at": time(chance.randrange(24), 5, 6),
        "made": datetime(2024, 1, 1) + timedelta(seconds=chance.randrange(10**7)),  # noqa: DTZ001
        "seen": datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=chance.randrange(10**7)),
        "span": timedelta(days=chance.randrange(20), seconds=chance.randrange(5000)),
        "span_emulated": timedelta(days=chance.randrange(20), seconds=chance.randrange(5000)),
        "blob": chance.randbytes(chance.randrange(5)),
        "data": JsonText(chance.choice(["null", "[]", '{"a":[1,2.5,"x"]}', '"%"', "1e+23"])),
        "document": JsonText(chance.choice(["null", '{"a":null}', '["e+"]', "1e+23"])),
        "ref": UUID(int=chance.getrandbits(128), version=4),
        "ref_emulated": UUID(int=chance.getrandbits(128), version=4),
        "mood": chance.choice(["CALM", "WILD"]),
        "mood_text": chance.choice(["calm", "wild"]),
        "code": chance.choice(["", "ab", "abcdef"]),
        "strict": 1,
    }
    return {name: value if name == "strict" or chance.random() < 0.8 else None for name, value in values.items()}


def random_mutation(chance: random.Random, columns: set[str], keys: int) -> Mutation:
    """Any mutation of one of a few keys."""
    key = chance.randrange(keys)
    values = {name: value for name, value in random_values(chance).items() if name in columns}
    some = {name: value for name, value in values.items() if name == "strict" or chance.random() < 0.7}
    op = chance.choices([Op.PUT, Op.PATCH, Op.INCREMENT, Op.INSERT, Op.DELETE], [5, 4, 5, 1, 2])[0]
    chosen: Row = values
    if op is Op.PUT:
        chosen = chance.choice([values, values, some])
    elif op is Op.PATCH:
        chosen = {name: values[name] for name in chance.sample(sorted(values), 2)}
    elif op is Op.INCREMENT:
        amounts: Row = {"count": chance.randrange(9), "total": Decimal("0.10"), "score": 0.25}
        chosen = {name: amounts[name] for name in chance.sample(sorted(amounts), 2)}
    elif op is Op.DELETE:
        chosen = {}
    return op, str(key), {"id": key, **chosen}


def apply_one(declared: DeclaredTable, rows: dict[str, Row], mutation: Mutation) -> bool:
    """Apply a mutation to wire values by key; tell whether the database would have taken it."""
    op, key, values = mutation
    row = rows.get(key)
    blank: Row = dict.fromkeys(declared.plan.columns)
    if op is Op.INSERT:
        if row is not None:
            return False
        rows[key] = {**blank, **values}
    elif op is Op.PUT:
        rows[key] = {**(row or blank), **values}
    elif op is Op.PATCH and row is not None:
        row.update(values)
    elif op is Op.INCREMENT:
        if row is None:
            row = declared.plan.default_row({"id": values["id"]}, set(values) - {"id"})
        if row is not None:
            rows[key] = row
            row.update({name: (row[name] or 0) + delta for name, delta in values.items() if name != "id"})
    elif op is Op.DELETE:
        rows.pop(key, None)
    return True


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("seed", [1, 2])
def test_random_mutations_equal_naive_apply(world: World, seed: int, begins: bool) -> None:  # noqa: FBT001
    """Any mix of mutations of all kinds of columns, in batches, gives the rows of one-by-one apply."""
    strict = [] if begins else [sa.Column("strict", sa.Integer, nullable=False)]
    declared = world.declare(everything(sa.MetaData(), *strict))
    chance = random.Random(seed)
    expected: dict[str, Row] = {}
    changes = changes_for(declared)
    for number in range(1, 601):
        mutation = random_mutation(chance, set(declared.plan.columns), keys=40)
        if not apply_one(declared, expected, mutation):
            continue
        op, key, values = mutation
        if not changes.accepts(op, key, values) or number % 100 == 0:
            world.flush(declared, changes)
            changes = changes_for(declared)
        changes.merge(op, key, dict(values), b"1-0")
    world.flush(declared, changes)
    assert world.rows(declared) == {key: declared.plan.values_to_user(row) for key, row in expected.items()}


def people(metadata: sa.MetaData) -> sa.Table:
    """A table with a unique index beside its key."""
    return sa.Table(
        "people",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("email", sa.String(80), unique=True),
        sa.Column("visits", sa.Integer),
    )


def person(number: int, email: str | None = None, visits: int | None = 0) -> Row:
    """A row of ``people``."""
    return {"id": number, "email": email or f"{number}@example.org", "visits": visits}


@pytest.mark.parametrize(
    "mutation",
    [
        (Op.PUT, "3", person(3, "1@example.org")),
        (Op.PUT, "2", person(2, "1@example.org")),
        (Op.INSERT, "3", person(3, "1@example.org")),
        (Op.INSERT, "1", person(1)),
        (Op.INSERT, "", {"id": 2, "email": "new@example.org"}),
        (Op.PATCH, "2", {"id": 2, "email": "1@example.org"}),
    ],
)
def test_a_collision_raises_and_overwrites_nothing(world: World, mutation: Mutation) -> None:
    """A row that exists, or another row's unique value, is an IntegrityError and never an update of that row."""
    declared = world.declare(people(sa.MetaData()))
    world.flush(declared, puts(declared, person(1), person(2)))
    before = world.rows(declared)
    neighbours: list[Mutation] = [(Op.PUT, str(n), person(n)) for n in range(10, 15)]
    with pytest.raises(IntegrityError) as caught:
        world.flush(declared, coalesced(declared, *neighbours, mutation))
    assert classify(caught.value, committing=False) is Failure.POISON
    assert world.rows(declared) == before


def test_a_unique_index_that_the_model_does_not_know(mariadb_url: str) -> None:
    """ON DUPLICATE KEY UPDATE is not used where only the database knows of a unique index."""
    engine = engine_of(mariadb_url)
    metadata = sa.MetaData()
    table = sa.Table(
        "people", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("email", sa.String(80))
    )
    world = World(engine=engine, path=bulk_path(engine))
    declared = world.declare(table)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE UNIQUE INDEX hidden ON people (email)")
    world.flush(declared, puts(declared, {"id": 1, "email": "a"}))
    with pytest.raises(IntegrityError):
        world.flush(declared, puts(declared, {"id": 2, "email": "a"}))
    assert list(world.rows(declared)) == ["1"]
    engine.dispose()


def test_composite_keys(world: World) -> None:
    """Keys of several columns are found, updated, created and deleted by all of them."""
    table = sa.Table(
        "parts",
        sa.MetaData(),
        sa.Column("tenant", sa.String(20), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("ref", sa.Uuid, primary_key=True),
        sa.Column("count", sa.Integer),
    )
    declared = world.declare(table)
    refs = UUID(int=1, version=4), UUID(int=2, version=4)
    keys = [{"tenant": tenant, "number": n, "ref": ref} for tenant in "ab" for n in (1, 2) for ref in refs]
    text = declared.plan.key_text
    world.flush(declared, puts(declared, *({**key, "count": 1} for key in keys[:4])))
    absent = world.flush(
        declared,
        coalesced(
            declared,
            (Op.INCREMENT, text(keys[0]), {**keys[0], "count": 5}),
            (Op.INCREMENT, text(keys[5]), {**keys[5], "count": 5}),
            (Op.PATCH, text(keys[6]), {**keys[6], "count": 5}),
            (Op.PUT, text(keys[1]), {**keys[1], "count": None}),
            (Op.DELETE, text(keys[2]), keys[2]),
            (Op.DELETE, text(keys[7]), keys[7]),
        ),
    )
    assert absent == 1
    counts = {key: row["count"] for key, row in world.rows(declared).items()}
    assert counts == {text(keys[0]): 6, text(keys[1]): None, text(keys[3]): 1, text(keys[5]): 5}


def test_tables_of_key_columns_only(world: World) -> None:
    """A put of a row that has nothing to update creates it once."""
    table = sa.Table(
        "members",
        sa.MetaData(),
        sa.Column("club", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("person", sa.Integer, primary_key=True, autoincrement=False),
    )
    declared = world.declare(table)
    rows = [{"club": 1, "person": n} for n in range(4)]
    world.flush(declared, puts(declared, *rows[:2]))
    world.flush(declared, puts(declared, *rows))
    patch = [(Op.PATCH, declared.plan.key_text(row), row) for row in (rows[0], {"club": 9, "person": 9})]
    assert world.flush(declared, coalesced(declared, *patch)) == 1
    world.flush(declared, coalesced(declared, (Op.DELETE, declared.plan.key_text(rows[0]), rows[0])))
    assert list(world.rows(declared).values()) == rows[1:]


def test_only_named_columns_are_written(world: World) -> None:
    """A row that lacks columns leaves them as they are, or to the database's default."""
    table = sa.Table(
        "people",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(20), default="from the model"),
        sa.Column("state", sa.String(20), server_default="new"),
    )
    declared = world.declare(table)
    world.flush(declared, puts(declared, {"id": 1, "name": "a", "state": "old"}))
    world.flush(declared, puts(declared, {"id": 1, "name": "b"}, {"id": 2, "name": "c"}, {"state": "x", "id": 3}))
    assert list(world.rows(declared).values()) == [
        {"id": 1, "name": "b", "state": "old"},
        {"id": 2, "name": "c", "state": "new"},
        {"id": 3, "name": None, "state": "x"},
    ]


def test_rows_whose_keys_the_database_makes(world: World) -> None:
    """Appended rows are all inserted, in order, also without any value."""
    table = sa.Table(
        "events",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("kind", sa.String(20)),
    )
    declared = world.declare(table)
    inserts: list[Mutation] = [(Op.INSERT, "", {"kind": f"kind {number}"}) for number in range(20)]
    world.flush(declared, coalesced(declared, *inserts, (Op.INSERT, "", {}), (Op.INSERT, "", {})))
    kinds = [row["kind"] for _, row in sorted(world.rows(declared).items(), key=lambda item: int(item[0]))]
    assert kinds == [f"kind {number}" for number in range(20)] + [None, None]


def test_missing_rows_are_counted_or_created(world: World) -> None:
    """Patches of absent rows are counted; increments create their rows, with later patches in them."""
    declared = world.declare(people(sa.MetaData()))
    world.flush(declared, puts(declared, *(person(n) for n in range(3))))
    patches: list[Mutation] = [(Op.PATCH, str(n), {"id": n, "email": f"{n}@new"}) for n in range(6)]
    increments: list[Mutation] = [(Op.INCREMENT, str(n), {"id": n, "visits": 2}) for n in (1, 10, 11)]
    later: Mutation = (Op.PATCH, "10", {"id": 10, "email": "10@new"})
    assert world.flush(declared, coalesced(declared, *patches, *increments, later)) == 3
    found = [(row["id"], row["email"], row["visits"]) for row in world.rows(declared).values()]
    assert sorted(found) == [(0, "0@new", 0), (1, "1@new", 2), (2, "2@new", 0), (10, "10@new", 2), (11, None, 2)]


def test_decimals_add_up_exactly(world: World) -> None:
    """A sum of decimals is rounded to the column's scale where the database computes in doubles."""
    table = sa.Table(
        "sums",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("total", sa.Numeric(10, 2)),
    )
    declared = world.declare(table)
    for _ in range(10):
        world.flush(declared, coalesced(declared, (Op.INCREMENT, "1", {"id": 1, "total": Decimal("0.10")})))
    with world.engine.connect() as connection:
        exact = connection.scalar(sa.select(sa.func.count()).where(table.c.total == sa.literal_column("1.00")))
    assert exact == 1


def test_no_changes_write_nothing(world: World) -> None:
    """Empty changes need not even a table."""
    declared = declare(people(sa.MetaData()), world.engine.dialect.name)
    assert world.flush(declared, changes_for(declared)) == 0


@pytest.mark.slow
def test_large_batches(world: World) -> None:
    """More rows than any statement takes at once."""
    declared = world.declare(people(sa.MetaData()))
    size = 11_000
    world.flush(declared, puts(declared, *(person(n) for n in range(size))))
    world.flush(declared, puts(declared, *(person(n, visits=1) for n in range(size // 2, size + size // 2))))
    increments: list[Mutation] = [(Op.INCREMENT, str(n), {"id": n, "visits": 2}) for n in range(0, 2 * size, 2)]
    world.flush(declared, coalesced(declared, *increments))
    world.flush(declared, coalesced(declared, *((Op.DELETE, str(n), {"id": n}) for n in range(0, 2 * size, 3))))
    expected = {
        n: (n >= size // 2 and n < size + size // 2) + (2 if n % 2 == 0 else 0)
        for n in range(2 * size)
        if n % 3 and (n % 2 == 0 or n < size + size // 2)
    }
    assert {row["id"]: row["visits"] for row in world.rows(declared).values()} == expected


@pytest.mark.parametrize("schema", [None, 'Odd%"schema'])
def test_odd_names(world: World, schema: str | None) -> None:
    """Reserved words, capitals, spaces, quotes and percent signs may stand in names."""
    if schema is not None:
        schema = {"sqlite": "main", "mysql": world.engine.url.database}.get(world.engine.dialect.name, schema)
    table = sa.Table(
        'Select%"`Table',
        sa.MetaData(),
        sa.Column("order", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("Mixed Case", sa.String(20), primary_key=True),
        sa.Column('quo"te`s', sa.String(20)),
        sa.Column("per%cent (%s) %(x)s", sa.Integer),
        sa.Column("p0", sa.Integer),
        schema=schema,
    )
    declared = world.declare(table)
    first, second = ({"order": n, "Mixed Case": "K"} for n in (1, 2))
    text = declared.plan.key_text
    rest = {'quo"te`s': "%s", "per%cent (%s) %(x)s": 1, "p0": 2}
    world.flush(declared, puts(declared, {**first, **rest}))
    world.flush(declared, puts(declared, {**first, **rest}))
    world.flush(
        declared,
        coalesced(
            declared,
            (Op.PATCH, text(first), {**first, 'quo"te`s': "%%", "p0": 5}),
            (Op.INCREMENT, text(first), {**first, "per%cent (%s) %(x)s": 3}),
            (Op.INCREMENT, text(second), {**second, "p0": 3}),
            (Op.INSERT, "k", {"order": 3, "Mixed Case": "K"}),
        ),
    )
    world.flush(declared, coalesced(declared, (Op.DELETE, "k", {"order": 3, "Mixed Case": "K"})))
    assert list(world.rows(declared).values()) == [
        {**first, 'quo"te`s': "%%", "per%cent (%s) %(x)s": 4, "p0": 5},
        {**second, 'quo"te`s': None, "per%cent (%s) %(x)s": None, "p0": 3},
    ]


@pytest.mark.parametrize("op", [Op.PUT, Op.PATCH, Op.INSERT])
def test_unknown_columns_halt(world: World, op: Op) -> None:
    """A column of a newer release is the operator's business."""
    declared = world.declare(people(sa.MetaData()))
    with pytest.raises(ConfigurationError, match="nickname of table people") as caught:
        world.flush(declared, coalesced(declared, (op, "1", {**person(1), "nickname": "a"})))
    assert caught.value.hint


WIRE_VALUES = (
    5,
    1.5,
    Decimal("1.5"),
    "text",
    '"text"',
    True,
    date(2020, 1, 2),
    time(1, 2),
    datetime(2020, 1, 2, 5),  # noqa: DTZ001 - without a time zone
    datetime(2020, 1, 2, 5, tzinfo=UTC),
    timedelta(1),
    b"0123456789abcdef",
    JsonText("[1]"),
    UUID(int=5),
)


@pytest.mark.parametrize("op", [Op.PUT, Op.PATCH])
def test_values_of_another_type(world: World, op: Op) -> None:
    """They are refused, by names and not by value, before the database or its driver makes something else of them."""
    declared = world.declare(everything(sa.MetaData()))
    world.flush(declared, puts(declared, {"id": 1, "name": "before"}))
    before = world.rows(declared)
    for column in declared.entity.columns[1:]:
        for value in WIRE_VALUES:
            found = misfit(column, [{column.name: value}])
            if found is None:
                continue
            with pytest.raises(Exception) as caught:  # noqa: PT011 - what COPY refuses has the driver's classes
                world.flush(declared, coalesced(declared, (op, "1", {"id": 1, column.name: value})))
            if not isinstance(world.path, CopyPath) or column.kind not in postgresql.REFUSED_BY_DRIVER:
                assert isinstance(caught.value, PoisonEntryError)
                said = str(caught.value)
                assert f"column {column.name} of table everything is declared as {column.kind.value}" in said
                assert f"holds {found.value} for" in said
    assert world.rows(declared) == before


def test_keys_of_another_type(world: World) -> None:
    """They find no row, also where the database would take them for another key: MySQL takes a text for 0."""
    declared = world.declare(people(sa.MetaData()))
    world.flush(declared, puts(declared, person(0), person(2)))
    for op in (Op.DELETE, Op.PATCH):
        for key in ("text", 1.5):
            with pytest.raises((PoisonEntryError, TypeError, DBAPIError)):
                world.flush(declared, coalesced(declared, (op, "x", {"id": key, "email": "forged"})))
    assert list(world.rows(declared).values()) == [person(0), person(2)]


def test_what_the_database_refuses(world: World) -> None:
    """Missing tables, parents and values are told apart."""
    metadata = sa.MetaData()
    parents = sa.Table("parents", metadata, sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))
    children = sa.Table(
        "children",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("parent", sa.ForeignKey(parents.c.id), nullable=False),
    )
    undeclared = declare(parents, world.engine.dialect.name)

    def failure(act: Callable[[], object]) -> Failure:
        with pytest.raises(DBAPIError) as caught:
            act()
        return classify(caught.value, committing=False)

    assert failure(lambda: world.flush(undeclared, puts(undeclared, {"id": 1}))) is Failure.CONFIGURATION
    parent, child = world.declare(parents), world.declare(children)
    orphan, nameless = {"id": 1, "parent": 7}, {"id": 1, "parent": None}
    assert failure(lambda: world.flush(child, puts(child, orphan))) is Failure.FOREIGN_KEY
    assert failure(lambda: world.flush(child, puts(child, nameless))) is Failure.POISON
    world.flush(parent, puts(parent, {"id": 7}))
    world.flush(child, puts(child, orphan))
    deletion = coalesced(parent, (Op.DELETE, "7", {"id": 7}))
    assert failure(lambda: world.flush(parent, deletion)) is Failure.FOREIGN_KEY


def test_rows_that_refer_to_their_own_table(world: World) -> None:
    """Rows of such a table are written in the order of their entries."""
    table = sa.Table(
        "nodes",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("parent", sa.ForeignKey("nodes.id")),
    )
    declared = world.declare(table)
    rows: list[Row] = [{"id": 5, "parent": None}, {"id": 3, "parent": 5}, {"id": 1, "parent": 3}]
    world.flush(declared, puts(declared, *rows))
    assert sorted(world.rows(declared)) == ["1", "3", "5"]


def test_multi_row_statements(mariadb_url: str) -> None:
    """A thousand upserts go to MariaDB in a few statements."""
    engine = engine_of(mariadb_url)
    metadata = sa.MetaData()
    table = sa.Table("counts", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("count", sa.Integer))
    world = World(engine=engine, path=bulk_path(engine))
    declared = world.declare(table)
    with engine.begin() as connection:
        world.path.apply(connection, declared, puts(declared, *({"id": n, "count": n} for n in range(1, 1001))))
        status = connection.exec_driver_sql("SHOW SESSION STATUS LIKE 'Com_insert'").one()
    assert int(status[1]) <= 3
    assert len(world.rows(declared)) == 1000
    engine.dispose()


def test_key_zero_of_a_numbered_table(world: World) -> None:
    """The key 0 is a key, not a request for the next number."""
    if type(world.path) is GenericPath and world.engine.dialect.name == "mysql":
        pytest.skip("the generic path does not know MySQL's meaning of 0")
    table = sa.Table(
        "counts", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("count", sa.Integer)
    )
    declared = world.declare(table)
    world.flush(declared, puts(declared, {"id": 0, "count": 1}, {"id": 5, "count": 1}))
    world.flush(declared, puts(declared, {"id": 0, "count": 2}))
    assert {key: row["count"] for key, row in world.rows(declared).items()} == {"0": 2, "5": 1}


def test_keys_that_are_equal_in_the_database_only(mariadb_url: str) -> None:
    """Under a collation that folds case, a patch finds its row by either spelling."""
    engine = engine_of(mariadb_url)
    table = sa.Table(
        "names", sa.MetaData(), sa.Column("name", sa.String(20), primary_key=True), sa.Column("count", sa.Integer)
    )
    world = World(engine=engine, path=GenericPath(engine.dialect))
    declared = world.declare(table)
    world.flush(declared, puts(declared, {"name": "a", "count": 1}))
    patches: list[Mutation] = [(Op.PATCH, name, {"name": name, "count": 2}) for name in ("A", "b")]
    assert world.flush(declared, coalesced(declared, *patches)) == 1
    world.flush(declared, puts(declared, {"name": "A", "count": 3}))
    assert [row["count"] for row in world.rows(declared).values()] == [3]
    engine.dispose()


def test_two_batches_in_one_transaction(copying: World) -> None:
    """The temporary table is empty again for the second batch, and made again after a savepoint took it away."""
    declared = copying.declare(people(sa.MetaData()))
    with copying.engine.begin() as connection:
        twice = coalesced(declared, (Op.INSERT, "1", person(1)), (Op.INSERT, "", person(1)))
        savepoint = connection.begin_nested()
        with pytest.raises(IntegrityError):
            copying.path.apply(connection, declared, twice)
        savepoint.rollback()
        for start in (0, 1, 2):
            changes = coalesced(declared, *((Op.INSERT, str(n), person(n)) for n in range(start * 5, start * 5 + 5)))
            copying.path.apply(connection, declared, changes)
    assert len(copying.rows(declared)) == 15


def test_temporary_tables_are_limited(copying: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many shapes of rows, the connection keeps few temporary tables."""
    monkeypatch.setattr(staging, "STAGING_TABLES_MAX", 3)
    declared = copying.declare(everything(sa.MetaData()))
    with copying.engine.connect() as connection:
        for turn in range(2):
            for name, value in random_values(random.Random(turn)).items():
                if name != "strict":
                    with connection.begin():
                        copying.path.apply(connection, declared, puts(declared, {"id": 1, name: value}))
        with connection.begin():
            query = "SELECT count(*) FROM pg_class WHERE relname LIKE 'writebehind_%%' AND relkind = 'r'"
            assert connection.exec_driver_sql(query).scalar_one() <= 3


def test_copy_needs_a_transaction(copying: World) -> None:
    """Outside a transaction the temporary table would be empty before its rows are used."""
    declared = copying.declare(people(sa.MetaData()))
    with copying.engine.connect() as connection, pytest.raises(RuntimeError, match="transaction"):
        copying.path.apply(connection, declared, puts(declared, person(1)))
    options = {"isolation_level": "AUTOCOMMIT"}
    with copying.engine.execution_options(**options).begin() as connection, pytest.raises(RuntimeError):
        copying.path.apply(connection, declared, puts(declared, person(1)))


def test_errors_of_copy_look_like_sqlalchemys(copying: World) -> None:
    """What only the driver's cursor sees is raised as SQLAlchemy's own class, without values."""
    declared = copying.declare(people(sa.MetaData()))
    with pytest.raises(DBAPIError) as caught:
        copying.flush(declared, puts(declared, person(1, "secret\0")))
    assert classify(caught.value, committing=False) is Failure.POISON
    assert "secret" not in str(caught.value)
    with pytest.raises(UnicodeEncodeError) as refused:
        copying.flush(declared, puts(declared, person(1, "\ud800")))
    assert classify(refused.value, committing=False) is Failure.POISON


def test_a_lost_connection_is_invalidated(copying: World) -> None:
    """After the server ended the connection, the pool gives out a new one."""
    declared = copying.declare(people(sa.MetaData()))
    with copying.engine.connect() as connection:
        transaction = connection.begin()
        pid = connection.scalar(sa.select(sa.func.pg_backend_pid()))
        with copying.engine.begin() as other:
            other.execute(sa.select(sa.func.pg_terminate_backend(pid)))
        with pytest.raises(DBAPIError) as caught:
            copying.path.apply(connection, declared, puts(declared, person(1)))
        assert caught.value.connection_invalidated
        assert classify(caught.value, committing=False) is Failure.TRANSIENT
        assert classify(caught.value, committing=True) is Failure.UNKNOWN
        transaction.rollback()
    copying.flush(declared, puts(declared, person(1)))


def test_rows_that_a_trigger_swallows_halt(copying: World) -> None:
    """A trigger that drops rows silently is not taken for success."""
    declared = copying.declare(people(sa.MetaData()))
    with copying.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION drop_row() RETURNS trigger AS 'BEGIN RETURN NULL; END' LANGUAGE plpgsql"
        )
        connection.exec_driver_sql(
            "CREATE TRIGGER swallow BEFORE INSERT ON people FOR EACH ROW EXECUTE FUNCTION drop_row()"
        )
    with pytest.raises(ConfigurationError, match="0 of 1 rows"):
        copying.flush(declared, puts(declared, person(1)))


def test_folding_keys_are_poison_for_one_statement(copying: World) -> None:
    """Two keys of a batch that are one row in the database ask for smaller batches."""
    table = sa.Table(
        "names",
        sa.MetaData(),
        sa.Column("name", sa.String(20, collation="folding"), primary_key=True),
        sa.Column("count", sa.Integer),
    )
    with copying.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE COLLATION folding (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
        )
    declared = copying.declare(table)
    copying.flush(declared, puts(declared, {"name": "a", "count": 1}))
    patches: list[Mutation] = [(Op.PATCH, name, {"name": name, "count": 2}) for name in ("a", "A")]
    with pytest.raises(PoisonEntryError):
        copying.flush(declared, coalesced(declared, *patches))
    with pytest.raises(DBAPIError) as caught:
        copying.flush(declared, puts(declared, *({"name": name, "count": 2} for name in ("a", "A"))))
    assert classify(caught.value, committing=False) is Failure.POISON


def test_updates_of_a_large_table_use_its_index(copying: World) -> None:
    """Whatever the planner thinks of a temporary table, an update reads no whole table."""
    declared = copying.declare(people(sa.MetaData()))
    with copying.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO people SELECT n, n, 0 FROM generate_series(1, 200000) AS n")
    with copying.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE people")
    increments: list[Mutation] = [(Op.INCREMENT, str(n), {"id": n, "visits": 1}) for n in range(100, 200_001, 100)]
    query = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'people'"
    with copying.engine.begin() as connection:
        copying.path.apply(connection, declared, coalesced(declared, *increments))
        copying.path.delete(connection, declared, coalesced(declared, (Op.DELETE, "5", {"id": 5})))
        assert connection.exec_driver_sql(query).scalar_one() < 5_000
        settings = connection.exec_driver_sql("SHOW enable_hashjoin").scalar_one()
    assert settings == "on"


def test_paths_are_chosen_by_dialect_and_driver(database_url: str) -> None:
    """Each database gets its fastest path."""
    engine = engine_of(database_url)
    expected = {"sqlite": UpsertPath, "postgresql": CopyPath, "mysql": MySQLPath, "mariadb": MySQLPath}
    assert type(bulk_path(engine)) is expected[engine.dialect.name]
    engine.dispose()


def test_group_of_tables_in_foreign_key_order() -> None:
    """Parents come first, cycles and self-references end, and otherwise the given order stays."""
    metadata = sa.MetaData()

    def table(name: str, *parents: str) -> DeclaredTable:
        columns = [sa.Column(f"to_{parent}", sa.Integer, sa.ForeignKey(f"{parent}.id")) for parent in parents]
        return declare(sa.Table(name, metadata, sa.Column("id", sa.Integer, primary_key=True), *columns), "sqlite")

    tables = [
        table("line", "product", "bill"),
        table("bill", "customer", "bill"),
        table("note"),
        table("customer", "address"),
        table("address", "customer", "elsewhere"),
        table("product"),
    ]
    names = [declared.entity.name for declared in in_foreign_key_order(tables)]
    assert names == ["address", "customer", "bill", "product", "line", "note"]


def test_changes_of_several_tables_share_a_transaction(world: World) -> None:
    """What a group changed in several tables is committed together."""
    metadata = sa.MetaData()
    tables = {name: sa.Table(name, metadata, sa.Column("id", sa.Integer, primary_key=True)) for name in ("a", "b")}
    declared = {name: world.declare(table) for name, table in tables.items()}
    changes = Changes({name: lambda name=name: changes_for(declared[name]) for name in tables})  # type: ignore[misc]
    assert changes.merge([(Op.PUT, "a", "1", {"id": 1}), (Op.PUT, "b", "1", {"id": 1})], b"1-0")
    with world.engine.begin() as connection:
        for name, table in changes.tables.items():
            world.path.apply(connection, declared[name], table)
        connection.rollback()
    assert not any(world.rows(each) for each in declared.values())


def test_no_statement_names_a_value(world: World) -> None:
    """Values travel as parameters or in COPY, never in the text of a statement."""
    declared = world.declare(people(sa.MetaData()))
    texts: list[str] = []
    sa.event.listen(world.engine, "before_cursor_execute", lambda *args: texts.append(args[2]))
    world.flush(declared, puts(declared, person(1, "secret")))
    assert not [text for text in texts if re.search("secret", text)]
