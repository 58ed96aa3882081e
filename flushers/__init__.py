"""Flushers: from the logs to SQL, in batches, exactly once."""

from writebehind.engine.adapters.control_tables import control as metadata
from writebehind.flushers.config import FlusherSettings
from writebehind.flushers.draining import drain
from writebehind.flushers.flusher import Flusher
from writebehind.flushers.initialisation import initialise
from writebehind.flushers.inspection import LossStatus, PartitionStatus, Status, status

__all__ = [
    "Flusher",
    "FlusherSettings",
    "LossStatus",
    "PartitionStatus",
    "Status",
    "drain",
    "initialise",
    "metadata",
    "status",
]
