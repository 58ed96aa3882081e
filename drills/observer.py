"""The observer: looks at SQL again and again while things happen, each look one committed snapshot."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from writebehind.drills.checkers import Snapshot
from writebehind.drills.tables import accounts, lists
from writebehind.engine.adapters.control_tables import epochs, partitions

__all__ = ["Observer"]

LOOK_SECONDS = 0.1
REST_SHARE = 3
"""A look may take this much of the observer's time: one part looking, three parts resting."""


class Observer:
    """A thread that takes snapshots until it is closed. A database that is away is looked at again later.

    Args:
        url: the database, not through a proxy.
        namespace: whose offsets to look at.

    Attributes:
        snapshots: what was seen so far, in order.
        missed: looks that failed.
    """

    def __init__(self, url: str, namespace: str) -> None:
        options: dict[str, Any] = {"hide_parameters": True, "pool_size": 1}
        if sa.make_url(url).get_backend_name() == "postgresql":
            options["isolation_level"] = "REPEATABLE READ"
        self._engine = sa.create_engine(url, **options)
        self._namespace = namespace
        self._closing = threading.Event()
        self._looking = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="drill-observer")
        self.snapshots: list[Snapshot] = []
        self.missed = 0
        self._thread.start()

    def close(self) -> None:
        """End the thread. Repeat: harmless."""
        self._closing.set()
        self._thread.join()
        self._engine.dispose()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let the database alone inside the block."""
        with self._looking:
            self._engine.dispose()
            yield

    def look(self) -> Snapshot:
        """Take one snapshot.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database cannot be read.
        """
        with self._engine.connect() as connection:
            return Snapshot(
                at=time.monotonic(),
                applied=self._applied(connection),
                tokens=self._tokens(connection),
                banks={
                    number: (int(count), int(total))
                    for number, count, total in connection.execute(
                        sa.select(accounts.c.bank, sa.func.count(), sa.func.sum(accounts.c.balance)).group_by(
                            accounts.c.bank
                        )
                    )
                },
                lists={
                    number: (int(count), int(highest))
                    for number, count, highest in connection.execute(
                        sa.select(lists.c.list, sa.func.count(), sa.func.max(lists.c.position)).group_by(lists.c.list)
                    )
                },
            )

    def _applied(self, connection: sa.Connection) -> dict[tuple[int, int], int]:
        applied: dict[tuple[int, int], int] = {}
        for table in (epochs, partitions):
            rows = connection.execute(
                sa.select(table.c.partition, table.c.epoch, table.c.sequence).where(
                    table.c.namespace == self._namespace
                )
            )
            for number, epoch, sequence in rows:
                applied[number, epoch] = max(sequence, applied.get((number, epoch), -1))
        return applied

    def _tokens(self, connection: sa.Connection) -> dict[int, int]:
        rows = connection.execute(
            sa.select(partitions.c.partition, partitions.c.token).where(partitions.c.namespace == self._namespace)
        )
        return {row.partition: row.token for row in rows}

    def _watch(self) -> None:
        pause = LOOK_SECONDS
        while not self._closing.wait(pause):
            begun = time.monotonic()
            with self._looking:
                try:
                    self.snapshots.append(self.look())
                except sa.exc.SQLAlchemyError:
                    self.missed += 1
            pause = max(LOOK_SECONDS, REST_SHARE * (time.monotonic() - begun))
