"""Leases: which flusher may write which partition.

They live in SQL, in the same row as the offset and on the database's clock, so that one row lock orders two holders
and a full or rolled-back Redis can neither block a takeover nor hand out an old token.

Invariants:

1. A partition's fencing token grows with every change of holder.
2. Only the holder whose token stands in the row moves the offset (``flushers.transaction`` checks it first).
3. Taking a free or expired lease and reading the offset is one transaction.

::

    free --take--> held --renew--> held --release--> free
                    '--expired, taken by another--> held by the other, token + 1
"""

import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import sqlalchemy as sa

from writebehind.engine.adapters.control_tables import (
    epochs,
    flushers,
    namespaces,
    now_ms,
    partitions,
    require_version,
    rewritten,
)
from writebehind.engine.core.letters import DeadLetter
from writebehind.engine.core.positions import EntryID
from writebehind.flushers.letters import Letters
from writebehind.flushers.quarantine import Quarantine
from writebehind.flushers.sessions import IDLE_SHARE, application_name

__all__ = ["Lease", "Leases"]

REWRITTEN_MS_MAX = 7 * 24 * 3600 * 1000
"""How long it is remembered that an entry was applied where its writer wrote it again: far longer than writers keep
what they may write once more, and logs what is not flushed."""

RENEWAL_SHARE = 0.25
"""Of the TTL, after which leases are renewed while letters are being read."""

_END_FROZEN = sa.text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND usename = current_user"
    " AND application_name = ANY(:names) AND xact_start IS NOT NULL AND wait_event = 'ClientRead'"
    " AND state_change < clock_timestamp() - make_interval(secs => :idle)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """A partition held.

    Attributes:
        partition: its number.
        token: the fencing token.
        offset: up to where SQL has applied it.
        earlier: by epoch, the last applied entry of the epoch before it.
        rewritten: lost entries that were applied where they were written again, of the last days.
        quarantine: its dead letters.
        letters: where its dead letters stand, and the place of the next one.
        previous: who held it before, if it was taken from somebody.
    """

    partition: int
    token: int
    offset: EntryID
    earlier: Mapping[int, EntryID] = field(default_factory=dict)
    rewritten: Collection[EntryID] = ()
    quarantine: Quarantine = field(default_factory=Quarantine)
    letters: int = 0
    previous: str | None = None


class Leases:
    """The leases of one holder in one namespace.

    Args:
        engine: the database.
        namespace: the namespace's name.
        holder: a name that no other flusher, dead or alive, has.
        ttl_seconds: how long a lease lasts without renewal.
        letters: the dead letters.
    """

    def __init__(self, engine: sa.Engine, namespace: str, holder: str, ttl_seconds: float, letters: Letters) -> None:
        self._letters = letters
        self._engine = engine
        self._namespace = namespace
        self._holder = holder
        self._ttl_ms = int(ttl_seconds * 1000)
        self._renewed_at = 0.0
        self._mine = sa.and_(partitions.c.namespace == namespace, partitions.c.holder == holder)

    def tend(self, served: Collection[int], *, member: bool) -> int:
        """Renew the leases of this holder; return how many flushers share the partitions.

        Args:
            served: the partitions that are really served: a lease that nobody serves has to expire.
            member: whether to be counted among them.

        Repeat: harmless.
        """
        with self._engine.begin() as connection:
            if served:
                renewed = sa.update(partitions).where(self._mine, partitions.c.partition.in_(sorted(served)))
                connection.execute(renewed.values(lease_until_ms=now_ms() + self._ttl_ms))
            if member:
                mine = sa.and_(flushers.c.namespace == self._namespace, flushers.c.holder == self._holder)
                seen = connection.execute(sa.update(flushers).where(mine).values(seen_until_ms=now_ms() + self._ttl_ms))
                if seen.rowcount == 0:
                    connection.execute(
                        sa.insert(flushers).values(
                            namespace=self._namespace, holder=self._holder, seen_until_ms=now_ms() + self._ttl_ms
                        )
                    )
            connection.execute(
                sa.delete(flushers).where(
                    flushers.c.namespace == self._namespace, flushers.c.seen_until_ms < now_ms() - 10 * self._ttl_ms
                )
            )
            return int(
                connection.execute(
                    sa.select(sa.func.count())
                    .select_from(flushers)
                    .where(flushers.c.namespace == self._namespace, flushers.c.seen_until_ms >= now_ms())
                ).scalar_one()
            )

    def held(self) -> dict[int, tuple[int, EntryID, int]]:
        """Return the partitions that this holder holds, each with its token, its offset and where its letters stand."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(partitions).where(self._mine))
            return {row.partition: (row.token, EntryID(row.epoch, row.sequence), row.letters) for row in rows}

    def holds(self, number: int, token: int, offset: EntryID) -> bool:
        """Tell whether a partition is still this holder's, under this token and at this offset."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(partitions).where(self._mine, partitions.c.partition == number)).first()
            return row is not None and (row.token, row.epoch, row.sequence) == (token, *offset)

    def registered(self) -> int:
        """Return how many partitions of the namespace exist in SQL.

        Raises:
            ConfigurationError: another release has made the control tables.
        """
        version = sa.select(namespaces.c.control_version).where(namespaces.c.namespace == self._namespace)
        with self._engine.connect() as connection:
            known = connection.execute(version).scalar_one_or_none()
            if known is not None:
                require_version(known)
            query = sa.select(sa.func.count()).where(partitions.c.namespace == self._namespace)
            return int(connection.execute(query).scalar_one())

    def share(self, members: int, total: int) -> int:
        """Return how many partitions one of several flushers should hold."""
        return math.ceil(total / max(1, members))

    def rank(self) -> int:
        """Return how many live flushers come before this one, in an order on which all of them agree."""
        with self._engine.connect() as connection:
            before = sa.and_(
                flushers.c.namespace == self._namespace,
                flushers.c.seen_until_ms >= now_ms(),
                flushers.c.holder < self._holder,
            )
            return int(connection.execute(sa.select(sa.func.count()).select_from(flushers).where(before)).scalar_one())

    def take(self, wanted: int, *, avoid: Collection[int] = (), among: Collection[int] | None = None) -> list[Lease]:
        """Take up to so many partitions that are free, whose lease has expired, or that this holder has dropped.

        Args:
            wanted: how many.
            avoid: the partitions that this holder serves.
            among: the partitions that come into question; None for all.

        Repeat: takes more. Crash: a lease taken and not used expires.
        """
        if wanted <= 0:
            return []
        free = sa.and_(
            partitions.c.namespace == self._namespace,
            sa.or_(
                partitions.c.holder.is_(None),
                partitions.c.lease_until_ms < now_ms(),
                # Dropped after a fence found another offset: renewed with all others, it would never expire.
                partitions.c.holder == self._holder,
            ),
        )
        if among is not None:
            free = sa.and_(free, partitions.c.partition.in_(sorted(among)))
        self._end_frozen_sessions()
        with self._engine.begin() as connection:
            # Locks are skipped where the database can: the holder of a lock is at work on that partition.
            query = sa.select(partitions.c.partition, partitions.c.holder).where(free).with_for_update(skip_locked=True)
            found = connection.execute(query.order_by(partitions.c.partition)).all()
            leases = []
            for number, previous in [row for row in found if row.partition not in avoid][:wanted]:
                here = sa.and_(partitions.c.namespace == self._namespace, partitions.c.partition == number)
                # Whether what halted it is mended, the new holder finds out.
                taken = connection.execute(
                    sa.update(partitions)
                    .where(here, free)
                    .values(
                        holder=self._holder,
                        token=partitions.c.token + 1,
                        lease_until_ms=now_ms() + self._ttl_ms,
                        halted=None,
                    )
                )
                if taken.rowcount != 1:
                    continue
                row = connection.execute(sa.select(partitions).where(here)).one()
                leases.append(
                    Lease(
                        partition=number,
                        token=row.token,
                        offset=EntryID(row.epoch, row.sequence),
                        earlier=self._earlier(connection, number),
                        rewritten=self._rewritten(connection, number),
                        letters=row.letters,
                        previous=None if previous == self._holder else previous,
                    )
                )
        # Letters may be many: nobody has to wait for a lock meanwhile, and no time limit of a transaction counts.
        return [lease for lease in map(self._with_letters, leases) if lease is not None]

    def _with_letters(self, lease: Lease) -> Lease | None:
        """Return a lease with its dead letters, or None where it was over before all were read."""
        with self._engine.connect() as connection:
            quarantine = self._letters.load(connection, lease.partition, self._renew)
        held = self.holds(lease.partition, lease.token, lease.offset)
        return replace(lease, quarantine=quarantine) if held else None

    def _renew(self) -> None:
        """Renew all leases of this holder, where a while has passed since they were."""
        now = time.monotonic()
        if now - self._renewed_at >= self._ttl_ms / 1000 * RENEWAL_SHARE:
            self._renewed_at = now
            with self._engine.begin() as connection:
                connection.execute(
                    sa.update(partitions).where(self._mine).values(lease_until_ms=now_ms() + self._ttl_ms)
                )

    def made(self, number: int, places: Collection[int]) -> list[DeadLetter]:
        """Return the dead letters of some places of a partition that nobody tries again by himself."""
        with self._engine.connect() as connection:
            return self._letters.made(connection, number, places)

    def _end_frozen_sessions(self) -> None:
        """End sessions of flushers that hold locks and say nothing, where the server does not do it by itself.

        PostgreSQL forgets ``idle_in_transaction_session_timeout`` while a client is inside COPY, and after a pipeline,
        which psycopg's ``executemany`` is. To end a session is to roll its transaction back: its flusher tries again.
        """
        if self._engine.dialect.name != "postgresql":
            return
        overdue = sa.select(partitions.c.holder).where(
            partitions.c.namespace == self._namespace,
            partitions.c.holder.is_not(None),
            partitions.c.holder != self._holder,
            partitions.c.lease_until_ms < now_ms(),
        )
        with self._engine.begin() as connection:
            names = [application_name(holder) for holder in set(connection.execute(overdue).scalars())]
            if names:
                idle = self._ttl_ms * IDLE_SHARE / 1000
                connection.execute(_END_FROZEN, {"names": names, "idle": idle})

    def _earlier(self, connection: sa.Connection, number: int) -> dict[int, EntryID]:
        rows = connection.execute(
            sa.select(epochs.c.epoch, epochs.c.sequence, epochs.c.successor).where(
                epochs.c.namespace == self._namespace, epochs.c.partition == number
            )
        )
        return {row.successor: EntryID(row.epoch, row.sequence) for row in rows}

    def _rewritten(self, connection: sa.Connection, number: int) -> list[EntryID]:
        known = rewritten.c
        here = sa.and_(known.namespace == self._namespace, known.partition == number)
        connection.execute(sa.delete(rewritten).where(here, known.applied_ms < now_ms() - REWRITTEN_MS_MAX))
        found = sa.select(known.epoch, known.sequence).where(here)
        return [EntryID(*row) for row in connection.execute(found)]

    def release(self, held: Mapping[int, int]) -> None:
        """Hand partitions back, given with their tokens. Repeat: harmless."""
        with self._engine.begin() as connection:
            for number, token in held.items():
                connection.execute(
                    sa.update(partitions)
                    .where(self._mine, partitions.c.partition == number, partitions.c.token == token)
                    .values(holder=None, lease_until_ms=0)
                )

    def resign(self) -> None:
        """Stop being counted as a flusher. Repeat: harmless."""
        with self._engine.begin() as connection:
            connection.execute(
                sa.delete(flushers).where(flushers.c.namespace == self._namespace, flushers.c.holder == self._holder)
            )

    def note_halt(self, number: int, token: int, reason: str | None) -> None:
        """Record why a partition is halted, for ``status``; None when it is not any more."""
        with self._engine.begin() as connection:
            connection.execute(
                sa.update(partitions)
                .where(self._mine, partitions.c.partition == number, partitions.c.token == token)
                .values(halted=reason)
            )
