"""Settings, in two parts: what all processes of a namespace share, and what each may tune."""

import re
from dataclasses import asdict, dataclass

from writebehind.engine.errors import ConfigurationError

__all__ = ["FIELDS_MAX", "MEMBERS_MAX", "PAYLOAD_BYTES_MAX", "EngineSettings", "NamespaceSettings"]

PAYLOAD_BYTES_MAX = 16 * 1024 * 1024
"""Longest payload that any writer may be set to write and that a reader looks at."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSettings:
    """What each process that writes or reads may tune.

    Args:
        payload_bytes_max: limit of one encoded mutation or atomic group, in bytes; 16 MiB at the most.
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

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not (value >= 0 if name == "retained_bytes_max" else value > 0):
                raise ConfigurationError(f"{name} is {value!r}", "give a positive number")
        if self.payload_bytes_max > PAYLOAD_BYTES_MAX:
            raise ConfigurationError(
                f"payload_bytes_max is {self.payload_bytes_max!r}",
                f"give at most {PAYLOAD_BYTES_MAX}: readers take no more",
            )
