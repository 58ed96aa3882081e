"""What a Redis holds, and the smallest changes of it: the operations that its append-only file and its replicas get.

Every change goes through ``Keyspace.change``, which applies and records it. A keyspace is rebuilt by applying
recorded changes, so a rollback is the same changes up to an earlier one.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeAlias

__all__ = [
    "Change",
    "Group",
    "Hash",
    "Keyspace",
    "Refusal",
    "Server",
    "Status",
    "Stream",
    "StreamID",
    "Unmodelled",
    "format_id",
    "parse_id",
]

StreamID: TypeAlias = tuple[int, int]
Change: TypeAlias = tuple[Any, ...]
Hash: TypeAlias = dict[bytes, bytes]

ZERO: StreamID = (0, 0)


class Refusal(Exception):
    """An error reply, with its text."""


def parse_id(text: bytes, default_sequence: int = 0) -> StreamID:
    """Read a stream ID; without a sequence it has the default."""
    first, dash, second = text.partition(b"-")
    return int(first), int(second) if dash else default_sequence


def format_id(entry: StreamID) -> bytes:
    """Write a stream ID."""
    return b"%d-%d" % entry


class Group:
    """A consumer group.

    Attributes:
        delivered: the last ID delivered.
        pending: delivered and not acknowledged, with their consumer, in order.
        consumers: the names of those that were ever seen.
    """

    __slots__ = ("consumers", "delivered", "pending")

    def __init__(self, delivered: StreamID) -> None:
        self.delivered = delivered
        self.pending: dict[StreamID, bytes] = {}
        self.consumers: dict[bytes, None] = {}


class Stream:
    """A stream.

    Attributes:
        entries: fields and values by ID, in order.
        last: the last ID that it ever had.
        groups: its consumer groups.
    """

    __slots__ = ("entries", "groups", "last")

    def __init__(self) -> None:
        self.entries: dict[StreamID, list[bytes]] = {}
        self.last = ZERO
        self.groups: dict[bytes, Group] = {}

    def between(self, first: StreamID, last: StreamID) -> Iterator[StreamID]:
        """Return the IDs from one to another, both included."""
        return (entry for entry in self.entries if first <= entry <= last)


class Keyspace:
    """Keys and values.

    Attributes:
        values: what is stored.
        expires: when keys with a time to live end, in world time.
        unit: changes made since somebody took them away.
    """

    __slots__ = ("expires", "unit", "values")

    def __init__(self, units: Iterable[Iterable[Change]] = ()) -> None:
        self.values: dict[bytes, Hash | Stream | bytes] = {}
        self.expires: dict[bytes, float] = {}
        self.unit: list[Change] = []
        for unit in units:
            for change in unit:
                self._apply(change)

    def change(self, *change: Any) -> None:
        """Make one change, and record it."""
        self._apply(change)
        self.unit.append(change)

    def stream(self, key: bytes) -> Stream | None:
        """Return a stream, or None where there is no such key."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, Stream):
            raise Refusal("WRONGTYPE Operation against a key holding the wrong kind of value")
        return value

    def hash(self, key: bytes) -> Hash:
        """Return a hash; an empty one where there is no such key."""
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            raise Refusal("WRONGTYPE Operation against a key holding the wrong kind of value")
        return value

    def expire(self, now: float) -> None:
        """Remove what has ended."""
        if self.expires:
            for key in [key for key, at in self.expires.items() if at <= now]:
                self.change("del", key)

    def entries(self) -> int:
        """Return how many stream entries there are."""
        return sum(len(value.entries) for value in self.values.values() if isinstance(value, Stream))

    def _apply(self, change: Change) -> None:
        kind, key = change[0], change[1]
        getattr(self, f"_{kind}")(key, *change[2:])

    def _set(self, key: bytes, value: bytes) -> None:
        self.values[key] = value
        self.expires.pop(key, None)

    def _hset(self, key: bytes, fields: Hash) -> None:
        value = self.values.setdefault(key, {})
        if isinstance(value, dict):
            value.update(fields)

    def _hdel(self, key: bytes, names: Iterable[bytes]) -> None:
        value = self.values.get(key)
        if isinstance(value, dict):
            for name in names:
                value.pop(name, None)
            if not value:
                self._del(key)

    def _del(self, key: bytes) -> None:
        self.values.pop(key, None)
        self.expires.pop(key, None)

    def _expireat(self, key: bytes, at: float) -> None:
        if key in self.values:
            self.expires[key] = at

    def _persist(self, key: bytes) -> None:
        self.expires.pop(key, None)

    def _xadd(self, key: bytes, entry: StreamID, fields: list[bytes]) -> None:
        stream = self.values.setdefault(key, Stream())
        # A replayed file may hold what is older than what came before it: Redis refuses that and goes on.
        if isinstance(stream, Stream) and entry > stream.last:
            stream.entries[entry] = fields
            stream.last = entry

    def _xdel(self, key: bytes, ids: Iterable[StreamID]) -> None:
        stream = self.values.get(key)
        if isinstance(stream, Stream):
            for entry in ids:
                stream.entries.pop(entry, None)

    def _xgroup(self, key: bytes, group: bytes, delivered: StreamID) -> None:
        stream = self.values.setdefault(key, Stream())
        if isinstance(stream, Stream):
            stream.groups[group] = Group(delivered)

    def _xungroup(self, key: bytes, group: bytes) -> None:
        stream = self.values.get(key)
        if isinstance(stream, Stream):
            stream.groups.pop(group, None)

    def _consumer(self, key: bytes, group: bytes, name: bytes, present: bool) -> None:  # noqa: FBT001 - a recorded change
        stream = self.values.get(key)
        if isinstance(stream, Stream) and group in stream.groups:
            consumers = stream.groups[group].consumers
            if present:
                consumers[name] = None
            else:
                consumers.pop(name, None)

    def _deliver(self, key: bytes, group: bytes, consumer: bytes, ids: Iterable[StreamID], last: StreamID) -> None:
        stream = self.values.get(key)
        if isinstance(stream, Stream) and group in stream.groups:
            found = stream.groups[group]
            found.consumers[consumer] = None
            for entry in ids:
                found.pending[entry] = consumer
            found.delivered = max(found.delivered, last)

    def _setid(self, key: bytes, group: bytes, delivered: StreamID) -> None:
        stream = self.values.get(key)
        if isinstance(stream, Stream) and group in stream.groups:
            stream.groups[group].delivered = delivered

    def _xack(self, key: bytes, group: bytes, ids: Iterable[StreamID]) -> None:
        stream = self.values.get(key)
        if isinstance(stream, Stream) and group in stream.groups:
            for entry in ids:
                stream.groups[group].pending.pop(entry, None)


class Unmodelled(BaseException):
    """The product uses something that the model does not have: extend it."""


class Status(bytes):
    """A status reply; a script gets it as a table."""

    __slots__ = ()


class Server(Protocol):
    """What a command sees of its server."""

    keyspace: Keyspace

    def milliseconds(self) -> int:
        """Return the server's clock."""

    def now(self) -> float:
        """Return the world's time, by which keys expire."""

    def about(self) -> dict[str, str]:
        """Return what INFO says."""

    def configuration(self) -> dict[str, str]:
        """Return what CONFIG GET says."""
