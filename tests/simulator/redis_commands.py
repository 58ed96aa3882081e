"""The commands of Redis that the product uses, as it uses them. Anything else is ``Unmodelled``.

Each takes a node and its arguments as bytes and returns the reply; ``test_simulator`` compares them with a real
server's.
"""

from collections.abc import Callable, Sequence
from enum import Flag, auto
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from simulator.redis_keyspace import Server, Status, Stream, Unmodelled
from simulator.redis_streams import (
    xack,
    xadd,
    xautoclaim,
    xdel,
    xgroup,
    xinfo,
    xlen,
    xpending,
    xrange,
    xreadgroup,
    xrevrange,
    xtrim,
)

__all__ = ["COMMANDS", "Command", "Kind"]

Arguments = Sequence[bytes]
TYPES = {dict: b"hash", Stream: b"stream", bytes: b"string"}


class Kind(Flag):
    """What a command does."""

    READS = 0
    WRITES = auto()
    GROWS = auto()
    """It may take memory: a full Redis refuses it."""


class Command(NamedTuple):
    """A command."""

    run: Callable[[Server, Arguments], Any]
    kind: Kind


def _there(server: Server, key: bytes) -> bool:
    """Tell whether a key exists."""
    return key in server.keyspace.values


# Any key


def _exists(server: Server, keys: Arguments) -> int:
    return sum(_there(server, key) for key in keys)


def _delete(server: Server, keys: Arguments) -> int:
    found = [key for key in keys if _there(server, key)]
    for key in found:
        server.keyspace.change("del", key)
    return len(found)


def _type(server: Server, keys: Arguments) -> Status:
    value = server.keyspace.values.get(keys[0])
    return Status(b"none" if value is None else TYPES[type(value)])


def _pexpire(server: Server, arguments: Arguments) -> int:
    key, milliseconds = arguments
    if not _there(server, key):
        return 0
    server.keyspace.change("expireat", key, server.now() + int(milliseconds) / 1000)
    return 1


def _persist(server: Server, keys: Arguments) -> int:
    if keys[0] not in server.keyspace.expires:
        return 0
    server.keyspace.change("persist", keys[0])
    return 1


def _pttl(server: Server, keys: Arguments) -> int:
    if not _there(server, keys[0]):
        return -2
    at = server.keyspace.expires.get(keys[0])
    return -1 if at is None else int((at - server.now()) * 1000)


def _scan(server: Server, arguments: Arguments) -> list[Any]:
    options = _options(arguments[1:])
    pattern = options.get(b"MATCH", b"*").decode().replace("\\{", "{").replace("\\}", "}")
    found = [key for key in server.keyspace.values if fnmatchcase(key.decode(), pattern)]
    if b"TYPE" in options:
        found = [key for key in found if TYPES[type(server.keyspace.values[key])] == options[b"TYPE"].lower()]
    return [b"0", found]


def _set(server: Server, arguments: Arguments) -> Status:
    key, value, *rest = arguments
    server.keyspace.change("set", key, value)
    if rest:
        server.keyspace.change("expireat", key, server.now() + int(_options(rest)[b"PX"]) / 1000)
    return Status(b"OK")


def _get(server: Server, keys: Arguments) -> bytes | None:
    value = server.keyspace.values.get(keys[0])
    return value if isinstance(value, bytes) else None


def _options(arguments: Arguments) -> dict[bytes, bytes]:
    return {arguments[at].upper(): arguments[at + 1] for at in range(0, len(arguments), 2)}


# Hashes


def _hget(server: Server, arguments: Arguments) -> bytes | None:
    return server.keyspace.hash(arguments[0]).get(arguments[1])


def _hmget(server: Server, arguments: Arguments) -> list[bytes | None]:
    found = server.keyspace.hash(arguments[0])
    return [found.get(name) for name in arguments[1:]]


def _hgetall(server: Server, keys: Arguments) -> list[bytes]:
    return [text for pair in server.keyspace.hash(keys[0]).items() for text in pair]


def _hexists(server: Server, arguments: Arguments) -> int:
    return int(arguments[1] in server.keyspace.hash(arguments[0]))


def _hset(server: Server, arguments: Arguments) -> int:
    key, *pairs = arguments
    found = server.keyspace.hash(key)
    fields = dict(zip(pairs[::2], pairs[1::2], strict=True))
    new = sum(name not in found for name in fields)
    server.keyspace.change("hset", key, fields)
    return new


def _hsetnx(server: Server, arguments: Arguments) -> int:
    return 0 if _hexists(server, arguments) else _hset(server, arguments)


def _hincrby(server: Server, arguments: Arguments) -> int:
    key, name, amount = arguments
    value = int(server.keyspace.hash(key).get(name, b"0")) + int(amount)
    server.keyspace.change("hset", key, {name: b"%d" % value})
    return value


def _hdel(server: Server, arguments: Arguments) -> int:
    key, *names = arguments
    found = [name for name in names if name in server.keyspace.hash(key)]
    if found:
        server.keyspace.change("hdel", key, found)
    return len(found)


# The server


def _info(server: Server, _: Arguments) -> bytes:
    return "".join(f"{name}:{value}\r\n" for name, value in server.about().items()).encode()


def _config(server: Server, arguments: Arguments) -> list[bytes]:
    if arguments[0].upper() != b"GET":
        raise Unmodelled(b"CONFIG " + arguments[0])
    found = {
        name: value
        for name, value in server.configuration().items()
        if any(fnmatchcase(name, pattern.decode()) for pattern in arguments[1:])
    }
    return [text.encode() for pair in found.items() for text in pair]


def _acl(_: Server, arguments: Arguments) -> Status:
    if arguments[0].upper() != b"DRYRUN":
        raise Unmodelled(b"ACL " + arguments[0])
    return Status(b"OK")


def _time(server: Server, _: Arguments) -> list[bytes]:
    milliseconds = server.milliseconds()
    return [b"%d" % (milliseconds // 1000), b"%d" % (milliseconds % 1000 * 1000)]


READS, WRITES, GROWS = Kind.READS, Kind.WRITES, Kind.WRITES | Kind.GROWS

COMMANDS: dict[bytes, Command] = {
    b"ACL": Command(_acl, READS),
    b"CONFIG": Command(_config, READS),
    b"DEL": Command(_delete, WRITES),
    b"EXISTS": Command(_exists, READS),
    b"GET": Command(_get, READS),
    b"HDEL": Command(_hdel, WRITES),
    b"HEXISTS": Command(_hexists, READS),
    b"HGET": Command(_hget, READS),
    b"HGETALL": Command(_hgetall, READS),
    b"HINCRBY": Command(_hincrby, GROWS),
    b"HMGET": Command(_hmget, READS),
    b"HSET": Command(_hset, GROWS),
    b"HSETNX": Command(_hsetnx, GROWS),
    b"INFO": Command(_info, READS),
    b"PERSIST": Command(_persist, WRITES),
    b"PEXPIRE": Command(_pexpire, WRITES),
    b"PTTL": Command(_pttl, READS),
    b"SCAN": Command(_scan, READS),
    b"SET": Command(_set, GROWS),
    b"TIME": Command(_time, READS),
    b"TYPE": Command(_type, READS),
    b"UNLINK": Command(_delete, WRITES),
    b"XACK": Command(xack, WRITES),
    b"XADD": Command(xadd, GROWS),
    b"XAUTOCLAIM": Command(xautoclaim, WRITES),
    b"XDEL": Command(xdel, WRITES),
    b"XGROUP": Command(xgroup, WRITES),
    b"XINFO": Command(xinfo, READS),
    b"XLEN": Command(xlen, READS),
    b"XPENDING": Command(xpending, READS),
    b"XRANGE": Command(xrange, READS),
    b"XREADGROUP": Command(xreadgroup, WRITES),
    b"XREVRANGE": Command(xrevrange, READS),
    b"XTRIM": Command(xtrim, WRITES),
}
"""XGROUP CREATE and SETID take memory, its other forms do not: see ``redis_node``."""
