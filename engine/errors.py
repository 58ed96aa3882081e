"""Every error that the product raises: one category, one reaction.

::

    WriteBehindError
    ├── ConfigurationError      refuse to start; an operator has to act
    │   └── LogDamaged          another program has written to a partition's log; the other partitions are served
    ├── ValidationError         the caller's data; nothing was written
    ├── TransientError          worth another try later
    │   ├── RedisUnavailable
    │   ├── DatabaseUnavailable
    │   └── ReadTimeout         the row that the read needs is not flushed yet
    ├── BacklogFull             back off; nothing was written
    ├── WriteOutcomeUnknown     the write may or may not be in the log
    ├── DurabilityTimeout       accepted, but not yet as durable as asked
    ├── PoisonEntryError        one entry cannot be applied to SQL
    ├── LeaseLost               another flusher holds the partition now
    └── DataLossDetected        acknowledged entries are missing

Driver errors are translated once, in the adapters, with ``raise ... from``. All of these pickle.
"""

__all__ = [
    "BacklogFull",
    "ConfigurationError",
    "DataLossDetected",
    "DatabaseUnavailable",
    "DurabilityTimeout",
    "LeaseLost",
    "LogDamaged",
    "PoisonEntryError",
    "ReadTimeout",
    "RedisUnavailable",
    "TransientError",
    "ValidationError",
    "WriteBehindError",
    "WriteOutcomeUnknown",
]


class WriteBehindError(Exception):
    """Base of all errors of this product.

    Args:
        message: what happened, with names and numbers.
        hint: what the reader of the message can do about it.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigurationError(WriteBehindError):
    """The settings, the servers or the schema do not fit together: refuse to start."""


class LogDamaged(ConfigurationError):
    """A partition's log or meta hash in Redis is not what the engine writes."""


class ValidationError(WriteBehindError):
    """The caller's data does not fit its table. Nothing was written."""


class TransientError(WriteBehindError):
    """A condition that passes: the same call may succeed later."""


class RedisUnavailable(TransientError):
    """Redis could not be reached, or refused the write before any effect."""


class DatabaseUnavailable(TransientError):
    """The SQL database could not be reached."""


class ReadTimeout(TransientError):
    """The read depends on entries that no flusher has committed within the time allowed."""


class BacklogFull(WriteBehindError):
    """A limit on what is not in SQL yet is reached. Nothing was written.

    Args:
        message: what happened, with names and numbers.
        hint: what the reader of the message can do about it.
        retry_after_seconds: when there may be room again, by how fast the partition has been flushed of late.
    """

    def __init__(self, message: str, hint: str = "", *, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message, hint)
        self.retry_after_seconds = retry_after_seconds


class WriteOutcomeUnknown(WriteBehindError):
    """The reply was lost and it could not be found out whether the write is in the log."""


class DurabilityTimeout(WriteBehindError):
    """The write is accepted, but was not as durable as asked within the time allowed."""


class PoisonEntryError(WriteBehindError):
    """An entry can never be applied to SQL as it stands."""


class LeaseLost(WriteBehindError):
    """The partition's lease, or its offset in SQL, is not what this holder wrote last."""


class DataLossDetected(WriteBehindError):
    """Acknowledged entries are in neither Redis nor SQL."""
