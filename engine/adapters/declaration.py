"""From a SQLAlchemy table or class to an ``Entity``: which limits its database really puts on each column.

Each fact below was seen on the database itself (``tests/integration/test_types.py``) or is documented by it.
A table that cannot be mirrored faithfully is refused here, at start, with the remedy.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Context, Decimal
from struct import pack
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.sql import sqltypes
from sqlalchemy.types import TypeEngine

from writebehind.engine.config import Backpressure, UnknownColumns, WritePolicy, policy_of
from writebehind.engine.core.columns import NO_DEFAULT, Column, Entity, Kind
from writebehind.engine.core.records import RecordPlan
from writebehind.engine.errors import ConfigurationError

__all__ = ["DeclaredTable", "declare", "on_column_reflect"]

Converter = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeclaredTable:
    """A table that the engine writes to.

    Attributes:
        entity: what the core knows of it.
        plan: how its records are written and read.
        table: the SQLAlchemy table.
        model: the class it was declared by, or None.
        foreign_keys: names of the tables it refers to, itself included where it does.
        to_bind: by column, what turns a wire value into SQLAlchemy's bind value; None: nothing to do.
            Never called with None.
        from_row: by column, what turns SQLAlchemy's result value into a user value, likewise.
        caveats: what the operator should know about the table.
        backpressure: what becomes of its writes where a limit is reached; None: what the engine says.
        policy: when its writes return, where they do not say so themselves.
        unknown_columns: what a flusher does with writes of columns that are not declared here.
    """

    entity: Entity
    plan: RecordPlan
    table: sa.Table
    model: type | None
    foreign_keys: frozenset[str]
    to_bind: Mapping[str, Converter | None]
    from_row: Mapping[str, Converter | None]
    caveats: tuple[str, ...] = ()
    backpressure: Backpressure | None = None
    policy: WritePolicy = WritePolicy.WRITE_BEHIND
    unknown_columns: UnknownColumns = UnknownColumns.HALT


_MYSQL: Final = frozenset({"mysql", "mariadb"})
_INTEGER_BITS: Final = ((mysql.TINYINT, 8), (mysql.MEDIUMINT, 24), (sa.SmallInteger, 16), (sa.BigInteger, 64))
_MYSQL_BYTES: Final = (
    ((mysql.TINYTEXT, mysql.TINYBLOB), 2**8 - 1),
    ((mysql.MEDIUMTEXT, mysql.MEDIUMBLOB), 2**24 - 1),
    ((mysql.LONGTEXT, mysql.LONGBLOB), 2**32 - 1),
    ((sa.Text, sa.LargeBinary), 2**16 - 1),
)
_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 -- limits of naive columns; so are the next
_FIRST_YEAR: Final = datetime(1000, 1, 1)  # noqa: DTZ001 -- the documented range of MySQL and MariaDB
_FIRST: Final = datetime.min  # noqa: DTZ901
_LAST: Final = datetime.max  # noqa: DTZ901
_SINGLE_BITS: Final = 24
_SINGLE_MAX: Final = 3.4e38
_DAY: Final = timedelta(days=1)
_NUMBER: Final = re.compile(r"[('\s]*(-?\d+(?:\.\d+)?)[)'\s]*(?:::[\w\s(),]+)?")
_UNLIMITED: Final = Context(prec=1000)


class _Unsupported(Exception):
    """What is wrong with a column, and the remedy."""


def declare(table_or_class: Any, dialect_name: str, *, partition_by: str | None = None) -> DeclaredTable:
    """Declare a table.

    Args:
        table_or_class: a ``sqlalchemy.Table`` or a declarative class.
        dialect_name: ``engine.dialect.name`` of the database that it lies in.
        partition_by: the column whose value alone chooses the partition; else what
            ``Table.info["writebehind"]`` or the class attribute ``__writebehind__`` says, as for ``backpressure``,
            ``policy`` and ``unknown_columns``.

    Raises:
        ConfigurationError: the table cannot be mirrored faithfully; the message names table, column and remedy.
    """
    model = table_or_class if isinstance(table_or_class, type) else None
    table = getattr(table_or_class, "__table__", table_or_class)
    if not isinstance(table, sa.Table):
        raise ConfigurationError(
            f"{getattr(table_or_class, '__name__', type(table_or_class).__name__)} is no table",
            "pass sqlalchemy.Table objects or declarative classes that are mapped to one table",
        )
    name = str.__str__(table.fullname)  # not SQLAlchemy's own kind of str, which no payload carries
    if re.search(r"[:{}\s\x00-\x1f]", name):
        raise ConfigurationError(f"table {name!r} has a character that Redis keys reserve", "rename it")
    columns = {str.__str__(column.name): _column(table, column, dialect_name) for column in table.columns}
    options = {**table.info.get("writebehind", {}), **getattr(model, "__writebehind__", {})}
    entity = Entity(
        name,
        tuple(columns.values()),
        tuple(columns[column.name] for column in table.primary_key.columns),
        partition_by if partition_by is not None else options.get("partition_by"),
    )
    return DeclaredTable(
        entity=entity,
        plan=RecordPlan(entity),
        table=table,
        model=model,
        foreign_keys=frozenset(str.__str__(key.target_fullname.rpartition(".")[0]) for key in table.foreign_keys),
        to_bind={
            name: _to_bind(column, _type(table.c[name], dialect_name), dialect_name) for name, column in columns.items()
        },
        from_row={name: _from_row(column, dialect_name) for name, column in columns.items()},
        caveats=tuple(_caveats(table, entity, dialect_name)),
        backpressure=policy_of(Backpressure, options["backpressure"], "backpressure", f"table {name}")
        if "backpressure" in options
        else None,
        policy=policy_of(WritePolicy, options.get("policy", WritePolicy.WRITE_BEHIND), "policy", f"table {name}"),
        unknown_columns=policy_of(
            UnknownColumns, options.get("unknown_columns", UnknownColumns.HALT), "unknown_columns", f"table {name}"
        ),
    )


def on_column_reflect(_inspector: Any, _table: sa.Table, column_info: dict[str, Any]) -> None:
    """Correct reflected types; use as listener of SQLAlchemy's ``column_reflect`` event.

    MySQL's DOUBLE and REAL are reflected as types that return Decimals of ten digits after the point.
    """
    if isinstance(column_info["type"], sa.Float):
        column_info["type"].asdecimal = False


def _column(table: sa.Table, column: sa.Column[Any], dialect: str) -> Column:
    try:
        _refuse_unfit(column)
        kind, limits = _limits(_type(column, dialect), dialect)
    except _Unsupported as unsupported:
        problem, remedy = unsupported.args
        raise ConfigurationError(f"column {table.fullname}.{column.name} {problem}", remedy) from None
    default, server_default = _default(column, kind)
    return Column(
        name=str.__str__(column.name),
        kind=kind,
        nullable=bool(column.nullable) and not column.primary_key,
        primary_key=column.primary_key,
        default=default,
        server_default=server_default,
        autoincrement=_numbered(table, column, dialect),
        **limits,
    )


def _refuse_unfit(column: sa.Column[Any]) -> None:
    if column.name.startswith(":"):
        raise _Unsupported("begins with ':', which the engine's own fields do", "rename it")
    if column.key != column.name:
        raise _Unsupported(f"is called {column.key} in Python", "remove key=: writes name columns as SQL does")
    if column.computed is not None or (column.identity is not None and column.identity.always):
        raise _Unsupported("is always generated by the database", "make it an ordinary column, or BY DEFAULT")
    if column.onupdate is not None or column.server_onupdate is not None:
        raise _Unsupported("changes by itself on update, unseen by Redis", "remove onupdate and write it yourself")


def _default(column: sa.Column[Any], kind: Kind) -> tuple[Any, bool]:
    """Return the client's default, and whether only the database knows the default."""
    default = column.default
    if isinstance(default, sa.ColumnDefault) and (default.is_scalar or default.is_callable):
        argument = default.arg
        return (argument if default.is_scalar else lambda: argument(None)), False
    if default is not None:
        return NO_DEFAULT, True
    server = column.server_default
    text = str(getattr(getattr(server, "arg", None), "text", getattr(server, "arg", "")))
    if server is None or isinstance(server, sa.Identity) or text.upper() == "NULL":
        return NO_DEFAULT, False
    number = _NUMBER.fullmatch(text)
    if number and kind is Kind.INTEGER and number[1].lstrip("-").isdigit():
        return int(number[1]), False
    if number and kind in {Kind.FLOAT, Kind.NUMERIC}:
        return (float if kind is Kind.FLOAT else Decimal)(number[1]), False
    return NO_DEFAULT, True


def _numbered(table: sa.Table, column: sa.Column[Any], dialect: str) -> bool:
    if table.autoincrement_column is not column:
        return False
    # Only INTEGER itself is another name of SQLite's row number.
    return dialect != "sqlite" or not isinstance(column.type, sa.BigInteger | sa.SmallInteger)


def _type(column: sa.Column[Any], dialect: str) -> TypeEngine[Any]:
    """Return the column's type, or its variant for the dialect."""
    kind: TypeEngine[Any] = column.type
    return kind._variant_mapping.get(dialect, kind)  # noqa: SLF001 -- dialect_impl() would lose Interval


def _limits(kind: TypeEngine[Any], dialect: str) -> tuple[Kind, dict[str, Any]]:
    """Return what values a type holds, and its limits."""
    if isinstance(kind, sa.TypeDecorator) and not isinstance(kind, sa.Interval):
        raise _Unsupported(
            f"has the TypeDecorator {type(kind).__name__}, whose values cannot be checked",
            "use the type that it decorates, and convert in the application",
        )
    for types, limits in _LIMITS:
        if isinstance(kind, types):
            return limits(kind, dialect)
    supported = (
        "Boolean, Integer, Float, Numeric, Enum, String, DateTime, Date, Time, Interval, LargeBinary, JSON, Uuid"
    )
    raise _Unsupported(f"has the unsupported type {type(kind).__name__}", f"use one of {supported}")


def _integer(kind: TypeEngine[Any], dialect: str) -> tuple[Kind, dict[str, Any]]:
    bits = 64 if dialect == "sqlite" else next((bits for types, bits in _INTEGER_BITS if isinstance(kind, types)), 32)
    if getattr(kind, "unsigned", False):
        return Kind.INTEGER, {"minimum": 0, "maximum": 2**bits - 1}
    return Kind.INTEGER, {"minimum": -(2 ** (bits - 1)), "maximum": 2 ** (bits - 1) - 1}


def _float(kind: Any, dialect: str) -> tuple[Kind, dict[str, Any]]:
    if kind.asdecimal:
        raise _Unsupported("is a float that returns rounded Decimals", "give it asdecimal=False, or use Numeric")
    if getattr(kind, "scale", None) is not None:
        raise _Unsupported("is a float that rounds to a scale", "use Numeric, or leave precision and scale out")
    limits: dict[str, Any] = {"finite_only": dialect in _MYSQL, "nan_allowed": dialect == "postgresql"}
    if getattr(kind, "unsigned", False):
        limits["minimum"] = 0
    narrow = kind.precision is not None and kind.precision <= _SINGLE_BITS
    if dialect in _MYSQL and not isinstance(kind, sa.REAL | sa.Double) and (narrow or kind.precision is None):
        limits["float_bits"] = 32
    if dialect == "postgresql" and not isinstance(kind, sa.Double) and (narrow or isinstance(kind, sa.REAL)):
        limits["float_bits"] = 32
    return Kind.FLOAT, limits


def _numeric(kind: Any, dialect: str) -> tuple[Kind, dict[str, Any]]:
    precision, scale = kind.precision, kind.scale
    if dialect == "sqlite":
        # SQLite stores doubles, and SQLAlchemy reads them with so many digits after the point.
        scale = kind._effective_decimal_return_scale if scale is None else scale  # noqa: SLF001
    elif dialect in _MYSQL:
        precision = 10 if precision is None else precision
        scale = 0 if scale is None else scale
    elif precision is not None:
        scale = 0 if scale is None else scale
    if scale is not None and scale < 0:
        raise _Unsupported("has a negative scale", "use scale 0")
    limits = {"precision": precision, "scale": scale, "as_decimal": kind.asdecimal}
    if dialect == "sqlite":
        limits["significant_digits"] = 15
    if getattr(kind, "unsigned", False):
        limits["minimum"] = 0
    return Kind.NUMERIC, limits


def _text(kind: Any, dialect: str) -> tuple[Kind, dict[str, Any]]:
    if isinstance(kind, mysql.SET):
        raise _Unsupported("is a SET", "use JSON, or a table of its own")
    bytes_max = None
    if dialect in _MYSQL and kind.length is None:
        bytes_max = next((size for types, size in _MYSQL_BYTES if isinstance(kind, types)), None)
    padded = dialect != "sqlite" and isinstance(kind, sa.CHAR | sa.NCHAR)
    return Kind.TEXT, {"length": kind.length, "bytes_max": bytes_max, "blank_padded": padded}


def _bytes(kind: Any, dialect: str) -> tuple[Kind, dict[str, Any]]:
    length = kind.length
    if dialect in _MYSQL and length is None:
        length = next((size for types, size in _MYSQL_BYTES if isinstance(kind, types)), 1)
    return Kind.BYTES, {"length": length, "exact_length": dialect in _MYSQL and isinstance(kind, sa.BINARY)}


def _fraction_digits(kind: Any, dialect: str) -> int:
    if dialect in _MYSQL:
        return getattr(kind, "fsp", None) or 0
    precision = getattr(kind, "precision", None) if dialect == "postgresql" else None
    return 6 if precision is None else int(precision)


def _date(_: Any, dialect: str) -> tuple[Kind, dict[str, Any]]:
    return Kind.DATE, {"earliest": _FIRST_YEAR.date(), "latest": date.max} if dialect in _MYSQL else {}


def _time(kind: Any, dialect: str) -> tuple[Kind, dict[str, Any]]:
    if kind.timezone and dialect == "postgresql":
        raise _Unsupported("is a time with time zone, which means little without a date", "use Time or DateTime")
    return Kind.TIME, {"fraction_digits": _fraction_digits(kind, dialect)}


def _datetime(kind: Any, dialect: str) -> tuple[Kind, dict[str, Any]]:
    limits: dict[str, Any] = {"fraction_digits": _fraction_digits(kind, dialect)}
    if dialect in _MYSQL and isinstance(kind, sa.TIMESTAMP):
        # 1970-01-01 00:00:01 to 2038-01-19 03:14:07 in UTC; the session's time zone moves it by up to a day.
        limits |= {"earliest": _EPOCH + _DAY, "latest": _EPOCH + timedelta(seconds=2**31) - _DAY}
    elif dialect in _MYSQL:
        limits |= {"earliest": _FIRST_YEAR, "latest": _LAST}
    elif dialect == "postgresql" and kind.timezone:
        # Drivers return instants in the session's time zone, where the outermost ones would leave Python's range.
        limits |= {"earliest": _FIRST + _DAY, "latest": _LAST - _DAY}
    if not kind.timezone:
        return Kind.DATETIME, limits
    zoned: dict[str, Any] = {
        name: limits[name].replace(tzinfo=UTC) for name in ("earliest", "latest") if name in limits
    }
    return Kind.DATETIME_UTC, limits | zoned


def _interval(kind: Any, dialect: str) -> tuple[Kind, dict[str, Any]]:
    if getattr(kind, "fields", None):
        raise _Unsupported(f"keeps {kind.fields} only of an interval", "use Interval without fields")
    if dialect == "postgresql" and getattr(kind, "native", True):
        digits = getattr(kind, "second_precision", None) if isinstance(kind, sa.Interval) else kind.precision
        return Kind.INTERVAL, {"fraction_digits": 6 if digits is None else digits}
    # SQLAlchemy stores the interval as the moment that lies so long after 1970.
    first = _FIRST_YEAR if dialect in _MYSQL else _FIRST
    digits = 0 if dialect in _MYSQL else 6
    return Kind.INTERVAL, {"fraction_digits": digits, "earliest": first - _EPOCH, "latest": _LAST - _EPOCH}


def _json(_: Any, dialect: str) -> tuple[Kind, dict[str, Any]]:
    if dialect == "sqlite":  # a lone number becomes a REAL beyond 64 bits
        return Kind.JSON, {"minimum": -(2**63), "maximum": 2**63 - 1}
    if dialect in _MYSQL:  # MySQL keeps greater integers as doubles; MariaDB's check allows 31 levels
        return Kind.JSON, {"minimum": -(2**63), "maximum": 2**64 - 1, "json_depth_max": 31}
    return Kind.JSON, {}


def _enum(kind: Any, _: str) -> tuple[Kind, dict[str, Any]]:
    if not kind.enums:
        raise _Unsupported("is an Enum without members", "name them")
    return Kind.ENUM, {"labels": {label: kind._object_lookup[label] for label in kind.enums}}  # noqa: SLF001


_LIMITS: Final[tuple[tuple[type | tuple[type, ...], Callable[[Any, str], tuple[Kind, dict[str, Any]]]], ...]] = (
    (sa.Boolean, lambda *_: (Kind.BOOLEAN, {})),
    (sa.Integer, _integer),
    (sa.Float, _float),
    (sa.Numeric, _numeric),
    (sa.Enum, _enum),
    (sa.String, _text),
    (sa.DateTime, _datetime),
    (sa.Date, _date),
    (sa.Time, _time),
    ((sa.Interval, postgresql.INTERVAL), _interval),
    (sqltypes._Binary, _bytes),  # noqa: SLF001 -- the one name for all of them
    (sa.JSON, _json),
    (sa.Uuid, lambda kind, _: (Kind.UUID, {"as_uuid": kind.as_uuid})),
)


def _to_bind(column: Column, kind: TypeEngine[Any], dialect: str) -> Converter | None:
    if column.kind is Kind.JSON:
        return _load_jsonb if isinstance(kind, postgresql.JSONB) else json.loads
    if column.kind is Kind.DATETIME_UTC and dialect != "postgresql":
        return lambda wire: wire.replace(tzinfo=None)
    if column.kind is Kind.UUID and not column.as_uuid:
        return str
    return None


def _load_jsonb(text: str) -> Any:
    # JSONB writes 1e+23 out as the integer 10^23, which differs from the float: give it the float's own digits.
    return json.loads(text, parse_float=lambda number: int(float(number)) if "e+" in number else float(number))


def _from_row(column: Column, dialect: str) -> Converter | None:  # noqa: PLR0911 -- one for each kind
    if column.kind is Kind.DATETIME_UTC:
        zoned = dialect == "postgresql"
        return (lambda value: value.astimezone(UTC)) if zoned else (lambda value: value.replace(tzinfo=UTC))
    if column.kind is Kind.NUMERIC and not column.as_decimal:
        return float  # SQLite returns a whole number as int
    if column.kind is Kind.NUMERIC and column.scale is not None:
        step = Decimal((0, (1,), -column.scale))
        digits = _UNLIMITED if column.significant_digits is None else Context(prec=column.significant_digits)
        return lambda value: _UNLIMITED.quantize(digits.plus(value), step)
    if column.kind is Kind.TEXT and column.blank_padded:
        return lambda value: value.rstrip(" ")
    if column.kind is Kind.UUID and not column.as_uuid:
        return str.lower
    if column.kind is Kind.FLOAT and column.single_precision:
        return _shortest
    return None


def _shortest(value: float) -> float:
    """Return the six-digit number that a driver widened, as asyncpg does to 0.10000000149011612."""
    short = float(f"{value:.6g}")
    return short if abs(value) < _SINGLE_MAX and pack("<f", short) == pack("<f", value) else value


def _caveats(table: sa.Table, entity: Entity, dialect: str) -> Iterator[str]:
    for column in entity.key:
        kind = table.c[column.name].type
        collation = str(getattr(kind, "collation", None) or "")
        folds = dialect in _MYSQL and not collation.endswith("_bin")
        if column.kind is Kind.TEXT and (folds or collation == "NOCASE" or isinstance(kind, postgresql.CITEXT)):
            yield (
                f"{entity.name}.{column.name}: keys that differ in case or trailing spaces only may be one row in SQL "
                "and two records in Redis; give the column a binary collation"
            )
