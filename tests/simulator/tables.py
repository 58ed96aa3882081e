"""What SQL holds, and how its driver complains."""

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import sqlalchemy as sa

__all__ = ["LOST", "DriverError", "PartitionRow", "Row", "State", "sql_error"]

Row: TypeAlias = dict[str, Any]

LOST = None
"""SQLSTATE of a lost connection: there is none."""


class DriverError(Exception):
    """What a driver raises.

    Attributes:
        sqlstate: the SQLSTATE, None for a connection that ended.
    """

    def __init__(self, sqlstate: str | None, text: str) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


def sql_error(sqlstate: str | None, text: str) -> sa.exc.OperationalError:
    """Return an error as SQLAlchemy raises it."""
    return sa.exc.OperationalError(
        "statement", {}, DriverError(sqlstate, text), connection_invalidated=sqlstate is None
    )


@dataclass
class PartitionRow:
    """A row of ``writebehind_partitions``."""

    token: int = 0
    epoch: int = 0
    sequence: int = -1
    holder: str | None = None
    lease_until: float = 0.0
    lost_entries: int = 0
    missing_rows: int = 0
    halted: str | None = None
    letters: int = 0


@dataclass
class State:
    """Everything that is committed.

    Attributes:
        partitions: offsets and leases.
        epochs: by partition and epoch, the last applied sequence and the epoch that followed.
        rewritten: by partition, epoch and sequence, lost entries that were applied in another place.
        flushers: until when each counts as alive.
        rows: users' rows by table and key text.
        appended: rows whose key the database made.
        letters: by partition and place, the dead letters; replaced, never changed.
        in_doubt: by partition, epoch and sequence, the entries recorded as passed over in doubt.
    """

    partitions: dict[int, PartitionRow] = field(default_factory=dict)
    epochs: dict[tuple[int, int], tuple[int, int, str]] = field(default_factory=dict)
    rewritten: dict[tuple[int, int, int], None] = field(default_factory=dict)
    flushers: dict[str, float] = field(default_factory=dict)
    rows: dict[str, dict[str, Row]] = field(default_factory=dict)
    appended: list[tuple[str, Row]] = field(default_factory=list)
    letters: dict[tuple[int, int], Row] = field(default_factory=dict)
    in_doubt: dict[tuple[int, int, int], None] = field(default_factory=dict)

    def copied(self) -> "State":
        """Return a state that later commits leave alone: rows are replaced, never changed."""
        return State(
            partitions=dict(self.partitions),
            epochs=dict(self.epochs),
            rewritten=dict(self.rewritten),
            flushers=dict(self.flushers),
            rows={name: dict(rows) for name, rows in self.rows.items()},
            appended=list(self.appended),
            letters=dict(self.letters),
            in_doubt=dict(self.in_doubt),
        )
