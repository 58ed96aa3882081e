"""How safe a write is."""

from enum import IntEnum

__all__ = ["Durability"]


class Durability(IntEnum):
    """What has been confirmed of a write; each level includes the ones below it.

    ACCEPTED: in the primary's memory. FSYNCED: on the primary's disk. REPLICATED: on disk, and in the memory of
    as many replicas as configured. PERSISTED: committed in SQL.
    """

    ACCEPTED = 0
    FSYNCED = 1
    REPLICATED = 2
    PERSISTED = 3
