"""What services are told of an entry that SQL refuses."""

from dataclasses import dataclass

__all__ = ["DeadLetter"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """An entry that SQL refuses, and that no flusher tries again by itself.

    Attributes:
        partition: of the log.
        place: with the partition, what the ``dead-letters`` commands call it: ``<partition>-<place>``.
        entry_id: where it stood in the log.
        table: of its first mutation; empty where it cannot be read.
        key_text: of its first mutation; empty where the database makes the key.
        failure: ``poison``, ``foreign key`` or ``unreadable``.
        error: class, code and the names concerned, without values of rows.
        attempts: how often it was tried.
    """

    partition: int
    place: int
    entry_id: str
    table: str
    key_text: str
    failure: str
    error: str
    attempts: int
