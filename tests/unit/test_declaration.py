import enum
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from writebehind.engine.adapters.declaration import DeclaredTable, declare, on_column_reflect
from writebehind.engine.core.columns import Column, Kind
from writebehind.engine.core.payload import Op, decode, encode
from writebehind.engine.core.values import JsonText
from writebehind.engine.errors import ConfigurationError


class Base(DeclarativeBase):
    """The declarative base of these tests."""


class Account(Base):
    """A class that refers to itself."""

    __tablename__ = "accounts"
    __writebehind__ = {"partition_by": "id"}  # noqa: RUF012 -- as users write it

    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(sa.String(50), default="nobody")
    parent: Mapped[int | None] = mapped_column(sa.ForeignKey("accounts.id"))


class Color(enum.Enum):
    """Members with values of their own, and an alias."""

    RED = "red"
    BLUE = "blue"
    CRIMSON = "red"  # noqa: PIE796 -- an alias


def table(*columns: sa.Column[Any], name: str = "items", **options: Any) -> sa.Table:
    """Return a table with a key and these columns."""
    metadata = sa.MetaData()
    sa.Table("others", metadata, sa.Column("id", sa.Integer, primary_key=True), schema=options.get("schema"))
    return sa.Table(name, metadata, sa.Column("id", sa.Integer, primary_key=True), *columns, **options)


def column_of(kind: Any, dialect: str, **options: Any) -> Column:
    """Return what is known of a column of this type."""
    return declare(table(sa.Column("value", kind, **options)), dialect).plan.columns["value"]


def test_class() -> None:
    """A declarative class gives its table, its options and its references."""
    declared = declare(Account, "postgresql")
    assert isinstance(declared, DeclaredTable)
    assert declared.model is Account
    assert declared.table is Account.__table__
    assert declared.entity.name == "accounts"
    assert declared.entity.partition_by == "id"
    assert declared.foreign_keys == {"accounts"}
    assert [column.name for column in declared.entity.key] == ["id"]
    assert declared.plan.columns["id"].autoincrement
    assert declared.plan.columns["owner"].default == "nobody"


def test_table() -> None:
    """A table gives its schema-qualified name, and its own options unless told otherwise."""
    plain = table(
        sa.Column("other", sa.ForeignKey("shop.others.id"), primary_key=True),
        schema="shop",
        info={"writebehind": {"partition_by": "other"}},
    )
    declared = declare(plain, "postgresql")
    assert declared.model is None
    assert declared.entity.name == "shop.items"
    assert declared.foreign_keys == {"shop.others"}
    assert declared.entity.partition_by == "other"
    assert [column.name for column in declared.entity.key] == ["id", "other"]
    assert declare(plain, "postgresql", partition_by="id").entity.partition_by == "id"


def test_names_are_plain() -> None:
    """SQLAlchemy's own kind of str reaches no payload."""
    declared = declare(table(sa.Column("value", sa.Integer)), "sqlite")
    key_text, _, values, _ = declared.plan.full_record({"id": 1, "value": 2})
    assert decode(encode(Op.PUT, declared.plan.name, key_text, values)) == [(Op.PUT, "items", "1", values)]
    names = [declared.entity.name, *declared.plan.columns, *(column.name for column in declared.entity.columns)]
    assert {type(name) for name in names} == {str}


INT16, INT32, INT64 = 2**15, 2**31, 2**63


@pytest.mark.parametrize(
    ("kind", "dialect", "minimum", "maximum"),
    [
        (sa.SmallInteger(), "postgresql", -INT16, INT16 - 1),
        (sa.Integer(), "mariadb", -INT32, INT32 - 1),
        (sa.BigInteger(), "mysql", -INT64, INT64 - 1),
        (sa.Integer(), "sqlite", -INT64, INT64 - 1),
        (mysql.TINYINT(1), "mysql", -128, 127),
        (mysql.MEDIUMINT(unsigned=True), "mysql", 0, 2**24 - 1),
        (mysql.INTEGER(unsigned=True), "mysql", 0, 2**32 - 1),
        (mysql.BIGINT(unsigned=True), "mariadb", 0, 2**64 - 1),
        (sa.Integer().with_variant(sa.BigInteger(), "postgresql"), "postgresql", -INT64, INT64 - 1),
    ],
)
def test_integers(kind: Any, dialect: str, minimum: int, maximum: int) -> None:
    """An integer has the limits of the type that the database makes of it."""
    column = column_of(kind, dialect)
    assert column.kind is Kind.INTEGER
    assert (column.minimum, column.maximum) == (minimum, maximum)


@pytest.mark.parametrize(
    ("kind", "dialect", "bits"),
    [
        (sa.Float(), "sqlite", 64),
        (sa.Float(), "postgresql", 64),
        (sa.Float(), "mysql", 32),
        (sa.Float(24), "postgresql", 32),
        (sa.Float(24), "mariadb", 32),
        (sa.Float(53), "mariadb", 64),
        (sa.Double(), "mariadb", 64),
        (sa.Double(), "postgresql", 64),
        (sa.REAL(), "postgresql", 32),
        (sa.REAL(), "mysql", 64),
        (sa.REAL(), "sqlite", 64),
        (mysql.DOUBLE(asdecimal=False), "mysql", 64),
    ],
)
def test_floats(kind: Any, dialect: str, bits: int) -> None:
    """A float is single or double precision as the database makes it, and finite where it must be."""
    column = column_of(kind, dialect)
    assert (column.kind, column.float_bits) == (Kind.FLOAT, bits)
    assert column.finite_only == (dialect in {"mysql", "mariadb"})
    assert column.nan_allowed == (dialect == "postgresql")


@pytest.mark.parametrize(
    ("kind", "dialect", "precision", "scale", "digits"),
    [
        (sa.Numeric(12, 2), "postgresql", 12, 2, None),
        (sa.Numeric(12, 2), "sqlite", 12, 2, 15),
        (sa.Numeric(), "postgresql", None, None, None),
        (sa.Numeric(), "mariadb", 10, 0, None),
        (sa.Numeric(), "sqlite", None, 10, 15),
        (sa.Numeric(8), "postgresql", 8, 0, None),
        (sa.Numeric(8), "mysql", 8, 0, None),
        (sa.DECIMAL(8, 3), "mysql", 8, 3, None),
    ],
)
def test_numerics(kind: Any, dialect: str, precision: int | None, scale: int | None, digits: int | None) -> None:
    """A NUMERIC has the digits that the database gives it."""
    column = column_of(kind, dialect)
    assert column.kind is Kind.NUMERIC
    assert (column.precision, column.scale, column.significant_digits) == (precision, scale, digits)


@pytest.mark.parametrize(
    ("kind", "dialect", "expected"),
    [
        (sa.String(5), "mysql", {"kind": Kind.TEXT, "length": 5, "bytes_max": None, "blank_padded": False}),
        (sa.Text(), "mysql", {"kind": Kind.TEXT, "length": None, "bytes_max": 65535}),
        (sa.UnicodeText(), "postgresql", {"kind": Kind.TEXT, "bytes_max": None}),
        (mysql.TINYTEXT(), "mysql", {"bytes_max": 255}),
        (mysql.LONGTEXT(), "mariadb", {"bytes_max": 2**32 - 1}),
        (sa.CHAR(5), "postgresql", {"blank_padded": True}),
        (sa.CHAR(5), "sqlite", {"blank_padded": False}),
        (postgresql.CITEXT(), "postgresql", {"kind": Kind.TEXT}),
        (sa.Boolean(), "mysql", {"kind": Kind.BOOLEAN}),
        (sa.LargeBinary(), "mariadb", {"kind": Kind.BYTES, "length": 65535}),
        (sa.LargeBinary(), "postgresql", {"kind": Kind.BYTES, "length": None}),
        (postgresql.BYTEA(), "postgresql", {"kind": Kind.BYTES, "length": None}),
        (mysql.MEDIUMBLOB(), "mysql", {"length": 2**24 - 1}),
        (sa.BINARY(16), "mysql", {"length": 16, "exact_length": True}),
        (sa.VARBINARY(16), "mysql", {"length": 16, "exact_length": False}),
        (sa.Date(), "postgresql", {"kind": Kind.DATE, "earliest": None}),
        (sa.Date(), "mysql", {"earliest": date(1000, 1, 1), "latest": date.max}),
        (sa.Time(), "mysql", {"kind": Kind.TIME, "fraction_digits": 0}),
        (mysql.TIME(fsp=3), "mysql", {"fraction_digits": 3}),
        (sa.DateTime(), "sqlite", {"kind": Kind.DATETIME, "fraction_digits": 6}),
        (sa.DateTime(), "mariadb", {"fraction_digits": 0, "earliest": datetime(1000, 1, 1)}),  # noqa: DTZ001
        (mysql.DATETIME(fsp=6), "mysql", {"fraction_digits": 6}),
        (sa.TIMESTAMP(), "mysql", {"earliest": datetime(1970, 1, 2)}),  # noqa: DTZ001
        (sa.TIMESTAMP(), "postgresql", {"earliest": None}),
        (postgresql.TIMESTAMP(precision=3), "postgresql", {"fraction_digits": 3}),
        (sa.DateTime(timezone=True), "postgresql",
         {"kind": Kind.DATETIME_UTC, "earliest": datetime(1, 1, 2, tzinfo=UTC)}),
        (sa.DateTime(timezone=True), "sqlite", {"kind": Kind.DATETIME_UTC, "earliest": None}),
        (sa.Interval(), "postgresql", {"kind": Kind.INTERVAL, "earliest": None, "fraction_digits": 6}),
        (sa.Interval(second_precision=0), "postgresql", {"fraction_digits": 0}),
        (postgresql.INTERVAL(precision=3), "postgresql", {"kind": Kind.INTERVAL, "fraction_digits": 3}),
        (sa.Interval(), "mysql", {"fraction_digits": 0, "earliest": timedelta(days=-354285)}),
        (sa.JSON(), "postgresql", {"kind": Kind.JSON, "json_depth_max": 100}),
        (sa.JSON(), "mariadb", {"json_depth_max": 31}),
        (postgresql.JSONB(), "postgresql", {"kind": Kind.JSON}),
        (sa.Uuid(), "mysql", {"kind": Kind.UUID, "as_uuid": True}),
        (postgresql.UUID(as_uuid=False), "postgresql", {"kind": Kind.UUID, "as_uuid": False}),
        (sa.Enum("a", "b"), "sqlite", {"kind": Kind.ENUM, "labels": {"a": "a", "b": "b"}}),
        (postgresql.ENUM("a", name="letters"), "postgresql", {"labels": {"a": "a"}}),
        (mysql.ENUM("a"), "mysql", {"labels": {"a": "a"}}),
        (sa.Enum(Color), "sqlite", {"labels": {"RED": Color.RED, "BLUE": Color.BLUE}}),
        (sa.Enum(Color, values_callable=lambda kind: [member.value for member in kind]), "sqlite",
         {"labels": {"red": Color.RED, "blue": Color.BLUE}}),
    ],
)  # fmt: skip
def test_other_types(kind: Any, dialect: str, expected: dict[str, Any]) -> None:
    """Each type has its kind and the limits of its database."""
    column = column_of(kind, dialect)
    assert {name: getattr(column, name) for name in expected} == expected


class Reversed(sa.TypeDecorator[str]):
    """A type whose values only it can check."""

    impl = sa.String
    cache_ok = True


@pytest.mark.parametrize(
    ("kind", "dialect"),
    [
        (Reversed(), "sqlite"),
        (sa.PickleType(), "sqlite"),
        (sa.ARRAY(sa.Integer), "postgresql"),
        (postgresql.INET(), "postgresql"),
        (postgresql.HSTORE(), "postgresql"),
        (postgresql.INT4RANGE(), "postgresql"),
        (postgresql.INTERVAL(fields="YEAR TO MONTH"), "postgresql"),
        (mysql.SET("a"), "mysql"),
        (mysql.BIT(), "mysql"),
        (mysql.YEAR(), "mysql"),
        (mysql.DOUBLE(), "mysql"),
        (mysql.FLOAT(10, 2, asdecimal=False), "mysql"),
        (sa.Float(asdecimal=True), "postgresql"),
        (sa.Time(timezone=True), "postgresql"),
        (sa.Numeric(5, -2), "postgresql"),
        (sa.Enum(), "postgresql"),
        (sa.types.NullType(), "sqlite"),
    ],
)
def test_unsupported_types(kind: Any, dialect: str) -> None:
    """A type whose values would not come back is refused by table and column, with a remedy."""
    with pytest.raises(ConfigurationError, match=r"column items\.value ") as caught:
        column_of(kind, dialect)
    assert caught.value.hint


@pytest.mark.parametrize(
    "column",
    [
        sa.Column(":state", sa.Integer),
        sa.Column("value", sa.Integer, key="other"),
        sa.Column("value", sa.Integer, sa.Computed("id + 1")),
        sa.Column("value", sa.Integer, sa.Identity(always=True)),
        sa.Column("value", sa.Integer, onupdate=1),
        sa.Column("value", sa.Integer, server_onupdate=sa.FetchedValue()),
    ],
)
def test_unfit_columns(column: sa.Column[Any]) -> None:
    """A column that the database or SQLAlchemy changes on its own, or that Redis reserves, is refused."""
    with pytest.raises(ConfigurationError, match=r"column items\."):
        declare(table(column), "postgresql")


def test_unfit_tables() -> None:
    """What is no table, has no key, or has a name that Redis reserves is refused."""
    with pytest.raises(ConfigurationError, match="is no table"):
        declare(sa.select(sa.literal(1)), "sqlite")
    with pytest.raises(ConfigurationError, match="logs has no primary key"):
        declare(sa.Table("logs", sa.MetaData(), sa.Column("a", sa.Integer)), "sqlite")
    with pytest.raises(ConfigurationError, match="reserve"):
        declare(table(name="a:b"), "sqlite")
    with pytest.raises(ConfigurationError, match=r"items\.id is JSON"):
        declare(sa.Table("items", sa.MetaData(), sa.Column("id", sa.JSON, primary_key=True)), "sqlite")


@pytest.mark.parametrize(
    ("options", "default", "server_default"),
    [
        ({}, None, False),
        ({"default": 5}, 5, False),
        ({"default": lambda: 6}, 6, False),
        ({"default": sa.func.random()}, None, True),
        ({"server_default": "7"}, 7, False),
        ({"server_default": sa.text("'-7'::bigint")}, -7, False),
        ({"server_default": sa.text("((7))")}, 7, False),
        ({"server_default": sa.text("NULL")}, None, False),
        ({"server_default": sa.text("random()")}, None, True),
        ({"server_default": sa.FetchedValue()}, None, True),
        ({"default": 5, "server_default": sa.text("random()")}, 5, False),
    ],
)
def test_defaults(options: dict[str, Any], default: int | None, server_default: bool) -> None:  # noqa: FBT001
    """A default that can be told without the database is the writer's, any other the database's."""
    column = column_of(sa.Integer(), "postgresql", **options)
    assert (column.make_default() if column.has_default else None) == default
    assert column.server_default == server_default


def test_numeric_server_default() -> None:
    """A NUMERIC's server default is exact, and text ones stay the database's."""
    assert column_of(sa.Numeric(5, 2), "mysql", server_default="0.10").default == Decimal("0.10")
    assert column_of(sa.String(5), "mysql", server_default="7").server_default


@pytest.mark.parametrize(
    ("kind", "dialect", "numbered"),
    [
        (sa.Integer(), "sqlite", True),
        (sa.BigInteger(), "sqlite", False),
        (sa.BigInteger(), "postgresql", True),
        (sa.String(5), "postgresql", False),
    ],
)
def test_autoincrement(kind: Any, dialect: str, numbered: bool) -> None:  # noqa: FBT001
    """A key that the database numbers may be omitted from an insert."""
    declared = declare(sa.Table("logs", sa.MetaData(), sa.Column("id", kind, primary_key=True)), dialect)
    assert declared.entity.key[0].autoincrement == numbered
    assert not declared.entity.key[0].nullable


def test_reflected_doubles() -> None:
    """The listener makes reflected doubles return floats."""
    info: dict[str, Any] = {"name": "value", "type": mysql.DOUBLE()}
    on_column_reflect(None, table(), info)
    assert column_of(info["type"], "mysql").kind is Kind.FLOAT


def test_jsonb_floats() -> None:
    """JSONB gets the digits of a great float, as it would round 1e+23 to another integer."""
    convert = declare(table(sa.Column("value", postgresql.JSONB())), "postgresql").to_bind["value"]
    assert convert is not None
    assert convert(JsonText("[1e+23,1.5,1e-7,-2e+16]")) == [int(1e23), 1.5, 1e-7, -(2 * 10**16)]


def test_caveats() -> None:
    """A text key under a collation that may equate different texts is pointed out."""

    def caveats(dialect: str, kind: Any) -> tuple[str, ...]:
        return declare(sa.Table("t", sa.MetaData(), sa.Column("k", kind, primary_key=True)), dialect).caveats

    folding: list[tuple[str, Any]] = [
        ("mysql", sa.String(5)),
        ("sqlite", sa.String(collation="NOCASE")),
        ("postgresql", postgresql.CITEXT()),
    ]
    exact: list[tuple[str, Any]] = [
        ("mysql", sa.String(5, collation="utf8mb4_bin")),
        ("sqlite", sa.String()),
        ("postgresql", sa.Text()),
        ("mysql", sa.Integer()),
    ]
    for dialect, kind in folding:
        assert "t.k: keys that differ in case" in caveats(dialect, kind)[0]
    for dialect, kind in exact:
        assert not caveats(dialect, kind)
