"""From the text of a key back to its values: what names a record in Redis and in the log names its row in SQL."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from writebehind.engine.core.columns import Column, Kind
from writebehind.engine.core.records import RecordPlan
from writebehind.engine.errors import ValidationError

__all__ = ["ForeignKey", "key_values"]

EMPTY = "%00"


class ForeignKey(ValueError):
    """A text that the engine never makes of a key; the message says why."""


def key_values(plan: RecordPlan, key_text: str) -> tuple[str, Mapping[str, Any]]:
    """Return the partition text and the key columns' wire values of a key text.

    Raises:
        ForeignKey: no key of this table has this text.
    """
    parts = key_text.split(":")
    key = plan.entity.key
    if len(parts) != len(key):
        raise ForeignKey(f"a key of {plan.name} has {len(key)} parts, not {len(parts)}")
    try:
        user = tuple(_part(plan, column, part) for column, part in zip(key, parts, strict=True))
        canonical, spread, values = plan.key_only(user)
    except (ValueError, ArithmeticError, LookupError) as error:
        raise ForeignKey(f"it is not the text of a key of {plan.name}") from error
    except ValidationError as error:
        raise ForeignKey(error.message) from error
    if canonical != key_text:
        raise ForeignKey(f"it is not how {plan.name} writes this key")
    return spread, values


def _part(plan: RecordPlan, column: Column, part: str) -> Any:
    raw = b"" if part == EMPTY else unquote_to_bytes(part)
    match column.kind:
        case Kind.TEXT | Kind.ENUM:
            return raw.decode()
        case Kind.BYTES:
            return bytes.fromhex(raw.decode())
        case Kind.FLOAT:
            return float(raw)
        case _:
            return plan.codecs[column.name].decode_text(raw)
