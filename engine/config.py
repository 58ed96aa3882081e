"""Settings, in two parts: what all processes of a namespace share, and what each may tune."""

import re
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TypeVar

from writebehind.engine.errors import ConfigurationError

__all__ = [
    "FIELDS_MAX",
    "MEMBERS_MAX",
    "PAYLOAD_BYTES_MAX",
    "Backpressure",
    "EngineSettings",
    "NamespaceSettings",
    "UnknownColumns",
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
        record_ttl_seconds: how long a record stays in Redis after its last change is in SQL; None for ever.
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
            if value is not None and not (value >= 0 if name == "retained_bytes_max" else value > 0):
                raise ConfigurationError(f"{name} is {value!r}", "give a positive number")
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


class UnknownColumns(Enum):
    """What a flusher does with a write that names a column which its declaration of the table does not have."""

    HALT = "halt"
    """Stop the partition there until a flusher comes that knows the column."""
    IGNORE = "ignore"
    """Write the other columns, and say so in the log: the value is lost."""
    DEAD_LETTER = "dead-letter"
    """Set the entry aside, and what comes after it for its key; other keys flow."""


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
