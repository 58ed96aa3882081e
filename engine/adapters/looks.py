"""Asking SQL for those who have a deadline: a few threads ask, and who waits for the answer goes when its time is over.

A database may take a question and never answer it: behind a lock, on a server that is stopped, over a connection whose
other end has vanished. Nothing ends such a call from outside, so nobody who has a deadline makes it.

Invariants:

1. No database holds up more than ``THREADS_MAX`` threads here, and none that does anything else. They hold up neither
   ``close`` nor the end of the process. One that has asked for ``STUCK_SECONDS`` is given up for lost, and another may
   take its place, for connections that are dead say nothing of the next one: up to ``STUCK_THREADS_MAX`` altogether,
   about half of the connections of a default pool, which others use, too.
2. Who gives up is not asked for any more: what nobody has begun to ask for it is left out, and does not pile up.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from writebehind.engine.adapters.deadline import Waiting
from writebehind.engine.errors import DatabaseUnavailable

__all__ = ["Look", "Looks", "unanswered"]

Result = TypeVar("Result")

THREADS_MAX = 4
STUCK_THREADS_MAX = 8
STUCK_SECONDS = 60.0

QUEUED_MIN = 100
"""So many looks wait before those are sought that were given up."""

SOON_SECONDS = 0.01
"""A database that is well answers within this, as a rule: so long a look is waited for where it is begun."""

PAUSE_SECONDS = 0.001
PAUSE_SECONDS_MAX = 0.02


class Look(Generic[Result]):
    """A question to SQL that is under way.

    Args:
        work: asks it.

    Attributes:
        given_up: nobody waits for the answer any more.
    """

    __slots__ = ("_answered", "_error", "_found", "_work", "given_up")

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work = work
        self._answered = threading.Event()
        self.given_up = False
        self._error: Exception | None = unanswered()
        self._found: Any = None

    def answered(self, seconds: float = 0.0) -> bool:
        """Tell whether there is an answer, or a failure; wait for it for so long at the most."""
        return self._answered.wait(seconds)

    def succeeded(self) -> bool:
        """Tell whether there is an answer, and no failure."""
        return self.answered() and self._error is None

    def result(self, seconds: float = 0.0) -> Result:
        """Return the answer, and wait for it no longer.

        Args:
            seconds: how long to wait for it at the most.

        Raises:
            DatabaseUnavailable: there is none in time, or the database cannot be asked.
        """
        if not self.answered(seconds):
            self.give_up()
            raise unanswered()
        if self._error is not None:
            raise self._error
        found: Result = self._found
        return found

    def give_up(self) -> None:
        """Have it not asked any more, if that has not begun. Repeat: harmless."""
        self.given_up = True

    def make(self) -> None:
        """Ask, in this thread, unless nobody waits for it any more."""
        if self.given_up:
            return
        try:
            self._found, self._error = self._work(), None
        except Exception as error:  # noqa: BLE001 - handed to whoever waits
            self._error = error
        finally:
            self._answered.set()

    def fail(self, error: Exception) -> None:
        """Answer with a failure, in place of asking."""
        self._error = error
        self._answered.set()


class Looks:
    """The looks of one engine; safe to share between threads. Its threads live while there is something to ask.

    Args:
        in_callers_thread: ask in the thread of who wants to know, in none of its own.
    """

    def __init__(self, *, in_callers_thread: bool = False) -> None:
        self._in_callers_thread = in_callers_thread
        self.renew()

    def renew(self) -> None:
        """Forget what the parent asks; called in a forked child."""
        self._lock = threading.Lock()
        self._queue: deque[Look[Any]] = deque()
        self._crowd = QUEUED_MIN
        self._asking_since: dict[threading.Thread, float] = {}

    def begin(self, work: Callable[..., Result], *arguments: Any) -> Look[Result]:
        """Have something asked; return when there is an answer, or soon."""
        look: Look[Result] = Look(lambda: work(*arguments))
        if self._in_callers_thread:
            look.make()
            return look
        with self._lock:
            try:
                self._staff()
                self._queue.append(look)
            except RuntimeError as error:
                look.fail(DatabaseUnavailable(f"no thread can be had to ask the database: {error}", "try later"))
            if len(self._queue) > self._crowd:
                self._queue = deque(queued for queued in self._queue if not queued.given_up)
                self._crowd = max(QUEUED_MIN, 2 * len(self._queue))
        look.answered(SOON_SECONDS)
        return look

    def attend(self) -> None:
        """Have what waits behind threads that are stuck asked by another, as ``begin`` does. Repeat: harmless."""
        with self._lock, contextlib.suppress(RuntimeError):
            if self._queue:
                self._staff()

    def asking(self, until_seconds: float, work: Callable[..., Result], *arguments: Any) -> Waiting[Result]:
        """Have something asked, and wait for the answer.

        Args:
            until_seconds: when to give up, by ``time.monotonic``.
            work: asks.
            arguments: of ``work``.

        Raises:
            DatabaseUnavailable: there is none in time, or the database cannot be asked.
        """
        look, pause = self.begin(work, *arguments), PAUSE_SECONDS
        try:
            while not look.answered() and (left := until_seconds - time.monotonic()) > 0:
                yield min(pause, left)
                self.attend()
                pause = min(2 * pause, PAUSE_SECONDS_MAX)
            return look.result()
        finally:
            look.give_up()

    def _ask(self) -> None:
        while (look := self._next()) is not None:
            look.make()

    def _next(self) -> Look[Any] | None:
        with self._lock:
            thread = threading.current_thread()
            del self._asking_since[thread]
            # One that was given up for lost goes when it is answered after all, where others do its work.
            if not self._queue or self._hopeful() >= THREADS_MAX:
                return None
            self._asking_since[thread] = time.monotonic()
            return self._queue.popleft()

    def _staff(self) -> None:
        """Have one thread more where there are too few; under the lock.

        Raises:
            RuntimeError: none can be had.
        """
        if self._hopeful() < THREADS_MAX and len(self._asking_since) < STUCK_THREADS_MAX:
            thread = threading.Thread(target=self._ask, name="writebehind-look", daemon=True)
            thread.start()
            self._asking_since[thread] = time.monotonic()

    def _hopeful(self) -> int:
        """Count the threads that have not asked for too long; under the lock."""
        now = time.monotonic()
        return sum(now - since < STUCK_SECONDS for since in self._asking_since.values())


def unanswered() -> DatabaseUnavailable:
    """Return the error for a database that takes questions and does not answer."""
    return DatabaseUnavailable(
        "the database does not answer in time", "look for what holds it up: a lock, or a server that is stuck"
    )
