import pickle
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest

from writebehind.engine.core.payload import VERSION, Op, PayloadError, decode, encode, encode_group, keys_in
from writebehind.engine.core.values import JsonText
from writebehind.engine.errors import ConfigurationError

VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "int": -(2**63),
    "unsigned": 2**64 - 1,
    "float": 0.1,
    "text": "ä\\N",
    "bytes": b"\x00\xff",
    "naive": datetime.min,  # noqa: DTZ901
    "aware": datetime(1, 1, 1, tzinfo=UTC),
    "date": date.max,
    "time": time(23, 59, 59, 999999),
    "interval": timedelta.min,
    "decimal": Decimal("-1.50"),
    "huge": Decimal("1E+400"),
    "uuid": UUID(int=2**128 - 1),
    "json": JsonText('{"a":1}'),
}


def test_mutation() -> None:
    """A mutation comes back as it went in, with equal types."""
    ((op, table, key_text, values),) = decode(encode(Op.PUT, "shop.accounts", "7", VALUES))
    assert (op, table, key_text) == (Op.PUT, "shop.accounts", "7")
    assert values == VALUES
    assert [type(value) for value in values.values()] == [type(value) for value in VALUES.values()]


def test_group() -> None:
    """A group comes back in order."""
    members = [(Op.PUT, "a", "1", VALUES), (Op.DELETE, "b", "1:2", {"k": 1})]
    assert decode(encode_group(members)) == members
    assert decode(encode_group([])) == []


def test_documented_bytes() -> None:
    """The bytes are those of docs/wire-format.md: another encoding would need another version."""
    values = {"id": 7, "at": datetime(1970, 1, 1, 0, 0, 1), "day": date(1970, 1, 2)}  # noqa: DTZ001
    expected = "95 01 01 a5 6974656d73 a1 37 83 a2 6964 07 a2 6174 d7 01 00000000000f4240 a3 646179 d6 02 00000001"
    assert encode(Op.PUT, "items", "7", values).hex() == expected.replace(" ", "")
    assert encode_group([]).hex() == "930100" + "90"


def test_no_wire_value() -> None:
    """A value that is no wire value cannot be encoded by accident."""
    with pytest.raises(TypeError, match="object is no wire value"):
        encode(Op.PUT, "a", "1", {"v": object()})


def raw(*elements: Any) -> bytes:
    """Return the elements as one msgpack array."""
    return msgspec.msgpack.encode(elements)


@pytest.mark.parametrize("payload", [raw(2, 1, "a", "1", {}), raw(2, "anything"), raw(0), raw(2, 0, [])])
def test_other_versions(payload: bytes) -> None:
    """A payload of another version is refused with both versions named."""
    with pytest.raises(PayloadError, match=rf"payload version \d, this release reads version {VERSION}") as caught:
        decode(payload)
    assert "flushers at least as new" in caught.value.hint


@pytest.mark.parametrize(
    "payload",
    [
        raw(1, 8, "a", "1", {}),
        raw(1, 0, "a", "1", {}),
        raw(1, -1, "a", "1", {}),
        raw(1, 0, [[0, "a", "1", {}]]),
        raw(1, 1, []),
    ],
)
def test_unknown_operations(payload: bytes) -> None:
    """An operation that this release does not know is refused."""
    with pytest.raises(PayloadError, match="unknown operation"):
        decode(payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        raw(),
        raw(1),
        raw(1, 1, "a", "1"),
        raw(1, 1, "a", 1, {}),
        raw(1, 1, "a", "1", {1: 2}),
        raw(*[True, 1, "a", "1", {}]),
        raw("1", 1, "a", "1", {}),
        raw(1, 1, "a", "1", {"v": msgspec.msgpack.Ext(99, b"")}),
        raw(1, 1, "a", "1", {"v": msgspec.msgpack.Ext(1, b"short")}),
        raw(1, 1, "a", "1", {"v": msgspec.msgpack.Ext(2, b"\x7f\xff\xff\xff")}),
        raw(1, 1, "a", "1", {"v": msgspec.msgpack.Ext(3, b"\xff" * 8)}),
        raw(1, 1, "a", "1", {"v": msgspec.msgpack.Ext(4, b"\x7f" * 16)}),
        raw(1, 1, "a", "1", {"v": msgspec.msgpack.Ext(5, b"no number")}),
        raw(1, 1, "a", "1", {"v": msgspec.msgpack.Ext(6, b"")}),
        raw(1, 1, "a", "1", {"v": msgspec.msgpack.Ext(7, b"\xff")}),
        raw(1, 1, "a", "1", {"v": msgspec.msgpack.Ext(-1, b"\xff" * 12)}),
        raw(1, 1, "a", "1", {}) + b"\x00",
        raw(1, 1, "a", "1", {})[:-1],
        b"\x91" * 100_000,
        b"\x95\x01\x01\xa1a\xa11\x81\xa1v" + b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
    ],
)
def test_damaged_payloads(payload: bytes) -> None:
    """Whatever is not in the format is refused with its size, and never with its content."""
    with pytest.raises(PayloadError, match=f"payload of {len(payload)} bytes is not in the wire format"):
        decode(payload)


def test_error_is_picklable() -> None:
    """The error crosses process borders and halts a partition."""
    error = pickle.loads(pickle.dumps(PayloadError("message", "hint")))  # noqa: S301
    assert isinstance(error, ConfigurationError)
    assert (error.message, error.hint) == ("message", "hint")


def test_keys_in() -> None:
    """Tables and keys can be had without the values."""
    members = [(Op.PUT, "a", "1", VALUES), (Op.INSERT, "b", "", {"k": 1})]
    assert keys_in(encode(Op.PUT, "shop.accounts", "7", VALUES)) == [("shop.accounts", "7")]
    assert keys_in(encode_group(members)) == [("a", "1"), ("b", "")]
