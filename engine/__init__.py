"""The engine that a service embeds: writes at Redis speed, receipts that tell the truth, reads that see all writes."""

from writebehind.engine.batches import AtomicGroup, Batch
from writebehind.engine.config import Backpressure, EngineSettings, UnknownColumns
from writebehind.engine.core.durability import Durability
from writebehind.engine.core.letters import DeadLetter
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
)
from writebehind.engine.receipts import Receipt
from writebehind.engine.write_behind import WriteBehind

__all__ = [
    "AtomicGroup",
    "BacklogFull",
    "Backpressure",
    "Batch",
    "ConfigurationError",
    "DataLoss",
    "DataLossDetected",
    "DatabaseUnavailable",
    "DeadLetter",
    "Durability",
    "DurabilityTimeout",
    "EngineSettings",
    "LeaseLost",
    "LogDamaged",
    "PoisonEntryError",
    "ReadTimeout",
    "Receipt",
    "RedisUnavailable",
    "TransientError",
    "UnknownColumns",
    "ValidationError",
    "WriteBehind",
    "WriteBehindError",
    "WriteOutcomeUnknown",
]
