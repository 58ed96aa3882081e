"""A flusher that kills or freezes its own process right before or after one step, without any hook in the product.

Arguments: ``kill`` or ``freeze``; the name of an effect of the flush or of the takeover; ``before`` or ``after``; how
many of these effects to let pass first. Each step of both protocols is an effect that a shell performs, so standing
in front of the shell is enough. What the effects are, ``flushers.flush`` and ``recovery.takeover`` say.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import TypeVar

from writebehind.drills.app import LEASE_TTL_SECONDS, LINGER_SECONDS, RETENTION_SECONDS, from_environment
from writebehind.drills.parent import stopping_event
from writebehind.engine.adapters.log import Log
from writebehind.flushers import Flusher, FlusherSettings
from writebehind.flushers.flusher import Effect
from writebehind.flushers.flusher import Reply as FlushReply
from writebehind.recovery import reclaim
from writebehind.recovery.takeover import Effect as TakeoverEffect
from writebehind.recovery.takeover import Reply

__all__ = ["main"]

Answer = TypeVar("Answer")

SIGNALS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}
ANY = "any"
"""In place of an effect's name."""


class Fate:
    """When to do the deed, once.

    Args:
        deed: ``kill`` or ``freeze``.
        effect: the effect's name, or ``any``.
        side: ``before`` or ``after``.
        skip: how many such effects pass first.
    """

    def __init__(self, deed: str, effect: str, side: str, skip: int) -> None:
        self._signal = SIGNALS[deed]
        self._effect = effect
        self._side = side
        self._left = skip

    def around(self, effect: object, work: Callable[[], Answer], finished: Callable[[], None]) -> Answer:
        """Do an effect, and the deed before it or after it; ``finished`` waits until the effect has happened."""
        due = False
        if self._left >= 0 and self._effect in {type(effect).__name__, ANY}:
            due = self._left == 0
            self._left -= 1
        if due and self._side == "before":
            os.kill(os.getpid(), self._signal)
        answer = work()
        if due and self._side == "after":
            finished()
            os.kill(os.getpid(), self._signal)
        return answer


class Mortal(Flusher):
    """A flusher with a fate."""

    fate: Fate

    def perform(self, effect: Effect) -> FlushReply:
        """Do one effect of the flush protocol, or of isolation."""
        return self.fate.around(
            effect, lambda: super(Mortal, self).perform(effect), lambda: self._settlement.collect(everything=True)
        )


def main() -> None:
    """Flush until SIGTERM, or until fate strikes."""
    deed, effect_name, side, skip = sys.argv[1:]
    fate = Fate(deed, effect_name, side, int(skip))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    perform = reclaim.perform

    def performed(log: Log, partition: int, effect: TakeoverEffect) -> Reply:
        return fate.around(effect, lambda: perform(log, partition, effect), lambda: None)

    reclaim.perform = performed
    stopping = stopping_event()
    app = from_environment()
    settings = FlusherSettings(
        lease_ttl_seconds=LEASE_TTL_SECONDS, linger_seconds=LINGER_SECONDS, retention_seconds=RETENTION_SECONDS
    )
    app.start()
    flusher = Mortal(app, settings, stopping=stopping)
    flusher.fate = fate
    try:
        flusher.run()
    finally:
        app.close()


if __name__ == "__main__":
    main()
