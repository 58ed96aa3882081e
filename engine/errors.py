"""Every error that the product raises: one category, one reaction.

::

    WriteBehindError
    ├── ConfigurationError      refuse to start; an operator has to act
    │   └── LogDamaged          another program has written to a partition's log; the other partitions are served
    ├── ValidationError         the caller's data; nothing was written
    ├── TransientError          worth another try later
    │   ├── RedisUnavailable
    │   ├── DatabaseUnavailable
    │   └── ReadTimeout         what the read needs is not flushed, or not loaded by another, in time
    ├── BacklogFull             back off; nothing was written
    ├── WriteOutcomeUnknown     the write may or may not be in the log
    ├── DurabilityTimeout       accepted, but not yet as durable as asked
    │   └── WriteThroughTimeout accepted, and SQL will get it, but had not in time
    ├── PoisonEntryError        one entry cannot be applied to SQL
    ├── LeaseLost               another flusher holds the partition now
    └── DataLossDetected        acknowledged entries are missing

Driver errors are translated once, in the adapters, with ``raise ... from``. All of these pickle.

Several writes that are waited for together, those of a batch say, may fail in different ways. Their caller gets one
error, the same in a thread as in an event loop; see ``gravest``.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

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
    "WriteThroughTimeout",
]

Raised = TypeVar("Raised", bound=BaseException)


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
    """The caller's data does not fit its table, or a hit its limiter. Nothing was written."""


class TransientError(WriteBehindError):
    """A condition that passes: the same call may succeed later."""


class RedisUnavailable(TransientError):
    """Redis could not be reached, or refused the write before any effect."""


class DatabaseUnavailable(TransientError):
    """The SQL database could not be reached."""


class ReadTimeout(TransientError):
    """The read depends on what others have not done in time: flushers an entry, or a cache's caller its load."""


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


class WriteThroughTimeout(DurabilityTimeout):
    """A write that was to be written through is in the log, from where SQL will get it once; it had not in time.

    Not to be repeated: reads see it, and its receipt can be waited for again. That is left out where the error is
    pickled: a receipt is of an engine of this process.

    Args:
        message: what happened, with names and numbers.
        hint: what the reader of the message can do about it.
        receipts: of the writes that SQL was not known to have.
    """

    def __init__(self, message: str, hint: str = "", *, receipts: Sequence[Any] = ()) -> None:
        super().__init__(message, hint)
        self.receipts = tuple(receipts)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.hint)


class PoisonEntryError(WriteBehindError):
    """An entry can never be applied to SQL as it stands."""


class LeaseLost(WriteBehindError):
    """The partition's lease, or its offset in SQL, is not what this holder wrote last."""


class DataLossDetected(WriteBehindError):
    """Acknowledged entries are in neither Redis nor SQL."""


def gravest(failures: Iterable[Exception]) -> Exception:
    """Return the one of several writes' failures that their caller gets, with a note of each other kind.

    What will never come goes before what cannot be known, and that before what may yet come: an error that is none of
    these here, ``DataLossDetected``, ``PoisonEntryError``, any other, ``DurabilityTimeout``; of one kind, the first.
    What became of each write its own receipt tells: by its ``durability``, or where it is waited for again.

    Args:
        failures: in the order of the writes; one at least.
    """
    kinds: dict[type[Exception], Exception] = {}
    for error in failures:
        kinds.setdefault(type(error), error)
    first, *others = sorted(kinds.values(), key=_rank)
    for other in others:
        first.add_note(f"other writes of the same call: {other}")
    return first


def _rank(error: Exception) -> int:
    match error:
        case DataLossDetected():
            return 1
        case PoisonEntryError():
            return 2
        case DurabilityTimeout():
            return 4
        case WriteBehindError():
            return 3
        case _:
            return 0


def own_copy(error: Raised) -> Raised:
    """Return a caller's own copy of an error that several get: each one adds its traceback."""
    if not isinstance(error, WriteBehindError):
        return error
    own = copy.copy(error)
    own.__cause__ = error.__cause__
    return own
