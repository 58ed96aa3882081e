"""Corrections: values that a replay puts in the place of a dead letter's own.

Pure. A correction is checked like a patch of its table, before anything is written: it can do nothing that a write
could not do.
"""

from collections.abc import Callable, Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final

from writebehind.engine.core.columns import Kind
from writebehind.engine.core.payload import Op
from writebehind.engine.core.records import RecordPlan
from writebehind.engine.core.values import NULL, Codec
from writebehind.engine.errors import ValidationError

__all__ = ["parse", "validate"]

EXAMPLES: Final = {
    Kind.INTEGER: "42",
    Kind.FLOAT: "1.5",
    Kind.NUMERIC: "12.50",
    Kind.TEXT: "any text, with one more backslash in front where it begins with one",
    Kind.BOOLEAN: "true or false",
    Kind.DATE: "2026-03-31",
    Kind.TIME: "13:45:00",
    Kind.DATETIME: "2026-03-31T13:45:00",
    Kind.DATETIME_UTC: "2026-03-31T13:45:00+00:00",
    Kind.INTERVAL: "90.5 for seconds",
    Kind.BYTES: "00ff for hexadecimal",
    Kind.JSON: '{"a": 1}',
    Kind.UUID: "12345678-1234-5678-1234-567812345678",
    Kind.ENUM: "one of its labels",
}


def parse(plan: RecordPlan, texts: Mapping[str, str]) -> dict[str, Any]:
    r"""Return the user values of texts, each typed by its column; ``\N`` is NULL.

    Args:
        plan: of the table.
        texts: by column, the value as it stands in the Redis hash, but bytes as hexadecimal and intervals in seconds.

    Raises:
        ValidationError: a column is unknown, or a text is none of its column.
    """
    values: dict[str, Any] = {}
    for name, text in texts.items():
        codec = _codec(plan, name)
        kind = codec.column.kind
        try:
            values[name] = None if text == NULL else _readers.get(kind, _as_in_redis)(codec, text)
        except (ValueError, ArithmeticError, LookupError) as error:
            raise ValidationError(
                f"{plan.name}.{name} is {kind.value}, and what was given is none", f"write it as {EXAMPLES[kind]}"
            ) from error
    return values


def validate(plan: RecordPlan, op: Op, corrections: Mapping[str, Any]) -> dict[str, Any]:
    """Return the wire values of corrections of one change.

    Args:
        plan: of the table.
        op: what the change does: values of an increment are amounts.
        corrections: user values by column.

    Raises:
        ValidationError: a column is unknown or in the key, a value does not fit, or a delete is to be corrected.
    """
    if op is Op.DELETE and corrections:
        raise ValidationError("a delete has no values to correct", "replay it as it is, or discard it")
    keys = {column.name for column in plan.entity.key}
    values: dict[str, Any] = {}
    for name, value in corrections.items():
        codec = _codec(plan, name)
        if name in keys:
            raise ValidationError(
                f"{plan.name}.{name} belongs to the key, which a correction cannot change",
                "discard the letter, and write the record under its right key",
            )
        if op is Op.INCREMENT:
            values[name] = codec.accept_delta(value)
            continue
        values[name] = codec.accept(value)
        if value is None and not codec.column.nullable:
            raise ValidationError(f"{plan.name}.{name} cannot be NULL", "give it a value")
    return values


def _codec(plan: RecordPlan, name: str) -> Codec:
    codec = plan.codecs.get(name)
    if codec is None:
        raise ValidationError(f"table {plan.name} has no column {name!r}", f"known are {', '.join(plan.columns)}")
    return codec


def _as_in_redis(codec: Codec, text: str) -> Any:
    return codec.decode(text.encode())


def _boolean(codec: Codec, text: str) -> Any:
    return codec.decode(text.lower().encode())


def _bytes(_: Codec, text: str) -> bytes:
    return bytes.fromhex(text)


def _interval(_: Codec, text: str) -> timedelta:
    microseconds = Decimal(text) * 1_000_000
    if microseconds != int(microseconds):
        raise ValueError("finer than a microsecond")
    return timedelta(microseconds=int(microseconds))


_readers: Final[dict[Kind, Callable[[Codec, str], Any]]] = {
    Kind.BOOLEAN: _boolean,
    Kind.BYTES: _bytes,
    Kind.INTERVAL: _interval,
}
