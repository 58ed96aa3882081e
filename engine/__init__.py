"""The engine that a service embeds: writes at Redis speed, receipts that tell the truth, reads that see all writes."""

from typing import TYPE_CHECKING, Any

from writebehind.engine.async_services import AsyncCache, AsyncRateLimiter
from writebehind.engine.batches import AsyncAtomicGroup, AsyncBatch, AtomicGroup, Batch
from writebehind.engine.caches import Cache
from writebehind.engine.config import (
    Backpressure,
    CacheSettings,
    EngineSettings,
    Serializer,
    UnknownColumns,
    WritePolicy,
)
from writebehind.engine.core.caching import CacheCounts
from writebehind.engine.core.durability import Durability
from writebehind.engine.core.letters import DeadLetter
from writebehind.engine.core.limits import Hit
from writebehind.engine.core.read_counts import ReadCounts
from writebehind.engine.core.retention import DataLoss
from writebehind.engine.errors import (
    BacklogFull,
    ConfigurationError,
    DatabaseUnavailable,
    DataLossDetected,
    DurabilityTimeout,
    LeaseLost,
    LogDamaged,
    PoisonEntryError,
    ReadTimeout,
    RedisUnavailable,
    TransientError,
    ValidationError,
    WriteBehindError,
    WriteOutcomeUnknown,
    WriteThroughTimeout,
)
from writebehind.engine.rate_limiter import RateLimiter
from writebehind.engine.receipts import AsyncReceipt, Receipt
from writebehind.engine.write_behind import WriteBehind

if TYPE_CHECKING:
    from writebehind.engine.async_write_behind import AsyncWriteBehind

__all__ = [
    "AsyncAtomicGroup",
    "AsyncBatch",
    "AsyncCache",
    "AsyncRateLimiter",
    "AsyncReceipt",
    "AsyncWriteBehind",
    "AtomicGroup",
    "BacklogFull",
    "Backpressure",
    "Batch",
    "Cache",
    "CacheCounts",
    "CacheSettings",
    "ConfigurationError",
    "DataLoss",
    "DataLossDetected",
    "DatabaseUnavailable",
    "DeadLetter",
    "Durability",
    "DurabilityTimeout",
    "EngineSettings",
    "Hit",
    "LeaseLost",
    "LogDamaged",
    "PoisonEntryError",
    "RateLimiter",
    "ReadCounts",
    "ReadTimeout",
    "Receipt",
    "RedisUnavailable",
    "Serializer",
    "TransientError",
    "UnknownColumns",
    "ValidationError",
    "WriteBehind",
    "WriteBehindError",
    "WriteOutcomeUnknown",
    "WritePolicy",
    "WriteThroughTimeout",
]


def __getattr__(name: str) -> Any:
    """Import ``AsyncWriteBehind`` when it is asked for: with it comes SQLAlchemy's ORM, which nothing else needs."""
    if name == "AsyncWriteBehind":
        from writebehind.engine.async_write_behind import AsyncWriteBehind  # noqa: PLC0415 - see above

        return AsyncWriteBehind
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
