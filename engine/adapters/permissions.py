"""Which of the product's commands a Redis user may run, found out without writing anything.

A script that is denied a command half way leaves a part of its writes behind, so it has to be known before. ``ACL
DRYRUN`` tells it for any user. Where ACL is hidden, commands are queued in a transaction that is then discarded: Redis
checks permissions when it queues.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import redis

from writebehind.engine.adapters.links import Link

__all__ = ["COMMANDS", "REPLAYED", "denied_in", "denied_to_self", "dry_runs"]

COMMANDS: Final[Mapping[str, tuple[Any, ...]]] = {
    "EVAL": ("return 1", 1, "{key}"),
    "EVALSHA": ("0" * 40, 1, "{key}"),
    "INFO": ("server",),
    "TIME": (),
    "EXISTS": ("{key}",),
    "TYPE": ("{key}",),
    "GET": ("{key}",),
    "SET": ("{key}", "1", "PX", 1),
    "DEL": ("{key}",),
    "UNLINK": ("{key}",),
    "PERSIST": ("{key}",),
    "PEXPIRE": ("{key}", 1),
    "PEXPIREAT": ("{key}", 1),
    "PTTL": ("{key}",),
    "SCAN": ("0",),
    "HSET": ("{key}", "f", "v"),
    "HSETNX": ("{key}", "f", "v"),
    "HGET": ("{key}", "f"),
    "HMGET": ("{key}", "f"),
    "HGETALL": ("{key}",),
    "HEXISTS": ("{key}", "f"),
    "HDEL": ("{key}", "f"),
    "HINCRBY": ("{key}", "f", 1),
    "XADD": ("{key}", "*", "f", "v"),
    "XDEL": ("{key}", "0-1"),
    "XTRIM": ("{key}", "MINID", "0-1"),
    "XLEN": ("{key}",),
    "XRANGE": ("{key}", "-", "+"),
    "XREVRANGE": ("{key}", "+", "-"),
    "XINFO|STREAM": ("{key}",),
    "XINFO|GROUPS": ("{key}",),
    "XINFO|CONSUMERS": ("{key}", "g"),
    "XGROUP|CREATE": ("{key}", "g", "0"),
    "XGROUP|DELCONSUMER": ("{key}", "g", "c"),
    "XPENDING": ("{key}", "g"),
    "XREADGROUP": ("GROUP", "g", "c", "STREAMS", "{key}", ">"),
    "XACK": ("{key}", "g", "0-1"),
    "XAUTOCLAIM": ("{key}", "g", "c", 0, "0"),
    "ZADD": ("{key}", 1, "m"),
    "ZCARD": ("{key}",),
    "ZCOUNT": ("{key}", "-inf", "+inf"),
    "ZRANGE": ("{key}", 0, -1),
    "ZREMRANGEBYRANK": ("{key}", 0, 0),
    "PUBLISH": ("{channel}", "m"),
    "SUBSCRIBE": ("{channel}",),
}
"""What engines and flushers run, in scripts or bare, each with arguments of the right shape."""

_WRITES: Final = (
    "XADD", "HSET", "HDEL", "HINCRBY", "DEL", "UNLINK", "PERSIST", "PEXPIREAT", "XTRIM", "XDEL", "XGROUP|CREATE",
    "ZADD", "ZREMRANGEBYRANK",
)  # fmt: skip

REPLAYED: Final[Mapping[str, tuple[Any, ...]]] = {
    "SELECT": (0,),
    **{name: COMMANDS[name] for name in _WRITES},
    "XGROUP|SETID": ("{key}", "g", "0"),
    "XCLAIM": ("{key}", "g", "c", 0, "0-1"),
}
"""What the append-only file has inside MULTI and EXEC: the effects of scripts, and of reading as a group.

PUBLISH is not among them: Redis 7.0 and 8.2 and Valkey 8.1 pass it on to replicas only, also out of scripts.
"""

Commands = Mapping[str, tuple[Any, ...]]


def _words(name: str, arguments: Sequence[Any], key: str, channel: str) -> list[Any]:
    places = {"{key}": key, "{channel}": channel}
    return [*name.split("|"), *(places.get(argument, argument) for argument in arguments)]


def dry_runs(user: bytes | str, commands: Commands, key: str, channel: str) -> list[tuple[Any, ...]]:
    """Return what asks Redis whether a user may run commands; ``denied_in`` reads the replies.

    Args:
        user: its name.
        commands: the commands, with arguments.
        key: a name of the namespace.
        channel: one of a cache of the namespace.
    """
    return [("ACL", "DRYRUN", user, *_words(name, arguments, key, channel)) for name, arguments in commands.items()]


def denied_in(replies: Sequence[Any], commands: Commands) -> tuple[str, ...] | None:
    """Read the replies to ``dry_runs``: the commands that are denied; None where Redis does not tell."""
    denied = []
    for name, reply in zip(commands, replies, strict=True):
        if isinstance(reply, redis.ResponseError):
            if "not found" in str(reply) and "Command" in str(reply):
                continue  # this server has no such command, so its file has none either
            return None
        if reply != b"OK":
            denied.append(name)
    return tuple(denied)


def denied_to_self(link: Link, key: str, channel: str) -> tuple[str, ...] | None:
    """Return the product's commands that the user of a link may not run; None where it cannot be found out.

    Args:
        link: a connection of the user.
        key: a name of the namespace, on which they are tried.
        channel: one of a cache of the namespace, likewise.

    Durability, Repeat, Crash: nothing is written.

    Raises:
        redis.RedisError: the connection failed.
    """
    (user,) = link.pipeline([("ACL", "WHOAMI")])
    if isinstance(user, bytes):
        denied = denied_in(link.pipeline(dry_runs(user, COMMANDS, key, channel)), COMMANDS)
        if denied is not None:
            return denied
    # What follows MULTI would be run if that were denied: it is asked for first, by itself.
    if link.pipeline([("MULTI",)]) != [b"OK"]:
        return None
    queued = link.pipeline([_words(name, arguments, key, channel) for name, arguments in COMMANDS.items()])
    (discarded,) = link.pipeline([("DISCARD",)])
    if isinstance(discarded, Exception):
        # The transaction is still open: nothing may go down this connection any more.
        link.close()
        return None
    return tuple(
        name
        for name, reply in zip(COMMANDS, queued, strict=True)
        if isinstance(reply, redis.exceptions.NoPermissionError)
    )
