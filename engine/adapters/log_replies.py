"""What Redis answers to who asks for a log: entries, or why not."""

from collections.abc import Sequence
from typing import Any

import redis

from writebehind.engine.adapters.links import refusal
from writebehind.engine.errors import ConfigurationError, LogDamaged, RedisUnavailable, WriteBehindError

__all__ = ["RawEntry", "refused"]

RawEntry = Sequence[Any]
"""``[ID, [field, value, ...]]`` as Redis sends it; a deleted entry has None for its fields."""


def refused(error: redis.ResponseError, key: str = "a key of the engine's") -> WriteBehindError:
    """Return the error for a refusal.

    Args:
        error: what Redis has answered.
        key: what was asked for.

    Returns:
        ``LogDamaged`` where another program has overwritten the key, ``ConfigurationError`` where the user may not do
        what is needed, ``RedisUnavailable`` where it may pass.
    """
    reply = refusal(error)
    told = f"Redis refuses to serve the log: {reply.code} {reply.text}"
    if reply.code == "WRONGTYPE":
        return LogDamaged(
            told,
            f"another program has overwritten {key}: put back what it was, and flushers go on by themselves. They do "
            "where you delete it, too; but what SQL had not got is lost then, except for what living services write "
            "again and 'writebehind recover --from-cache' finds",
        )
    if reply.code in {"NOPERM", "ERR"}:
        return ConfigurationError(told, "check the user's permissions")
    return RedisUnavailable(told, "tried again later")
