import enum
import math
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql

from writebehind.engine.adapters.declaration import DeclaredTable, declare, on_column_reflect
from writebehind.engine.core.payload import Op, decode, encode
from writebehind.engine.errors import ValidationError


class Color(enum.Enum):
    """Members whose names and values differ."""

    RED = "r"
    BLUE = "b"


def naive(*parts: int) -> datetime:
    """Return a datetime without time zone."""
    return datetime(*parts)  # type: ignore[arg-type]  # noqa: DTZ001


def zoned(*parts: int) -> datetime:
    """Return a datetime in UTC."""
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


def nested(levels: int) -> Any:
    """Return a JSON document of so many lists inside each other."""
    document: Any = "end"
    for _ in range(levels):
        document = [document]
    return document


def micro(value: Any) -> Any:
    """Return the type with microseconds in every database."""
    return value.with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


ALL = ("sqlite", "postgresql", "mysql", "mariadb")
MYSQL = ("mysql", "mariadb")
SAFE = [naive(1000, 1, 1), naive(9999, 12, 31, 23, 59, 59), naive(1969, 12, 31, 23, 59, 59), naive(2024, 2, 29, 12)]
FRACTION = naive(2024, 2, 29, 12, 0, 0, 123456)

# Type, the databases it exists in, and values that come back as they are.
KEPT: list[tuple[str, Any, tuple[str, ...], list[Any]]] = [
    ("integer", sa.Integer(), ALL, [0, 2**31 - 1, -(2**31)]),
    ("integer64", sa.Integer(), ("sqlite",), [2**63 - 1, -(2**63)]),
    ("small", sa.SmallInteger(), ALL, [2**15 - 1, -(2**15)]),
    ("big", sa.BigInteger(), ALL, [2**63 - 1, -(2**63)]),
    ("unsigned", mysql.BIGINT(unsigned=True), MYSQL, [0, 2**64 - 1]),
    ("medium", mysql.MEDIUMINT(), MYSQL, [-(2**23), 2**23 - 1]),
    ("tiny", mysql.TINYINT(unsigned=True), MYSQL, [0, 255]),
    ("double", sa.Double(), ALL, [0.1, 1 / 3, -0.0, 1e300, 5e-324, 1.7976931348623157e308, 3]),
    ("infinite", sa.Double(), ("sqlite", "postgresql"), [math.inf, -math.inf]),
    ("nan", sa.Double(), ("postgresql",), [math.nan]),
    ("float", sa.Float(), ALL, [0.1, 333333.0, -1.5e30, 1e-30]),
    ("real", sa.REAL(), ALL, [0.1, 333333.0, 1e30]),
    ("numeric", sa.Numeric(12, 2), ALL, [Decimal("0.01"), Decimal("-9999999999.99"), Decimal("1.1"), 7, Decimal("-0")]),
    ("digits", sa.Numeric(30, 6), ALL, [Decimal("123456789.012345"), Decimal("-0.000001"), Decimal("1E+14")]),
    ("wide", sa.Numeric(38, 10), ("postgresql", *MYSQL), [Decimal("9" * 28 + ".0123456789")]),
    ("unlimited", sa.Numeric(), ("postgresql",), [Decimal("1E+500"), Decimal("1E-500"), Decimal("1.500")]),
    ("bare", sa.Numeric(), ("sqlite",), [Decimal("1.0000000001"), Decimal("12345.6789012345")]),
    ("whole", sa.Numeric(), MYSQL, [Decimal(9999999999)]),
    ("as_float", sa.Numeric(12, 4, asdecimal=False), ALL, [0.1, 12345678.1234, -7]),
    ("string", sa.String(5), ALL, ["", "abcde", "é\U0001f600\\N", " a ", "\\"]),
    ("text", sa.Text(), ALL, ["", "a" * 65535, "\U0001f600\n\t\x01\x7f"]),
    ("char", sa.CHAR(5), ALL, ["", "ab", " ab", "abcde"]),
    ("boolean", sa.Boolean(), ALL, [True, False]),
    ("date", sa.Date(), ALL, [date(1000, 1, 1), date.max, date(2024, 2, 29)]),
    ("early", sa.Date(), ("sqlite", "postgresql"), [date.min]),
    ("time", sa.Time(), ALL, [time(0), time(23, 59, 59)]),
    ("microtime", sa.Time().with_variant(mysql.TIME(fsp=6), *MYSQL), ALL, [time(23, 59, 59, 999999)]),
    ("millitime", mysql.TIME(fsp=3), MYSQL, [time(23, 59, 59, 999000)]),
    ("datetime", sa.DateTime(), ALL, SAFE),
    ("micro", micro(sa.DateTime()), ALL, [*SAFE, FRACTION, naive(9999, 12, 31, 23, 59, 59, 999999)]),
    ("earliest", sa.DateTime(), ("sqlite", "postgresql"), [naive(1, 1, 1), FRACTION]),
    ("milli", postgresql.TIMESTAMP(precision=3), ("postgresql",), [naive(2024, 1, 1, 1, 1, 1, 999000)]),
    ("stamp", sa.TIMESTAMP(), ALL, [naive(1970, 1, 2), naive(2038, 1, 17), naive(2024, 2, 29, 12)]),
    ("instant", sa.DateTime(timezone=True), ALL, [zoned(1000, 1, 1), zoned(9999, 12, 30), zoned(2024, 10, 27, 0, 30)]),
    ("edge", sa.DateTime(timezone=True), ("postgresql",), [zoned(1, 1, 2), zoned(9999, 12, 30, 23, 59, 59, 999999)]),
    ("interval", sa.Interval(), ALL, [timedelta(0), timedelta(seconds=-1), timedelta(days=10000, seconds=5)]),
    ("fine", sa.Interval(), ("sqlite", "postgresql"), [timedelta(microseconds=-1), timedelta(days=-700000)]),
    ("longest", sa.Interval(), ("postgresql",), [timedelta.max, timedelta.min]),
    ("binary", sa.LargeBinary(), ALL, [b"", b"\x00\xff\\N", bytes(range(256)) * 255]),
    ("padded", sa.BINARY(3), MYSQL, [b"a\x00\x00", b"abc"]),
    ("json", sa.JSON(), ALL, [{"b": [1, 2.5, None, True], "a": "ä\\"}, [], "text", 5, 0.1, 1e300, True, nested(31)]),
    ("jsonb", postgresql.JSONB(), ("postgresql",), [1e23, [-1e22, 1e-7, 10**40, 2.0], nested(100), {"": {}}]),
    ("great", sa.JSON(), ("postgresql",), [10**40, [10**40]]),
    ("uuid", sa.Uuid(), ALL, [UUID(int=0), UUID(int=2**128 - 1)]),
    ("uuidtext", sa.Uuid(as_uuid=False), ALL, ["12345678-1234-5678-1234-56781234567a"]),
    ("enum", sa.Enum("a b", "%", "ä", name="letters"), ALL, ["a b", "%", "ä"]),
    ("backslash", sa.Enum("\\N", "\\", name="signs"), ("sqlite", "postgresql"), ["\\N", "\\"]),
    ("members", sa.Enum(Color, name="colors"), ALL, [Color.RED, Color.BLUE]),
    (
        "persisted",
        sa.Enum(Color, name="inks", values_callable=lambda kind: [member.value for member in kind]),
        ALL,
        [Color.RED, Color.BLUE],
    ),
]

# Values that are refused because the database itself refuses or changes them.
REFUSED: list[tuple[str, Any, tuple[str, ...], Any]] = [
    ("integer", sa.Integer(), ("postgresql", *MYSQL), 2**31),
    ("small", sa.SmallInteger(), ("postgresql", *MYSQL), 2**15),
    ("float", sa.Float(), MYSQL, 1 / 3),
    ("float_range", sa.Float(), MYSQL, 1e300),
    ("real", sa.REAL(), ("postgresql",), 1 / 3),
    ("infinity", sa.Double(), MYSQL, math.inf),
    ("nan", sa.Double(), ("sqlite", *MYSQL), math.nan),
    ("scale", sa.Numeric(12, 2), ALL, Decimal("0.001")),
    ("precision", sa.Numeric(4, 2), ("postgresql", *MYSQL), Decimal(100)),
    ("digits", sa.Numeric(30, 2), ("sqlite",), Decimal("12345678901234567.89")),
    ("length", sa.String(3), ("postgresql", *MYSQL), "abcd"),
    ("nul", sa.String(3), ("postgresql",), "\0"),
    ("surrogate", sa.String(3), ALL, "\ud800"),
    ("text", sa.Text(), MYSQL, "ä" * 40000),
    ("char", sa.CHAR(5), MYSQL, "ab "),
    ("time", sa.Time(), MYSQL, time(1, microsecond=1)),
    ("datetime", sa.DateTime(), MYSQL, FRACTION),
    ("milli", postgresql.TIMESTAMP(precision=3), ("postgresql",), FRACTION),
    ("stamp", sa.TIMESTAMP(), MYSQL, naive(1969, 12, 31)),
    ("interval", sa.Interval(), ("sqlite", *MYSQL), timedelta.max),
    ("interval_fraction", sa.Interval(), MYSQL, timedelta(microseconds=1)),
    ("blob", sa.LargeBinary(), MYSQL, bytes(70000)),
    ("binary", sa.BINARY(3), MYSQL, b"a"),
    ("json_integer", sa.JSON(), ("sqlite",), 10**40),
    ("json_depth", sa.JSON(), MYSQL, nested(32)),
    ("json_nul", postgresql.JSONB(), ("postgresql",), "\0"),
]


@pytest.fixture
def database(database_url: str) -> Iterator[sa.Engine]:
    """An engine whose PostgreSQL sessions are far from UTC."""
    engine = sa.create_engine(database_url)

    @sa.event.listens_for(engine, "connect")
    def set_time_zone(connection: Any, _: Any) -> None:
        if engine.dialect.name == "postgresql":
            connection.autocommit = True
            connection.execute("SET TIME ZONE 'Pacific/Kiritimati'")
            connection.autocommit = False

    yield engine
    engine.dispose()


def same(first: Any, second: Any) -> bool:
    """Tell whether two values are equal, or both NaN."""
    return bool(first == second) or (isinstance(first, float) and math.isnan(first) and math.isnan(second))


def created(database: sa.Engine, name: str, kind: Any) -> DeclaredTable:
    """Create a table with one column of the type, and declare it."""
    table = sa.Table(
        f"t_{name}",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("value", kind),
    )
    table.metadata.create_all(database)
    return declare(table, database.dialect.name)


def stored(database: sa.Engine, declared: DeclaredTable, wires: list[Any]) -> list[Any]:
    """Write wire values as a flusher does and read them as a loader does."""
    to_bind, from_row = declared.to_bind["value"], declared.from_row["value"]
    bound = [wire if wire is None or to_bind is None else to_bind(wire) for wire in wires]
    if isinstance(declared.table.c.value.type, sa.JSON):
        bound = [sa.null() if value is None else value for value in bound]
    with database.begin() as connection:
        connection.execute(
            sa.insert(declared.table), [{"id": number, "value": value} for number, value in enumerate(bound)]
        )
    with database.connect() as connection:
        rows = connection.execute(sa.select(declared.table.c.value).order_by(declared.table.c.id)).scalars().all()
    return [row if row is None or from_row is None else from_row(row) for row in rows]


def test_kept_values(database: sa.Engine) -> None:
    """What is accepted comes back from the database, from payload and from text, with its type."""
    for name, kind, dialects, values in KEPT:
        if database.dialect.name not in dialects:
            continue
        declared = created(database, name, kind)
        codec = declared.plan.codecs["value"]
        wires = [codec.accept(value) for value in [*values, None]]
        carried = [decode(encode(Op.PUT, "t", "1", {"value": wire}))[0][3]["value"] for wire in wires]
        for value, wire, row in zip([*values, None], wires, stored(database, declared, carried), strict=True):
            user = codec.to_user(wire)
            text = codec.encode_text(wire)
            read = codec.decode_text(text if isinstance(text, bytes) else text.encode())
            assert same(user, value), (name, value)
            assert same(row, user), (name, value)
            assert same(read, user), (name, value)
            if name != "jsonb":  # which tells 1e23 from its digits as little as 2.0 from 2
                assert type(row) is type(read) is type(user), (name, value)
                assert same(codec.accept(row), wire), (name, value)


def test_refused_values(database: sa.Engine) -> None:
    """What is refused is refused for a reason: the database refuses or changes it too."""
    for name, kind, dialects, value in REFUSED:
        if database.dialect.name not in dialects:
            continue
        declared = created(database, f"refused_{name}", kind)
        with pytest.raises(ValidationError, match=rf"t_refused_{name}\.value "):
            declared.plan.codecs["value"].accept(value)
        try:
            with database.begin() as connection:
                connection.execute(sa.insert(declared.table).values(id=1, value=value))
            with database.connect() as connection:
                row = connection.execute(sa.select(declared.table.c.value)).scalar_one()
        except (sa.exc.SQLAlchemyError, UnicodeEncodeError):
            continue
        assert row != value, name


def test_records_survive_reflection(database: sa.Engine) -> None:
    """A reflected table takes and returns the values of the declared one."""
    table = sa.Table(
        "reflected",
        sa.MetaData(),
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(20), nullable=False),
        sa.Column("price", sa.Numeric(12, 2), server_default="0"),
        sa.Column("ratio", sa.Double),
        sa.Column("made", micro(sa.DateTime())),
    )
    table.metadata.create_all(database)
    metadata = sa.MetaData()
    sa.event.listen(metadata, "column_reflect", on_column_reflect)
    declared = declare(sa.Table("reflected", metadata, autoload_with=database), database.dialect.name)
    record = {"id": 2**40, "name": "Ä", "price": Decimal("1.50"), "ratio": 1 / 3, "made": FRACTION}
    _, _, values, fields = declared.plan.full_record(record)
    with database.begin() as connection:
        connection.execute(
            sa.insert(declared.table),
            [{name: bind(values[name]) if bind else values[name] for name, bind in declared.to_bind.items()}],
        )
        (row,) = connection.execute(sa.select(declared.table)).mappings().all()
    read = {name: load(row[name]) if load else row[name] for name, load in declared.from_row.items()}
    assert read == record
    hashed = dict(zip((name.encode() for name in fields[::2]), (text.encode() for text in fields[1::2]), strict=True))
    assert declared.plan.decode_hash(hashed) == record
    assert declared.plan.full_record({"id": 1, "name": "a"})[2]["price"] == Decimal("0.00")
