"""Settings, in two parts: what all processes of a namespace share, and what each may tune."""

import re
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, TypedDict, TypeVar

from writebehind.engine.errors import ConfigurationError

__all__ = [
    "FIELDS_MAX",
    "MEMBERS_MAX",
    "PAYLOAD_BYTES_MAX",
    "Backpressure",
    "CacheSettings",
    "CacheTuning",
    "EngineSettings",
    "NamespaceSettings",
    "Serializer",
    "UnknownColumns",
    "WritePolicy",
    "limit_seconds",
    "policy_of",
]

PAYLOAD_BYTES_MAX = 4 * 1024 * 1024
"""Longest payload that any writer may be set to write and that a reader looks at. A dead letter holds it whole, and
MariaDB takes statements of 16 MiB, in which a byte may take two."""

FIELDS_MAX = 2000
"""Columns of one table, as many as SQLite has by default. The write script hands a record's names and values to Redis
at once, and Lua hands over 8,000 at the most."""

MEMBERS_MAX = 10_000
"""Mutations of one atomic group: Redis works on nothing else meanwhile."""

CACHE_NUMBER_MAX = 2**31
"""Largest number of seconds, bytes or entries in a cache's settings: as milliseconds it is exact in Redis's scripts."""

SECONDS_MAX = 2**31
"""Longest time in other settings, for the same reason."""

REDIS_TIMEOUT_SECONDS_MAX = 2**31 // 1000
"""Longest time to wait on a socket: poll() takes milliseconds in 32 bits, and what is longer ends at once."""

MAY_BE_ZERO = frozenset({"retained_bytes_max", "ttl_jitter_share", "stale_seconds", "refresh_ahead_share"})
"""Settings of an engine that 0 turns off."""

PARTITIONS_MAX = 1024
WIRE_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class NamespaceSettings:
    """What every process of a namespace must agree on; kept in Redis and SQL and compared at start.

    Args:
        namespace: 1 to 32 of a-z, A-Z, 0-9, ``_``, ``-`` and ``.``.
        partitions: 1 to 1024, for the lifetime of the namespace.

    Raises:
        ConfigurationError: a value is outside these limits.
    """

    namespace: str
    partitions: int

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,32}", self.namespace):
            raise ConfigurationError(
                f"namespace {self.namespace!r} is not usable", "use 1 to 32 of a-z, A-Z, 0-9, '_', '-' and '.'"
            )
        if self.partitions not in range(1, PARTITIONS_MAX + 1):
            raise ConfigurationError(
                f"{self.partitions!r} partitions are not possible", f"choose a number from 1 to {PARTITIONS_MAX}"
            )

    def shared(self) -> dict[str, str]:
        """Return the values to compare, as text."""
        return {"partitions": str(self.partitions), "wire_version": str(WIRE_VERSION)}


class Backpressure(Enum):
    """What becomes of a write where a limit on what is not in SQL yet is reached.

    BLOCK: it waits until there is room, then raises ``BacklogFull``. REJECT: it raises ``BacklogFull`` at once.
    WRITE_THROUGH: it is accepted, and the call returns when SQL has it.
    """

    BLOCK = "block"
    REJECT = "reject"
    WRITE_THROUGH = "write_through"


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSettings:
    """What each process that writes or reads may tune.

    Args:
        payload_bytes_max: limit of one encoded mutation or atomic group, in bytes; 4 MiB at the most.
        call_entries_max: entries that one script call may carry; bounds how long Redis is busy.
        call_bytes_max: payload bytes that one script call may carry.
        redis_timeout_seconds: how long to wait for a connection or a reply.
        write_timeout_seconds: how long a write keeps trying before it raises.
        read_timeout_seconds: how long a read waits for entries that it depends on to be flushed.
        retry_search_entries_max: how far back a retry looks for its own entry where it has no better bound.
        replicas: how many replicas ``Durability.REPLICATED`` means.
        record_ttl_seconds: how long a record stays in Redis after its last change is in SQL, or after it was loaded
            from there; None for ever, but an hour where it was loaded. So long a change that others make in SQL may
            not be seen; longer where this namespace writes the record meanwhile, since each write begins the time anew
            when it is flushed, and brings its own columns only.
        negative_ttl_seconds: how long it is remembered that SQL has no such row; None for not at all. It never is for
            tables whose keys the database may make.
        ttl_jitter_share: share of these times by which they end earlier at random, below 1.
        load_lease_seconds: how long one caller may load a record before another one does, too; what takes longer is not
            kept, so it has to be above the slowest load. PostgreSQL, MySQL and MariaDB are told to end a query for
            records after as long.
        stale_seconds: how long a record is kept beyond its time, to be given while one caller loads it again, or
            where SQL is away; all processes of a namespace should say the same.
        refresh_ahead_share: share of its time before whose end one caller loads a record again, below 1; 0 for none.
        retained_seconds: how long accepted writes are kept in this process, to be written again where Redis loses them.
        retained_bytes_max: memory that these writes may take, roughly; 0 keeps none.
        backlog_entries_max: limit of the entries of one partition that SQL does not have yet; None for none. A call
            that comes below the limit is taken whole. Who was held is admitted again below half of the limit.
        backlog_seconds_max: limit of the age of the oldest of them, by the writers' clocks and Redis's; None for none.
        redis_memory_share_max: share of Redis's ``maxmemory`` from which on a partition has to be flushed before it
            gets more; looked at now and then, and only where Redis evicts nothing (``noeviction``); None for none.
        backpressure: what becomes of a write where one of these limits is reached, unless its table says otherwise.

    Raises:
        ConfigurationError: a value is not possible.
    """

    payload_bytes_max: int = 256 * 1024
    call_entries_max: int = 500
    call_bytes_max: int = 1024 * 1024
    redis_timeout_seconds: float = 5.0
    write_timeout_seconds: float = 15.0
    read_timeout_seconds: float = 30.0
    retry_search_entries_max: int = 100_000
    replicas: int = 1
    record_ttl_seconds: float | None = 3600.0
    negative_ttl_seconds: float | None = 30.0
    ttl_jitter_share: float = 0.1
    load_lease_seconds: float = 10.0
    stale_seconds: float = 0.0
    refresh_ahead_share: float = 0.0
    retained_seconds: float = 30.0
    retained_bytes_max: int = 64 * 1024 * 1024
    backlog_entries_max: int | None = 1_000_000
    backlog_seconds_max: float | None = None
    redis_memory_share_max: float | None = 0.9
    backpressure: Backpressure = Backpressure.BLOCK

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name == "backpressure":
                continue
            if value is not None and not (value >= 0 if name in MAY_BE_ZERO else value > 0):
                raise ConfigurationError(f"{name} is {value!r}", "give a positive number")
            if "_seconds" in name:
                limit_seconds(name, value)
        limit_seconds("redis_timeout_seconds", self.redis_timeout_seconds, REDIS_TIMEOUT_SECONDS_MAX)
        for name in ("ttl_jitter_share", "refresh_ahead_share"):
            if getattr(self, name) >= 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}", "give a share: 0.1 is a tenth")
        if self.payload_bytes_max > PAYLOAD_BYTES_MAX:
            raise ConfigurationError(
                f"payload_bytes_max is {self.payload_bytes_max!r}",
                f"give at most {PAYLOAD_BYTES_MAX}: readers take no more",
            )
        if self.redis_memory_share_max is not None and self.redis_memory_share_max > 1:
            raise ConfigurationError(
                f"redis_memory_share_max is {self.redis_memory_share_max!r}", "give a share: 0.9 is nine tenths"
            )
        policy = policy_of(Backpressure, self.backpressure, "backpressure", "engine")
        object.__setattr__(self, "backpressure", policy)


class WritePolicy(Enum):
    """When a write returns: it takes the same way through the log with either.

    WRITE_BEHIND: as soon as it has the durability level asked for. WRITE_THROUGH: when SQL has it, and what was written
    before it to the same keys.
    """

    WRITE_BEHIND = "write_behind"
    WRITE_THROUGH = "write_through"


class UnknownColumns(Enum):
    """What a flusher does with a write that names a column which its declaration of the table does not have."""

    HALT = "halt"
    """Stop the partition there until a flusher comes that knows the column."""
    IGNORE = "ignore"
    """Write the other columns, and say so in the log: the value is lost."""
    DEAD_LETTER = "dead-letter"
    """Set the entry aside, and what comes after it for its key; other keys flow."""


class Serializer(Enum):
    """How a cache writes values; it reads both."""

    MSGPACK = "msgpack"
    JSON = "json"


class CacheTuning(TypedDict, total=False):
    """What ``WriteBehind.cache`` takes beside ``ttl_seconds``; see ``CacheSettings``."""

    negative_ttl_seconds: float | None
    jitter: float
    early_refresh: float
    stale_seconds: float
    lease_seconds: float
    wait_seconds: float
    local_entries_max: int
    local_ttl_seconds: float | None
    serializer: Serializer | str
    type: Any
    value_bytes_max: int
    load_without_redis: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheSettings:
    """How a cache behaves in this process.

    Args:
        ttl_seconds: how long a value is fresh at the most.
        negative_ttl_seconds: the same for None; ``ttl_seconds`` or 30, whichever is less, unless given.
        jitter: share of these times, up to 1, by which values end earlier at random: what was loaded together does not
            expire together.
        early_refresh: beta of the probabilistic early refresh (see ``core.caching.early_weight``); 0 for none, 1 is
            the usual.
        stale_seconds: until how long after its end a value is still given to others while one caller loads, or while
            loads fail one after the other; an invalidated one never is.
        lease_seconds: how long one caller may load before another one does, too. It is not renewed: a loader that hangs
            or dies holds the others up no longer. What takes longer is cached all the same where nothing newer is.
        wait_seconds: how long a read waits for another one's load.
        local_entries_max: values kept in this process, too; 0 for none.
        local_ttl_seconds: how long at the most; as long as in Redis unless given.
        serializer: how values are written.
        type: what values are decoded as, as msgspec takes it.
        value_bytes_max: limit of one encoded value.
        load_without_redis: load, without keeping, where Redis cannot be reached. Nothing holds back a stampede then:
            every read of every caller reaches what the cache protects.

    Raises:
        ConfigurationError: a value is not possible.
    """

    ttl_seconds: float
    negative_ttl_seconds: float | None = None
    jitter: float = 0.1
    early_refresh: float = 0.0
    stale_seconds: float = 0.0
    lease_seconds: float = 10.0
    wait_seconds: float = 30.0
    local_entries_max: int = 0
    local_ttl_seconds: float | None = None
    serializer: Serializer | str = Serializer.MSGPACK
    type: Any = Any
    value_bytes_max: int = 1024 * 1024
    load_without_redis: bool = False

    def __post_init__(self) -> None:
        may_be_zero = {"jitter", "early_refresh", "stale_seconds", "wait_seconds", "local_entries_max"}
        for name in may_be_zero | {
            "ttl_seconds", "negative_ttl_seconds", "lease_seconds", "local_ttl_seconds", "value_bytes_max"
        }:  # fmt: skip
            value = getattr(self, name)
            if value is not None and not (0 <= value <= CACHE_NUMBER_MAX and (value > 0 or name in may_be_zero)):
                raise ConfigurationError(f"cache: {name} is {value!r}", "give a positive number")
        if self.jitter > 1:
            raise ConfigurationError(f"cache: jitter is {self.jitter!r}", "give a share: 0.1 is a tenth")
        serializer = policy_of(Serializer, self.serializer, "serializer", "cache")
        object.__setattr__(self, "serializer", serializer)

    def ttl_seconds_of(self, *, negative: bool) -> float:
        """Return how long a value, or the knowledge that there is none, is fresh at the most."""
        if not negative:
            return self.ttl_seconds
        return min(self.ttl_seconds, 30.0) if self.negative_ttl_seconds is None else self.negative_ttl_seconds


def limit_seconds(name: str, value: float | None, most: float = SECONDS_MAX) -> None:
    """Refuse a time that is too long to be counted in milliseconds everywhere.

    Args:
        name: of the setting, for the message.
        value: it, in seconds; None for none.
        most: the limit in seconds.

    Raises:
        ConfigurationError: it is longer.
    """
    if value is not None and value > most:
        raise ConfigurationError(f"{name} is {value!r}", f"give at most {most:.0f} seconds")


Policy = TypeVar("Policy", bound=Enum)


def policy_of(kind: type[Policy], value: object, name: str, whose: str) -> Policy:
    """Return a policy that may be given by its value.

    Args:
        kind: what it is one of.
        value: the policy.
        name: of the setting, for the message.
        whose: who asks for it, for the message.

    Raises:
        ConfigurationError: there is no such policy.
    """
    try:
        return kind(value)
    except ValueError as error:
        raise ConfigurationError(
            f"{whose}: {name} is {value!r}", f"give one of {', '.join(repr(each.value) for each in kind)}"
        ) from error
