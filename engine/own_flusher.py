"""A flusher of the service's own, for what is written through while no flusher is alive.

Who writes through waits for SQL. Where flushers run, they write it there, and nothing here does more than look at the
leases now and then. Where none is alive, or its lease has run out, this flushes the partitions that are waited for.

Invariants:

1. It writes like every flusher: under a lease, with a fencing token, from the log, in its order, with the offset in the
   same transaction. So nothing is overtaken and nothing doubled, whoever comes meanwhile.
2. It takes nothing that a flusher holds, and nothing where one is alive, which takes what is free by itself.
3. It ends when nobody waits, a flusher is alive again, or the engine is closed, and hands back what it holds.
4. Where it cannot flush, it does no harm but says why to who has waited in vain, and tries again.

::

    nobody waits --> looking --served by another--> looking
          ^             '--nobody serves--> flushing --nobody waits, or a flusher is alive--> handed back
          '--------------------------------------------------------------------------------------'
"""

import importlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from writebehind.engine.adapters.rows import Rows
from writebehind.engine.core.durability import Durability
from writebehind.engine.errors import DatabaseUnavailable, DurabilityTimeout, WriteBehindError, WriteThroughTimeout
from writebehind.engine.receipts import Acceptance

if TYPE_CHECKING:
    from writebehind.engine.write_behind import WriteBehind

__all__ = ["OwnFlusher"]

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
"""How long what was seen of the leases is believed: so long a writer may wait longer than it had to."""

IDLE_SECONDS_MAX = 5.0
"""The thread outlives those who wait by this, for the next one."""

TURN_SECONDS = 0.5
"""So long other partitions wait until theirs are taken, too."""

RETRY_SECONDS = 5.0
"""Until this process tries again what it could not do."""

STOP_SECONDS_MAX = 10.0

RETENTION_SECONDS = 3600.0
"""How long what is flushed here stays in the log at least: flushers may be set to keep it for long, and trim it."""


class OwnFlusher:
    """Has partitions flushed while somebody waits for them; safe to share between threads.

    Args:
        app: gives the engine to flush for, whose database threads can use.
        rows: the database.
        namespace: the namespace's name.

    Durability, Crash: as a flusher. Repeat: any number of processes may do so.
    """

    def __init__(self, app: "Callable[[], WriteBehind]", rows: Rows, namespace: str) -> None:
        self._app = app
        self._rows = rows
        self._namespace = namespace
        self.renew()

    def renew(self) -> None:
        """Forget what another thread of the parent may hold; called in a forked child."""
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._waiting: Counter[int] = Counter()
        self._flushing: Collection[int] = ()
        self._stopping = threading.Event()
        self._believed_until: dict[int, float] = {}
        self._hindrances: dict[int, str] = {}

    @contextmanager
    def needed(self, partitions: Collection[int]) -> Iterator[None]:
        """Have some partitions flushed during the block, by whom it may be. Does not wait itself."""
        with self._lock:
            self._waiting.update(partitions)
        try:
            if partitions:
                self._begin(partitions)
            yield
        finally:
            with self._lock:
                self._waiting.subtract(partitions)
                self._waiting = +self._waiting
                if self._flushing and self._waiting.keys().isdisjoint(self._flushing):
                    self._stopping.set()

    def _begin(self, partitions: Collection[int]) -> None:
        """Have the thread look at once, or start one; where none can be had, those who wait for others are told."""
        with self._lock:
            if self._thread is None and not self._closed:
                thread = threading.Thread(target=self._run, name="writebehind-own-flusher", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    self._hindrances.update(dict.fromkeys(partitions, f"this process cannot flush itself: {error}"))
                else:
                    self._thread = thread
        self._wake.set()

    def late(self, error: DurabilityTimeout, receipts: Sequence[Acceptance]) -> WriteThroughTimeout:
        """Return the error for writes that SQL did not get in time, with what is known to be in the way.

        Args:
            error: of the wait.
            receipts: of what was waited for.
        """
        without = [
            each
            for each in dict.fromkeys(receipts)
            if each.durability is not None and each.durability < Durability.PERSISTED
        ]
        hindrances = dict.fromkeys(self._hindrances.get(each.partition) for each in without)
        why = "; ".join(each for each in hindrances if each is not None)
        return WriteThroughTimeout(
            f"{error.message}: {why}" if why else error.message,
            "it is in the log, reads see it, and SQL will get it once: do not repeat it, wait for its receipt in "
            "error.receipts; see 'writebehind status'",
            receipts=without,
        )

    def close(self) -> None:
        """End the thread, after the batch that it may be flushing. Repeat: harmless."""
        with self._lock:
            self._closed = True
            self._stopping.set()
            thread = self._thread
        self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            # A database that does not answer holds nobody up.
            thread.join(STOP_SECONDS_MAX)

    # In the thread

    def _run(self) -> None:
        idle_since = time.monotonic()
        try:
            while True:
                self._wake.clear()
                now = time.monotonic()
                with self._lock:
                    waiting = frozenset(self._waiting)
                    if waiting:
                        idle_since = now
                    if self._closed or now - idle_since >= IDLE_SECONDS_MAX:
                        self._thread = None
                        return
                self._serve(waiting, now)
                self._wake.wait(LOOK_SECONDS if waiting else IDLE_SECONDS_MAX)
        finally:
            # However this one ends, who waits next starts another.
            with self._lock:
                if self._thread is threading.current_thread():
                    self._thread = None

    def _serve(self, waiting: Collection[int], now: float) -> None:
        """Flush what is waited for and nobody else flushes."""
        concerned = waiting
        try:
            if concerned := self._unserved(waiting, now):
                self._flush(concerned)
        except Exception as error:
            # Whatever it is, it must not end the thread: those who wait are told.
            logger.exception("flushing what is written through")
            self._hinder(concerned, f"this process has failed to flush itself: {type(error).__name__}")

    def _unserved(self, waiting: Collection[int], now: float) -> set[int]:
        """Return those that are waited for and that nobody flushes."""
        asked = [each for each in waiting if self._believed_until.get(each, 0.0) <= now]
        if not asked:
            return set()
        self._believed_until.update(dict.fromkeys(asked, now + LOOK_SECONDS))
        try:
            serving = self._rows.serving(self._namespace, asked)
        except DatabaseUnavailable as error:
            self._hindrances.update(dict.fromkeys(asked, error.message))
            return set()
        for each in asked:
            halted = serving[each].halted if each in serving else None
            if halted is not None:
                self._hindrances[each] = f"partition {each} is halted: {halted}"
            elif each in serving and serving[each].served:
                self._hindrances.pop(each, None)
        return {each for each in asked if each not in serving or not serving[each].served}

    def _flush(self, unserved: Collection[int]) -> None:
        """Flush partitions until nobody waits for them, or a flusher is alive to do it."""
        begun = time.monotonic()
        for each in unserved:
            self._hindrances.pop(each, None)
        with self._lock:
            if self._closed or self._waiting.keys().isdisjoint(unserved):
                return
            self._flushing = unserved
            self._stopping = threading.Event()

        def enough() -> bool:
            for each, cursor in flusher.holdings.cursors.items():
                if cursor.halted is None:
                    self._hindrances.pop(each, None)
                else:
                    self._hindrances[each] = f"partition {each} is halted: {cursor.halted}"
            if flusher.holdings.members:
                # Also where there is always somebody who waits: behind a dead letter, or with others.
                return True
            with self._lock:
                others = self._waiting.keys() - unserved
                nobody = self._waiting.keys().isdisjoint(unserved)
            now = time.monotonic()
            waits = any(self._believed_until.get(each, 0.0) <= now for each in others)
            return nobody or (waits and now - begun >= TURN_SECONDS)

        try:
            flusher = self._flusher(unserved)
            flusher.run(until=enough)
        except WriteBehindError as error:
            self._hinder(unserved, f"no flusher is alive, and this process cannot flush itself: {error.message}")
        else:
            # Handed back: the next one who waits has to look anew.
            self._believed_until.clear()
        finally:
            with self._lock:
                self._flushing = ()

    def _hinder(self, partitions: Collection[int], why: str) -> None:
        """Note why partitions are not flushed, and leave them alone for a while."""
        self._hindrances.update(dict.fromkeys(partitions, why))
        self._believed_until.update(dict.fromkeys(partitions, time.monotonic() + RETRY_SECONDS))

    def _flusher(self, among: Collection[int]) -> Any:
        # By name: the layers below know nothing of flushers, and most services never need one in their own process.
        flushers = importlib.import_module("writebehind.flushers")
        settings = flushers.FlusherSettings(linger_seconds=0, retention_seconds=RETENTION_SECONDS)
        return flushers.Flusher(self._app(), settings, member=False, among=among, stopping=self._stopping)
