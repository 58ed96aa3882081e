"""Looking at Redis now and then, also while the application writes nothing: for its history and its memory.

And telling it now and then what reads have met with.
"""

import logging
import time
import weakref
from threading import Event, Thread, current_thread

import redis

from writebehind.engine.adapters.memory import Memory
from writebehind.engine.adapters.read_counters import ReadCounters
from writebehind.engine.adapters.rewriter import Rewriter
from writebehind.engine.errors import RedisUnavailable

__all__ = ["Watch"]

WATCH_SECONDS = 1.0
MEMORY_SECONDS = 0.2
TELL_SECONDS = 5.0
STOP_SECONDS_MAX = 5.0

logger = logging.getLogger(__name__)


class Watch:
    """A thread that looks at Redis a few times in a second. It keeps no engine alive.

    Args:
        rewriter: looks for a new history.
        memory: looks at the memory.
        counters: what reads have met with.
    """

    def __init__(self, rewriter: Rewriter, memory: Memory, counters: ReadCounters) -> None:
        self._stopping = Event()
        self._wake = rewriter.wake
        arguments = (weakref.ref(rewriter), memory, counters, self._wake, self._stopping)
        self._thread = Thread(target=_watch, args=arguments, daemon=True, name="writebehind-watch")
        self._thread.start()

    def stop(self) -> None:
        """End the thread, after what it is doing. Repeat: harmless."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not current_thread():
            # A database that does not answer holds nobody up: then the loss stands in the log of this process only.
            self._thread.join(STOP_SECONDS_MAX)


def _watch(
    known: "weakref.ref[Rewriter]", memory: Memory, counters: ReadCounters, wake: Event, stopping: Event
) -> None:
    looked_at = told_at = time.monotonic()
    while True:
        woken = wake.wait(min(MEMORY_SECONDS, WATCH_SECONDS))
        wake.clear()
        rewriter = known()
        if rewriter is None:
            return
        ending = stopping.is_set()
        try:
            rewriter.tell(STOP_SECONDS_MAX if ending else 0.0)
            if ending:
                return
            memory.look()
            if woken or time.monotonic() - looked_at >= WATCH_SECONDS:
                looked_at = time.monotonic()
                rewriter.look()
            if time.monotonic() - told_at >= TELL_SECONDS:
                told_at = time.monotonic()
                counters.tell()
        except (RedisUnavailable, redis.ResponseError):
            # The next write says so; until Redis is back there is nothing to write again to.
            continue
        except Exception:
            # Whatever it is, it may pass, and the thread must not end with it.
            logger.exception("looking at Redis")
        finally:
            del rewriter
