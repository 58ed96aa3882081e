r"""Values in their three forms and the conversions between them, one ``Codec`` per column.

* *user value*: what callers pass and get.
* *wire value*: what a payload carries: int, float, Decimal, str, bool, date, time, naive datetime,
  UTC datetime, timedelta, bytes, UUID; an ENUM is its label, a JSON document is ``JsonText``.
* *text*: what stands in the Redis hash, readable by any client. NULL is ``\N``; a text or bytes that begins
  with a backslash gets one more in front, as in PostgreSQL's COPY.

Invariants:

1. What ``accept`` lets through, the database stores and returns unchanged; all else is refused here.
2. ``decode_text(encode_text(wire)) == to_user(wire)``; equal wire values have equal texts (but 0.0 and -0.0).
3. Wire values have exactly the types above, no subclasses.
4. A refusal names table, column and the type of what was passed, never the value: it may be secret.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Context, Decimal, Inexact, InvalidOperation
from math import isfinite
from operator import index
from typing import Any, Final, NamedTuple, TypeAlias
from uuid import UUID

from writebehind.engine.core import columns as limits
from writebehind.engine.core.columns import Column, Kind
from writebehind.engine.errors import ValidationError

__all__ = ["NULL", "Codec", "JsonText", "codec"]

NULL: Final = "\\N"
"""NULL in the Redis hash."""

_EXACT: Final = Context(prec=400_000, Emin=-400_000, Emax=400_000, traps=[InvalidOperation, Inexact])
_UNIT: Final = Decimal(1)
_JSON: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))


class JsonText(str):
    """A JSON document as compact text with sorted keys, so that equal documents have equal texts."""

    __slots__ = ()


class _Forms(NamedTuple):
    """Conversions of values that are not NULL. ``present`` is None where user and wire value are the same."""

    convert: Callable[[Any], Any]
    encode: Callable[[Any], str | bytes]
    decode: Callable[[bytes], Any]
    present: Callable[[Any], Any] | None = None


_Refuse: TypeAlias = Callable[[object, str, str], ValidationError]
"""Makes the refusal of a value from the problem, as the end of a sentence about the column, and the remedy."""


class Codec:
    """The conversions of one column.

    Attributes:
        column: what the column allows.
        convert, encode, decode: ``accept``, ``encode_text`` and ``decode_text`` without NULL, for tight loops.
        present: ``to_user`` without NULL, or None where user and wire value are the same.
    """

    __slots__ = ("_convert_delta", "_number", "_refuse", "column", "convert", "decode", "encode", "present")

    def __init__(self, entity_name: str, column: Column) -> None:
        self.column = column
        self._refuse: _Refuse = lambda value, problem, remedy: ValidationError(
            f"{entity_name}.{column.name} {problem}; got a value of type {type(value).__name__}", remedy
        )
        self.convert, self.encode, self.decode, self.present = _FORMS[column.kind](column, self._refuse)
        signed = replace(column, minimum=None, maximum=None) if column.kind in limits.NUMERIC_KINDS else column
        self._number = _NUMBERS.get(column.kind)
        self._convert_delta = _FORMS[column.kind](signed, self._refuse).convert

    def accept(self, user_value: Any) -> Any:
        """Return the wire value. None stays None: whether NULL is allowed is the record's business.

        Raises:
            ValidationError: the column cannot hold the value unchanged.
        """
        return None if user_value is None else self.convert(user_value)

    def encode_text(self, wire: Any) -> str | bytes:
        """Return what stands in the Redis hash: bytes for BYTES, else str."""
        return NULL if wire is None else self.encode(wire)

    def decode_text(self, text: bytes) -> Any:
        """Return the user value of what stands in the Redis hash.

        Raises:
            ValueError, ArithmeticError, LookupError: it is no text of this column.
        """
        return None if text == b"\\N" else self.decode(text)

    def to_user(self, wire: Any) -> Any:
        """Return the user value."""
        return wire if wire is None or self.present is None else self.present(wire)

    def accept_delta(self, user_value: Any) -> Any:
        """Return the wire value of an amount to add.

        Raises:
            ValidationError: the column cannot be incremented, or not by this amount.
        """
        column, refuse = self.column, self._refuse
        if column.kind not in limits.NUMERIC_KINDS or column.single_precision:
            kind = "a float of six digits" if column.single_precision else column.kind.value
            raise refuse(user_value, f"is {kind}, which cannot be incremented", "use an integer, NUMERIC or double")
        if column.kind is Kind.INTEGER:
            delta = _exact_int(user_value, refuse)
            span = min(column.integer_limits[1] - column.integer_limits[0], 2**63 - 1)
            if not -span <= delta <= span:
                raise refuse(user_value, f"cannot change by more than {span}", "widen the column")
            return delta
        delta = self._convert_delta(user_value)
        if column.kind is Kind.FLOAT and not isfinite(delta):
            raise refuse(user_value, "takes finite increments only", "put the value instead")
        return delta

    def add(self, wire: Any, delta: Any) -> Any:
        """Return a row's value after an increment; None counts as 0. INTEGER and NUMERIC are exact.

        Raises:
            ValidationError: the column cannot hold the sum.
        """
        total = self.convert(self.add_deltas(wire, delta))
        if self.column.kind is Kind.FLOAT and not isfinite(total) and isfinite(wire or 0.0):
            raise self._refuse(total, "overflows by this increment", "put the value instead")
        return total

    def add_deltas(self, first: Any, second: Any) -> Any:
        """Return the sum of two amounts; None counts as 0. It may leave the column's range: a later one can return.

        Raises:
            ValidationError: they are no wire values of this column, but of a forged entry.
        """
        number = self._number
        if type(first) is number and type(second) is number:
            return _EXACT.add(first, second) if number is Decimal else first + second  # type: ignore[arg-type]
        if first is None and type(second) in {number, type(None)}:
            return second
        if second is None and type(first) is number:
            return first
        raise self._refuse(
            second if type(first) is number else first, "cannot be incremented by this", "find out who wrote this entry"
        )


_NUMBERS: Final[Mapping[Kind, type]] = {Kind.INTEGER: int, Kind.FLOAT: float, Kind.NUMERIC: Decimal}


def codec(entity_name: str, column: Column) -> Codec:
    """Return the conversions for a column of the named table. Build them once."""
    return Codec(entity_name, column)


def _exact_int(value: Any, refuse: _Refuse, wanted: str = "an int") -> int:
    if type(value) is int:
        return value
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise refuse(value, f"takes {wanted}", "convert it first, if nothing is lost by it")
    return int.__add__(index(value), 0)  # a plain int also of an IntEnum or a numpy integer


def _integer(column: Column, refuse: _Refuse) -> _Forms:
    low, high = column.integer_limits

    def convert(value: Any) -> int:
        if type(value) is int and low <= value <= high:
            return value
        exact = _exact_int(value, refuse)
        if not low <= exact <= high:
            raise refuse(value, f"takes integers from {low} to {high}", "pass a smaller one or widen the column")
        return exact

    return _Forms(convert, str, int)


def _float(column: Column, refuse: _Refuse) -> _Forms:
    limited = column.single_precision or column.finite_only or not column.nan_allowed or column.minimum is not None

    def widen(value: Any) -> float:
        if isinstance(value, float):
            return float.__float__(value)
        exact = _exact_int(value, refuse, "a float")
        try:
            if (wide := float(exact)) == exact:
                return wide
        except OverflowError:
            pass
        raise refuse(value, "cannot hold this integer exactly", "convert it with float() if rounding is right")

    def convert(value: Any) -> float:
        wide = value if type(value) is float else widen(value)
        if limited and (violation := limits.float_violation(column, wide)) is not None:
            raise refuse(value, *violation)
        return wide

    return _Forms(convert, repr, float)


def _numeric(column: Column, refuse: _Refuse) -> _Forms:
    step = None if column.scale is None else Decimal((0, (1,), -column.scale))

    def to_decimal(value: Any) -> Decimal:
        if isinstance(value, Decimal):
            return Decimal(value)
        if isinstance(value, float):
            if column.as_decimal:
                raise refuse(value, "takes a Decimal or an int: a float is seldom what it seems", "pass Decimal('...')")
            return Decimal(float.__repr__(value))
        return Decimal(_exact_int(value, refuse, "a Decimal or an int"))

    def convert(value: Any) -> Decimal:
        exact = value if type(value) is Decimal else to_decimal(value)
        if (violation := limits.decimal_violation(column, exact)) is not None:
            raise refuse(value, *violation)
        if not exact:
            return _EXACT.quantize(Decimal(0), step or _UNIT)  # zero has no sign in SQL
        if step is not None:
            return _EXACT.quantize(exact, step)
        exact = _EXACT.normalize(exact)
        return exact if exact.as_tuple().exponent <= 0 else _EXACT.quantize(exact, _UNIT)  # type: ignore[operator]

    if column.as_decimal:
        return _Forms(convert, "{:f}".format, lambda text: Decimal(text.decode()))
    return _Forms(convert, "{:f}".format, float, float)


def _text(column: Column, refuse: _Refuse) -> _Forms:
    length = min((limit for limit in (column.length, column.bytes_max) if limit is not None), default=2**63)
    plain = not column.blank_padded

    def convert(value: Any) -> str:
        if type(value) is str and plain and len(value) <= length and value.isascii() and "\0" not in value:
            return value
        if not isinstance(value, str):
            raise refuse(value, "takes a str", "decode bytes, or convert it with str()")
        if (violation := limits.text_violation(column, value)) is not None:
            raise refuse(value, *violation)
        return str.__str__(value)  # a plain str also of a StrEnum

    return _Forms(convert, _guard, lambda text: text.removeprefix(b"\\").decode())


def _guard(text: str) -> str:
    return "\\" + text if text[:1] == "\\" else text


def _bytes(column: Column, refuse: _Refuse) -> _Forms:
    def convert(value: Any) -> bytes:
        if not isinstance(value, bytes | bytearray | memoryview):
            raise refuse(value, "takes bytes", "encode text before writing")
        if (violation := limits.bytes_violation(column, bytes(value))) is not None:
            raise refuse(value, *violation)
        return bytes(value)

    return _Forms(
        convert, lambda wire: b"\\" + wire if wire[:1] == b"\\" else wire, lambda text: text.removeprefix(b"\\")
    )


def _boolean(_: Column, refuse: _Refuse) -> _Forms:
    def convert(value: Any) -> bool:
        if value is True or value is False:
            return value
        raise refuse(value, "takes True or False", "convert it with bool()")

    return _Forms(convert, lambda wire: "true" if wire else "false", {b"true": True, b"false": False}.__getitem__)


def _exact_date(value: Any) -> date | None:
    if not isinstance(value, date) or isinstance(value, datetime):
        return None
    return value if type(value) is date else date(value.year, value.month, value.day)


def _exact_time(value: Any) -> time | None:
    if not isinstance(value, time) or value.tzinfo is not None:
        return None
    return time(value.hour, value.minute, value.second, value.microsecond)


def _exact_datetime(value: Any) -> datetime | None:
    if not isinstance(value, datetime) or value.tzinfo is not None:
        return None
    if type(value) is datetime and not value.fold:
        return value
    return datetime.combine(value.date(), value.time().replace(fold=0))


def _exact_datetime_utc(value: Any) -> datetime | None:
    if not isinstance(value, datetime) or value.utcoffset() is None:
        return None
    if type(value) is datetime and value.tzinfo is UTC and not value.fold:
        return value
    utc = value.astimezone(UTC)
    return datetime.combine(utc.date(), utc.time().replace(fold=0), UTC)


def _exact_interval(value: Any) -> timedelta | None:
    return timedelta(value.days, value.seconds, value.microseconds) if isinstance(value, timedelta) else None


def _encode_interval(wire: timedelta) -> str:
    microseconds = wire // timedelta(microseconds=1)
    seconds, fraction = divmod(abs(microseconds), 1_000_000)
    return f"{'-' if microseconds < 0 else ''}{seconds}.{fraction:06d}"


def _decode_interval(text: str) -> timedelta:
    return timedelta(microseconds=int(text.replace(".", "")))


_MOMENTS: Final[dict[Kind, tuple[Callable[[Any], Any], Callable[[str], Any], str, str]]] = {
    Kind.DATE: (_exact_date, date.fromisoformat, "a date", "call date() on a datetime"),
    Kind.TIME: (_exact_time, time.fromisoformat, "a time without time zone", "use replace(tzinfo=None)"),
    Kind.DATETIME: (_exact_datetime, datetime.fromisoformat, "a datetime without time zone", "declare timezone=True"),
    Kind.DATETIME_UTC: (_exact_datetime_utc, datetime.fromisoformat, "a datetime with time zone", "attach its tzinfo"),
    Kind.INTERVAL: (_exact_interval, _decode_interval, "a timedelta", "pass timedelta(seconds=...)"),
}


def _moment(column: Column, refuse: _Refuse) -> _Forms:
    exact, decode, wanted, remedy = _MOMENTS[column.kind]
    limited = not column.keeps_microseconds or column.earliest is not None or column.latest is not None

    def convert(value: Any) -> Any:
        try:
            moment = exact(value)
        except OverflowError:
            raise refuse(value, "takes the years 1 to 9999 in UTC", "pass a datetime inside them") from None
        if moment is None:
            raise refuse(value, f"takes {wanted}", remedy)
        if type(value) is not type(moment) and getattr(value, "nanosecond", False):
            raise refuse(value, "keeps microseconds", "round nanoseconds before writing")
        if limited and (violation := limits.moment_violation(column, moment)) is not None:
            raise refuse(value, *violation)
        return moment

    encode: Callable[[Any], str] = _encode_interval if column.kind is Kind.INTERVAL else lambda wire: wire.isoformat()
    return _Forms(convert, encode, lambda text: decode(text.decode()))


def _json(column: Column, refuse: _Refuse) -> _Forms:
    def convert(value: Any) -> JsonText:
        if (violation := limits.json_violation(column, value)) is not None:
            raise refuse(value, *violation)
        try:
            text = _JSON.encode(value)
        except ValueError:
            raise refuse(value, "holds an integer too long for text", "write it as a string") from None
        if (violation := limits.text_violation(column, text)) is not None:
            raise refuse(value, *violation)
        return JsonText(text)

    return _Forms(convert, str.__str__, json.loads, json.loads)


def _uuid(column: Column, refuse: _Refuse) -> _Forms:
    def convert(value: Any) -> UUID:
        if type(value) is UUID:
            return value
        if isinstance(value, UUID):
            return UUID(int=value.int)
        try:
            if isinstance(value, str) and not column.as_uuid:
                return UUID(value)
        except ValueError:
            pass
        raise refuse(value, "takes a UUID", "pass uuid.UUID(...)")

    if column.as_uuid:
        return _Forms(convert, str, lambda text: UUID(text.decode()))
    return _Forms(convert, str, lambda text: str(UUID(text.decode())), str)


def _enum(column: Column, refuse: _Refuse) -> _Forms:
    members = dict(column.labels)
    labels = {member: label for label, member in members.items()}
    member_type = type(next(iter(labels), ""))
    texts = {label: _guard(label) for label in members}
    from_text = {text.encode(): members[label] for label, text in texts.items()}

    def convert(value: Any) -> str:
        label = None
        if isinstance(value, member_type) and value in labels:
            label = labels[value]
        elif isinstance(value, str) and value in members:
            label = str.__str__(value)
        if label is None:
            raise refuse(value, f"takes {', '.join(members)}", "pass one of these labels or members")
        return label

    return _Forms(convert, texts.__getitem__, from_text.__getitem__, members.__getitem__)


_FORMS: Final[dict[Kind, Callable[[Column, _Refuse], _Forms]]] = {
    Kind.INTEGER: _integer,
    Kind.FLOAT: _float,
    Kind.NUMERIC: _numeric,
    Kind.TEXT: _text,
    Kind.BOOLEAN: _boolean,
    **dict.fromkeys(_MOMENTS, _moment),
    Kind.BYTES: _bytes,
    Kind.JSON: _json,
    Kind.UUID: _uuid,
    Kind.ENUM: _enum,
}
