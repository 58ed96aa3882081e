"""The hunter: kills a flusher according to plan, at moments that do not depend on what the flusher does.

A thread of its own, because the writer between two batches would always meet the flusher in the same phase. A flusher
that has just been started is left alone until it has acknowledged something: otherwise every kill would hit a
takeover. After that a kill comes at a random moment at which entries are in flight, so in the middle of a transaction
as likely as a transaction takes time.

::

    not due --flights written--> due --victim acknowledges--> aiming --random pause, entries in flight--> SIGKILL
       '<---------------------------- counted, or missed when nothing was in flight <--- restart <----------'
"""

import random
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from writebehind.examples.flights.fleet import Fleet, Pending
from writebehind.examples.flights.kills import Kill, Plan

__all__ = ["Hunter"]

LOOK_SECONDS, IDLE_SECONDS = 0.005, 0.05
"""Looking costs the writer's time, so seldom while nothing is due."""
AIM_SECONDS_MAX = 0.06
"""About as long as a small flush takes, linger included."""


class Hunter:
    """Kills and restarts one flusher of a fleet until it is told to stop.

    Args:
        fleet: the flushers.
        victim: which of them.
        pending: how to see what is in flight.
        plan: when kills are due.
        seed: decides at which moments, as far as a seed can.

    Attributes:
        written: how many flights are written; the writer keeps it up to date.
        serving: whether the victim has acknowledged something since it was started.
        kills: those that hit in mid-flush.
        missed: how many hit when nothing was in flight.
    """

    def __init__(self, fleet: Fleet, victim: int, pending: Pending, plan: Plan, seed: int) -> None:
        self._fleet = fleet
        self._victim = victim
        self._pending = pending
        self._plan = plan
        self._chance = random.Random(seed)
        self._stopping = threading.Event()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="flights-hunter")
        self._hunting: Future[None] | None = None
        self._began_at = time.monotonic()
        self.written = 0
        self.serving = False
        self.kills: list[Kill] = []
        self.missed = 0

    def __enter__(self) -> Self:
        self._began_at = time.monotonic()
        self._hunting = self._executor.submit(self._hunt)
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._stopping.set()
        self._executor.shutdown()

    def check(self) -> None:
        """Raise what the hunter has stumbled over, if anything.

        Raises:
            RedisUnavailable: Redis cannot be read.
            WriteBehindError: the victim ended by itself.
        """
        if self._hunting is not None and self._hunting.done():
            self._hunting.result()

    def _hunt(self) -> None:
        before = 0
        while not self._stopping.wait(LOOK_SECONDS if self._due() else IDLE_SECONDS):
            if self.serving and not self._due():
                continue
            pid = self._fleet.pid(self._victim)
            now = self._pending.entries(pid)
            self.serving = self.serving or now < before
            before = now
            if now and self.serving and self._due():
                self._stopping.wait(AIM_SECONDS_MAX * self._chance.random())
                if self._pending.entries(pid) and not self._stopping.is_set():
                    self._kill(pid)
                    before = 0

    def _due(self) -> bool:
        return self._plan.is_due(self.written, len(self.kills))

    def _kill(self, pid: int) -> None:
        self._fleet.kill(self._victim)
        self.serving = False
        seconds = time.monotonic() - self._began_at
        in_flight = self._pending.entries_of_dead(pid)
        self._fleet.start(self._victim)
        if in_flight:
            self.kills.append(Kill(seconds=round(seconds, 3), pid=pid, entries_in_flight=in_flight))
        else:
            self.missed += 1
