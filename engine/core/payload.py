"""The wire format: what stands in the payload field of a log entry (``docs/wire-format.md``).

Invariants:

1. What was encoded decodes to equal wire values of the same types.
2. ``decode`` of any bytes whatever returns mutations or raises ``PayloadError``, nothing else.
3. A payload of another version is refused, never guessed at.
4. What ``decode`` returns is flat and bounded: no lists or dicts as values, and no number that takes more memory to
   write out than its bytes did, so that whoever works on with it needs no limits of its own.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import IntEnum
from struct import Struct
from typing import Annotated, Any, Final, TypeAlias
from uuid import UUID

from msgspec import Meta
from msgspec import Struct as Shape
from msgspec import ValidationError as ShapeError
from msgspec.msgpack import Decoder, Encoder, Ext

from writebehind.engine.config import FIELDS_MAX, MEMBERS_MAX, PAYLOAD_BYTES_MAX
from writebehind.engine.core.values import JsonText
from writebehind.engine.errors import ConfigurationError

__all__ = [
    "LETTER",
    "MEANT",
    "VERSION",
    "Damaged",
    "Mutation",
    "Op",
    "PayloadError",
    "decode",
    "encode",
    "encode_group",
    "keys_in",
]

VERSION: Final = 1

LETTER: Final = ":letter"
"""Name of the value that says which dead letter a replay or a discard is about; no column is named so."""

MEANT: Final = ":meant"
"""Name of the value that holds that letter's mutation ID: after a rollback of SQL its place may be another's."""

Mutation: TypeAlias = tuple[int, str, str, dict[str, Any]]
"""One decoded mutation: operation, table, key text (empty: an insert without a key), wire values."""


class Op(IntEnum):
    """What a payload does. ``GROUP`` holds mutations; it is never one itself.

    ``REPLAY`` and ``DISCARD`` change no row by themselves: they tell the flusher, at their place in the log, to apply
    or to drop the dead letter that their values name as ``LETTER`` and ``MEANT``; a replay's other values replace the
    letter's.
    """

    GROUP = 0
    PUT = 1
    PATCH = 2
    INCREMENT = 3
    INSERT = 4
    DELETE = 5
    REPLAY = 6
    DISCARD = 7


class PayloadError(ConfigurationError):
    """A payload that this release cannot read: halt, because its key and its effect are unknown."""


class Damaged(PayloadError):
    """A payload that no release can read."""


_FIRST_OP: Final = int(Op.PUT)  # plain ints: comparing with members of an IntEnum doubles the time of decode
_LAST_OP: Final = int(Op.DISCARD)
_all_plain: Final = frozenset({int, str, float, bool, bytes, type(None), JsonText}).issuperset
_is_flat: Final = frozenset({list, dict}).isdisjoint
_KEY_TEXT_MAX: Final = 512
_DIGITS_MAX: Final = 131_072  # of a number without a declared size, before its point; PostgreSQL's limit
_SCALE_MAX: Final = 16_383  # and behind it
_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 -- naive datetimes count from a naive epoch
_DAY_MICROSECONDS: Final = 86_400_000_000
_EPOCH_DAY: Final = _EPOCH.toordinal()
_MICROSECOND: Final = timedelta(microseconds=1)
_INT32: Final = Struct(">i")
_INT64: Final = Struct(">q")
_INT64_PAIR: Final = Struct(">qq")


def _pack_datetime(value: datetime) -> datetime | Ext:
    if value.tzinfo is not None:
        return value
    return Ext(1, _INT64.pack((value - _EPOCH) // _MICROSECOND))


def _pack_date(value: date) -> Ext:
    return Ext(2, _INT32.pack(value.toordinal() - _EPOCH_DAY))


def _pack_time(value: time) -> Ext:
    seconds = (value.hour * 60 + value.minute) * 60 + value.second
    return Ext(3, _INT64.pack(seconds * 1_000_000 + value.microsecond))


def _pack_interval(value: timedelta) -> Ext:
    return Ext(4, _INT64_PAIR.pack(value.days, value.seconds * 1_000_000 + value.microseconds))


_PACKERS: Final[dict[type, Callable[[Any], Any]]] = {
    datetime: _pack_datetime,
    date: _pack_date,
    time: _pack_time,
    timedelta: _pack_interval,
    Decimal: lambda value: Ext(5, str(value).encode("ascii")),
    UUID: lambda value: Ext(6, value.bytes),
}


def _unpack_time(data: memoryview) -> time:
    (microseconds,) = _INT64.unpack(data)
    if not 0 <= microseconds < _DAY_MICROSECONDS:
        raise ValueError("time of day out of range")
    return (_EPOCH + timedelta(microseconds=microseconds)).time()


def _unpack_interval(data: memoryview) -> timedelta:
    days, microseconds = _INT64_PAIR.unpack(data)
    return timedelta(days=days, microseconds=microseconds)


def _unpack_decimal(data: memoryview) -> Decimal:
    if len(data) > _DIGITS_MAX + _SCALE_MAX + 3:
        raise ValueError("decimal too long")
    value = Decimal(str(data, "ascii"))
    # A few bytes can stand for a number of a billion digits.
    if not (value.is_finite() and -_SCALE_MAX <= value.adjusted() <= _DIGITS_MAX):
        raise ValueError("decimal out of range")
    return value


_UNPACKERS: Final[dict[int, Callable[[memoryview], Any]]] = {
    1: lambda data: _EPOCH + timedelta(microseconds=_INT64.unpack(data)[0]),
    2: lambda data: date.fromordinal(_INT32.unpack(data)[0] + _EPOCH_DAY),
    3: _unpack_time,
    4: _unpack_interval,
    5: _unpack_decimal,
    6: lambda data: UUID(bytes=bytes(data)),
    7: lambda data: JsonText(data, "utf-8"),
}


def _pack_json(value: Any) -> Ext:
    if type(value) is JsonText:
        return Ext(7, value.encode())
    raise TypeError(f"{type(value).__name__} is no wire value")


def _unpack(code: int, data: memoryview) -> Any:
    unpacker = _UNPACKERS.get(code)
    if unpacker is None:
        raise ValueError(f"unknown extension type {code}")
    return unpacker(data)


_encode = Encoder(enc_hook=_pack_json).encode
_decode_any_one = Decoder(tuple[int, int, str, str, dict[str, Any]], ext_hook=_unpack).decode
_decode_one = Decoder(
    tuple[
        Annotated[int, Meta(ge=VERSION, le=VERSION)],  # limits that the decoder checks cost nothing
        Annotated[int, Meta(ge=_FIRST_OP, le=_LAST_OP)],
        str,
        Annotated[str, Meta(max_length=_KEY_TEXT_MAX)],
        Annotated[dict[str, Any], Meta(max_length=FIELDS_MAX)],
    ],
    ext_hook=_unpack,
).decode
_decode_group = Decoder(tuple[int, int, list[Mutation]], ext_hook=_unpack).decode
_decode_any = Decoder(ext_hook=Ext).decode


def _packed(values: Mapping[str, Any]) -> Mapping[str, Any]:
    # msgspec writes Decimal, date and the like as plain strings, which would come back as strings.
    if _all_plain(map(type, values.values())):
        return values
    packers = _PACKERS
    return {name: packers[type(value)](value) if type(value) in packers else value for name, value in values.items()}


def encode(op: int, table: str, key_text: str, values: Mapping[str, Any]) -> bytes:
    """Return the payload of one mutation.

    Args:
        op: any ``Op`` but ``GROUP``.
        table: the entity's name.
        key_text: as ``RecordPlan`` makes it; empty for an insert without a key.
        values: wire values by column.

    Raises:
        TypeError: a value is no wire value.
    """
    return _encode((VERSION, op, table, key_text, _packed(values)))


def encode_group(mutations: Iterable[tuple[int, str, str, Mapping[str, Any]]]) -> bytes:
    """Return the payload of mutations that take effect together, in this order.

    Raises:
        TypeError: a value is no wire value.
    """
    members = [(op, table, key_text, _packed(values)) for op, table, key_text, values in mutations]
    return _encode((VERSION, Op.GROUP, members))


def decode(payload: bytes) -> list[Mutation]:
    """Return the mutations of a payload: one, or a group's in order. The value dicts are the caller's own.

    Raises:
        PayloadError: another version, an unknown operation or extension type, beyond the limits, or damaged bytes.
    """
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise _beyond(f"{len(payload)} bytes; {PAYLOAD_BYTES_MAX} are the limit")
    try:
        decoded = _decode_one(payload)
    except ShapeError:
        decoded = None
    except Exception as error:  # noqa: BLE001 -- whatever damaged bytes provoke: see invariant 2
        raise _damaged(payload, error) from None
    if decoded is None:
        return _decode_rare(payload)
    if not _is_flat(map(type, decoded[4].values())):
        raise _unbounded(decoded[3], decoded[4])
    return [decoded[1:]]


class _Head(Shape, array_like=True, gc=False):
    version: int
    op: int
    table: str
    key_text: str


_decode_head = Decoder(_Head).decode


def keys_in(payload: bytes) -> list[tuple[str, str]]:
    """Return table and key text of each mutation of a payload that was decoded before, at a quarter of the time.

    Raises:
        PayloadError: it cannot be decoded.
    """
    try:
        head = _decode_head(payload)
    except ShapeError:
        return [(table, key_text) for _, table, key_text, _ in decode(payload)]
    return [(head.table, head.key_text)]


def _decode_rare(payload: bytes) -> list[Mutation]:
    try:
        version, op, members = _decode_group(payload)
    except ShapeError as error:
        raise _misshapen(payload, error) from None
    except Exception as error:  # noqa: BLE001 -- likewise
        raise _damaged(payload, error) from None
    if version != VERSION or op != Op.GROUP:
        raise _refusal(version, op)
    if len(members) > MEMBERS_MAX:
        raise _beyond(f"{len(members)} mutations; {MEMBERS_MAX} are the limit")
    for member_op, _, key_text, values in members:
        if not _FIRST_OP <= member_op <= _LAST_OP:
            raise _refusal(version, member_op)
        if len(values) > FIELDS_MAX or not _is_flat(map(type, values.values())) or len(key_text) > _KEY_TEXT_MAX:
            raise _unbounded(key_text, values)
    return members


def _misshapen(payload: bytes, error: Exception) -> PayloadError:
    """Tell a newer format, whose shape may be any, and what is beyond the limits, from damage."""
    try:
        version, op, _, key_text, values = _decode_any_one(payload)
    except ShapeError:
        pass
    except Exception:  # noqa: BLE001 -- invariant 2
        return _damaged(payload, error)
    else:
        known = version == VERSION and _FIRST_OP <= op <= _LAST_OP
        return _unbounded(key_text, values) if known else _refusal(version, op)
    try:
        head = _decode_any(payload)
    except Exception:  # noqa: BLE001 -- invariant 2
        return _damaged(payload, error)
    if isinstance(head, list) and head and type(head[0]) is int and head[0] != VERSION:
        return _refusal(head[0], None)
    return _damaged(payload, error)


def _refusal(version: int, op: int | None) -> PayloadError:
    if version != VERSION:
        return PayloadError(
            f"a log entry has payload version {version}, this release reads version {VERSION}",
            "run flushers at least as new as the writers",
        )
    return PayloadError(f"a log entry has the unknown operation {op}", "run flushers at least as new as the writers")


def _unbounded(key_text: str, values: Mapping[str, Any]) -> Damaged:
    if len(values) > FIELDS_MAX:
        return _beyond(f"{len(values)} columns; {FIELDS_MAX} are the limit")
    if len(key_text) > _KEY_TEXT_MAX:
        return _beyond(f"a key of {len(key_text)} characters; {_KEY_TEXT_MAX} are the limit")
    return _beyond("a list or a map as a value; a JSON document is text here")


def _beyond(what: str) -> Damaged:
    return Damaged(
        f"a log entry's payload has {what}",
        "no writer of this product writes such: find out who else writes to this stream",
    )


def _damaged(payload: bytes, error: Exception) -> Damaged:
    return Damaged(
        f"a log entry's payload of {len(payload)} bytes is not in the wire format: {type(error).__name__}",
        "another program wrote to the log, or the entry is damaged; inspect it with XRANGE",
    )
