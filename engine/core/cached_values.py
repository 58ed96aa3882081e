"""What a cache keeps: texts of keys, and payloads of values.

A payload is one byte that says how it is written (``m`` msgpack, ``j`` JSON, ``n`` nothing: the loader returned None),
then the value. So processes that are set to write differently read each other's values. Never pickle: whoever can write
to Redis could run code in every service.
"""

from typing import Any, Final
from uuid import UUID

import msgspec

from writebehind.engine.config import Serializer
from writebehind.engine.errors import ConfigurationError, ValidationError

__all__ = ["KEY_BYTES_MAX", "NOTHING", "Codec", "Unreadable", "key_text"]

KEY_BYTES_MAX = 1024
"""Longest text of a key, in bytes of UTF-8."""

NOTHING: Final = b"n"
"""Payload of None."""

MSGPACK: Final = b"m"
JSON: Final = b"j"


class Unreadable(Exception):
    """A payload is not what a cache of this kind writes."""


def key_text(key: object) -> str:
    """Return the canonical text of a key: JSON, so that ``1``, ``"1"`` and ``(1,)`` are three keys.

    Args:
        key: a str, int, bool or UUID, or a tuple of such, also nested. A UUID is the key that its text is; so is what
            is of a subclass, markup say.

    Raises:
        ValidationError: it is of another type, too long, nested too deeply, or no Unicode text.
    """
    try:
        text = msgspec.json.encode(_plain(key))
    except (ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise ValidationError(f"a cache's key cannot be written: {error}", "use plain text and numbers") from error
    except RecursionError:
        raise ValidationError("a cache's key is nested too deeply", "use a flat tuple") from None
    if len(text) > KEY_BYTES_MAX:
        raise ValidationError(
            f"a cache's key has {len(text)} bytes, more than {KEY_BYTES_MAX}", "use a digest of what is so long"
        )
    return text.decode()


def _plain(key: object) -> Any:
    """Return a key without what subclasses add to its types: markup, members of enumerations, named tuples."""
    if isinstance(key, tuple):
        return tuple(map(_plain, key))
    if isinstance(key, str):
        return str.__str__(key)
    if isinstance(key, int):
        return key if isinstance(key, bool) else int.__int__(key)
    if isinstance(key, UUID):
        return UUID.__str__(key)
    raise ValidationError(
        f"a cache's key cannot be a {type(key).__name__}", "use a str, int, bool or UUID, or a tuple of such"
    )


class Codec:
    """Turns values into payloads and back.

    Args:
        serializer: how payloads are written; both kinds are read.
        type: what values are decoded as, as msgspec takes it.
        bytes_max: limit of a payload.

    Raises:
        ConfigurationError: nothing can be decoded as that type.
    """

    def __init__(self, serializer: Serializer | str, type: Any, bytes_max: int) -> None:  # noqa: A002 - msgspec's name for it
        self._serializer = Serializer(serializer)
        self._bytes_max = bytes_max
        try:
            self._decoders: dict[bytes, Any] = {
                MSGPACK: msgspec.msgpack.Decoder(type),
                JSON: msgspec.json.Decoder(type),
            }
        except TypeError as error:
            raise ConfigurationError(
                f"type={type!r} cannot be decoded: {error}", "msgspec's documentation names the types that can"
            ) from error

    def encode(self, value: Any) -> bytes:
        """Return the payload of a value.

        Raises:
            ValidationError: it cannot be written so, or is too large.
        """
        if value is None:
            return NOTHING
        try:
            if self._serializer is Serializer.MSGPACK:
                payload = MSGPACK + msgspec.msgpack.encode(value)
            else:
                payload = JSON + msgspec.json.encode(value)
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
            raise ValidationError(
                f"a {type(value).__name__} cannot be cached: {error}",
                f"have the loader return what {self._serializer.value} can hold",
            ) from error
        if len(payload) > self._bytes_max:
            raise ValidationError(
                f"a value of {len(payload)} bytes cannot be cached: the limit is {self._bytes_max}",
                "raise value_bytes_max, or cache less",
            )
        return payload

    def decode(self, payload: bytes) -> Any:
        """Return the value of a payload, made anew each time.

        Raises:
            Unreadable: it is something else, or not of the type.
        """
        if payload == NOTHING:
            return None
        decoder = self._decoders.get(payload[:1])
        if decoder is None:
            raise Unreadable(f"it begins with {payload[:1]!r}")
        try:
            return decoder.decode(memoryview(payload)[1:])
        except (ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise Unreadable(str(error)) from error
