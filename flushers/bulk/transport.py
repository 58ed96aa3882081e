"""How a column's wire values travel to PostgreSQL in a binary COPY."""

import json
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

from writebehind.engine.core.columns import Column, Kind
from writebehind.flushers.bulk.statements import Converter

__all__ = ["Transport", "transport"]


class Transport(NamedTuple):
    """The way of one column.

    Attributes:
        type_name: the type in the temporary table, one that psycopg can write in binary.
        value_cast: the type that the target takes it as, or None where assignment is enough. Casts are
            for nothing else: an explicit cast to VARCHAR(n) cuts silently where an assignment raises.
        key_cast: the type that the target can be compared with through an index, or None.
        converter: from a wire value that is not None, or None where nothing is to be done.
    """

    type_name: str
    value_cast: str | None = None
    key_cast: str | None = None
    converter: Converter | None = None


_TYPE_NAMES: Final = {
    Kind.INTEGER: "int8",
    Kind.FLOAT: "float8",
    Kind.NUMERIC: "numeric",
    Kind.TEXT: "text",
    Kind.BOOLEAN: "bool",
    Kind.DATE: "date",
    Kind.TIME: "time",
    Kind.DATETIME: "timestamp",
    Kind.DATETIME_UTC: "timestamptz",
    Kind.INTERVAL: "interval",
    Kind.BYTES: "bytea",
    Kind.UUID: "uuid",
}
_CHARACTERS: Final = "bpchar"  # CHAR without a length: compares like CHAR(n), cuts nothing


def transport(column: Column, kind: TypeEngine[Any], to_bind: Converter | None, dialect: sa.Dialect) -> Transport:
    """Return the way for a column.

    Args:
        column: as declared.
        kind: its SQLAlchemy type.
        to_bind: what ``DeclaredTable`` has for the column.
        dialect: of PostgreSQL.
    """
    target = kind.dialect_impl(dialect)
    type_name = _TYPE_NAMES.get(column.kind, "text")
    match column.kind:
        case Kind.JSON:
            way = _json(target, to_bind)
        case Kind.ENUM:
            native = isinstance(target, sa.Enum) and target.native_enum
            name = dialect.type_compiler_instance.process(target).replace("%%", "%") if native else None
            way = Transport(type_name, name, name)
        case Kind.INTEGER if isinstance(target, sa.Integer) and not isinstance(target, sa.BigInteger):
            way = Transport("int2" if isinstance(target, sa.SmallInteger) else "int4")
        case Kind.FLOAT if column.float_bits == 32:  # noqa: PLR2004
            way = Transport(type_name, key_cast="float4")
        case Kind.UUID if isinstance(target, sa.Uuid) and not target.native_uuid:
            way = Transport("text", key_cast=_CHARACTERS, converter=lambda value: value.hex)
        case Kind.INTERVAL if isinstance(target, sa.Interval):
            way = Transport("timestamp", converter=target.bind_processor(dialect))
        case _:
            way = Transport(type_name, key_cast=_CHARACTERS if column.blank_padded else None)
    return way


def _json(target: TypeEngine[Any], to_bind: Converter | None) -> Transport:
    if not isinstance(target, postgresql.JSONB):
        return Transport("text", "json")
    load: Converter = to_bind or json.loads

    def document(text: str) -> str:
        # Only floats in this notation are stored as other numbers than they are; see ``declare``.
        return json.dumps(load(text)) if "e+" in text else text

    return Transport("text", "jsonb", converter=document)
