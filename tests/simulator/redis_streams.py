"""The commands of Redis on streams and consumer groups, as the product uses them; see ``redis_commands``."""

from collections.abc import Sequence
from typing import Any

from simulator.redis_keyspace import Group, Refusal, Server, Status, Stream, StreamID, Unmodelled, format_id, parse_id

__all__ = [
    "xack",
    "xadd",
    "xautoclaim",
    "xdel",
    "xgroup",
    "xinfo",
    "xlen",
    "xpending",
    "xrange",
    "xreadgroup",
    "xrevrange",
    "xtrim",
]

Arguments = Sequence[bytes]
LAST: StreamID = (1 << 64, 1 << 64)


def xadd(server: Server, arguments: Arguments) -> bytes:
    """Append."""
    key, text, *fields = arguments
    if text.upper() == b"MAXLEN":
        limit, text, *fields = fields
        entry_id = xadd(server, [key, text, *fields])
        xtrim(server, [key, b"MAXLEN", limit])
        return entry_id
    stream = server.keyspace.stream(key)
    last = stream.last if stream else (0, 0)
    epoch, _, sequence = text.partition(b"-")
    if sequence == b"*":
        entry = (int(epoch), last[1] + 1 if int(epoch) == last[0] else 0)
    else:
        entry = (int(epoch), int(sequence))
    if entry <= last:
        raise Refusal("ERR The ID specified in XADD is equal or smaller than the target stream top item")
    server.keyspace.change("xadd", key, entry, fields)
    return format_id(entry)


def xdel(server: Server, arguments: Arguments) -> int:
    """Delete entries."""
    stream = server.keyspace.stream(arguments[0])
    found = [entry for entry in map(parse_id, arguments[1:]) if stream and entry in stream.entries]
    if found:
        server.keyspace.change("xdel", arguments[0], found)
    return len(found)


def xtrim(server: Server, arguments: Arguments) -> int:
    """Delete the oldest entries."""
    key, how, limit = arguments[0], arguments[1].upper(), arguments[-1]
    stream = server.keyspace.stream(key)
    if stream is None:
        return 0
    if how == b"MINID":
        gone = [entry for entry in stream.entries if entry < parse_id(limit)]
    else:
        gone = list(stream.entries)[: max(0, len(stream.entries) - int(limit))]
    if gone:
        server.keyspace.change("xdel", key, gone)
    return len(gone)


def _bound(text: bytes, sequence: int) -> tuple[StreamID, bool]:
    """Return an end of a range, and whether it is left out."""
    if text == b"-":
        return (0, 0), False
    if text == b"+":
        return LAST, False
    left_out = text.startswith(b"(")
    return parse_id(text[1:] if left_out else text, sequence), left_out


def _within(stream: Stream, first: bytes, last: bytes) -> list[StreamID]:
    low, without_low = _bound(first, 0)
    high, without_high = _bound(last, LAST[1])
    return [
        entry
        for entry in stream.between(low, high)
        if not (without_low and entry == low) and not (without_high and entry == high)
    ]


def _entries(stream: Stream, ids: Sequence[StreamID]) -> list[Any]:
    return [[format_id(entry), list(stream.entries[entry])] for entry in ids]


def xrange(server: Server, arguments: Arguments) -> list[Any]:
    """Read by position."""
    key, first, last, *options = arguments
    stream = server.keyspace.stream(key)
    if stream is None:
        return []
    return _entries(stream, _within(stream, first, last)[: _count(options)])


def xrevrange(server: Server, arguments: Arguments) -> list[Any]:
    """Read by position, backwards."""
    key, last, first, *options = arguments
    stream = server.keyspace.stream(key)
    if stream is None:
        return []
    return _entries(stream, _within(stream, first, last)[::-1][: _count(options)])


def _count(options: Arguments) -> int | None:
    return int(options[1]) if options else None


def xlen(server: Server, keys: Arguments) -> int:
    """Count."""
    stream = server.keyspace.stream(keys[0])
    return len(stream.entries) if stream else 0


# Consumer groups


def xgroup(server: Server, arguments: Arguments) -> Any:
    """Make and change groups."""
    what, key, name, *rest = arguments
    stream = server.keyspace.stream(key)
    what = what.upper()
    if what == b"CREATE":
        if stream is not None and name in stream.groups:
            raise Refusal("BUSYGROUP Consumer Group name already exists")
        if stream is None and b"MKSTREAM" not in rest:
            raise Refusal("ERR The XGROUP subcommand requires the key to exist.")
        server.keyspace.change("xgroup", key, name, (stream or Stream()).last if rest[0] == b"$" else parse_id(rest[0]))
        return Status(b"OK")
    group = _group(stream, key, name)
    if what == b"DELCONSUMER":
        mine = [entry for entry, consumer in group.pending.items() if consumer == rest[0]]
        if mine:
            server.keyspace.change("xack", key, name, mine)
        server.keyspace.change("consumer", key, name, rest[0], False)  # noqa: FBT003 - a recorded change
        return len(mine)
    if what == b"DESTROY":
        server.keyspace.change("xungroup", key, name)
        return 1
    if what == b"SETID":
        at = stream.last if stream and rest[0] == b"$" else parse_id(rest[0])
        server.keyspace.change("setid", key, name, at)
        return Status(b"OK")
    raise Unmodelled(b"XGROUP " + what)


def _group(stream: Stream | None, key: bytes, name: bytes) -> Group:
    group = stream.groups.get(name) if stream else None
    if group is None:
        raise Refusal(f"NOGROUP No such key '{key.decode()}' or consumer group '{name.decode()}'")
    return group


def xreadgroup(server: Server, arguments: Arguments) -> list[Any] | None:
    """Deliver what is new; waiting is the connection's affair."""
    name, consumer = arguments[1], arguments[2]
    at = next(index for index, word in enumerate(arguments) if word.upper() == b"STREAMS") + 1
    count = None
    for index in range(3, at - 1):
        if arguments[index].upper() == b"COUNT":
            count = int(arguments[index + 1])
    keys = arguments[at : at + (len(arguments) - at) // 2]
    if any(word != b">" for word in arguments[at + len(keys) :]):
        raise Unmodelled("XREADGROUP of what was delivered before")
    groups = [(key, server.keyspace.stream(key), _group(server.keyspace.stream(key), key, name)) for key in keys]
    reply = []
    for key, stream, group in groups:
        if stream is None:
            continue
        ids = [entry for entry in stream.entries if entry > group.delivered][:count]
        if ids:
            reply.append([key, _entries(stream, ids)])
            server.keyspace.change("deliver", key, name, consumer, ids, ids[-1])
    return reply or None


def xautoclaim(server: Server, arguments: Arguments) -> list[Any]:
    """Take pending entries over."""
    key, name, consumer, idle, start, *options = arguments
    if int(idle) or b"JUSTID" not in options:
        raise Unmodelled("XAUTOCLAIM otherwise than of everything, by ID")
    stream = server.keyspace.stream(key)
    group = _group(stream, key, name)
    waiting = sorted(entry for entry in group.pending if entry >= parse_id(start))
    count = _count(options) or 100
    seen, rest = waiting[:count], waiting[count:]
    gone = [entry for entry in seen if stream is None or entry not in stream.entries]
    mine = [entry for entry in seen if entry not in gone]
    if gone:
        server.keyspace.change("xack", key, name, gone)
    if mine:
        server.keyspace.change("deliver", key, name, consumer, mine, (0, 0))
    return [
        format_id(rest[0]) if rest else b"0-0",
        [format_id(each) for each in mine],
        [format_id(each) for each in gone],
    ]


def xack(server: Server, arguments: Arguments) -> int:
    """Acknowledge."""
    key, name, *ids = arguments
    stream = server.keyspace.stream(key)
    group = stream.groups.get(name) if stream else None
    found = [entry for entry in map(parse_id, ids) if group and entry in group.pending]
    if found:
        server.keyspace.change("xack", key, name, found)
    return len(found)


def xpending(server: Server, arguments: Arguments) -> list[Any]:
    """Sum up what is pending, or list it from an entry on that is not among it."""
    key, name, *part = arguments
    group = _group(server.keyspace.stream(key), key, name)
    ids = sorted(group.pending)
    if part:
        first, last, count = part
        if first[:1] != b"(" or last != b"+":
            raise Unmodelled(b"XPENDING " + first + b" " + last)
        listed = [entry for entry in ids if entry > parse_id(first[1:])][: int(count)]
        return [[format_id(entry), group.pending[entry], 0, 1] for entry in listed]
    if not ids:
        return [0, None, None, None]
    each = dict.fromkeys(sorted(group.pending.values()), 0)
    for consumer in group.pending.values():
        each[consumer] += 1
    return [len(ids), format_id(ids[0]), format_id(ids[-1]), [[who, b"%d" % many] for who, many in each.items()]]


def xinfo(server: Server, arguments: Arguments) -> list[Any]:
    """Describe."""
    what, key, *rest = arguments
    stream = server.keyspace.stream(key)
    if stream is None:
        raise Refusal("ERR no such key")
    match what.upper():
        case b"STREAM":
            return [
                *(b"length", len(stream.entries), b"last-generated-id", format_id(stream.last)),
                *(b"groups", len(stream.groups)),
            ]
        case b"GROUPS":
            return [
                [
                    *(b"name", name, b"consumers", len(group.consumers), b"pending", len(group.pending)),
                    *(b"last-delivered-id", format_id(group.delivered)),
                ]
                for name, group in stream.groups.items()
            ]
        case b"CONSUMERS":
            group = _group(stream, key, rest[0])
            waiting = list(group.pending.values())
            return [[b"name", name, b"pending", waiting.count(name), b"idle", 0] for name in sorted(group.consumers)]
        case _:
            raise Unmodelled(b"XINFO " + what)
