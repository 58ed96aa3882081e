"""Draining: flush until nothing is left."""

import threading
import time
from collections.abc import Callable

from writebehind.engine import WriteBehind
from writebehind.flushers.config import FlusherSettings
from writebehind.flushers.flusher import Flusher
from writebehind.flushers.inspection import Status, status

__all__ = ["drain"]

LOOK_SECONDS = 0.1


def drain(
    app: WriteBehind,
    timeout: float | None = None,
    settings: FlusherSettings | None = None,
    progress: Callable[[Status], None] | None = None,
) -> Status:
    """Wait until every backlog is empty, doing the work of partitions that no live flusher holds.

    Args:
        app: the engine whose namespace to drain.
        timeout: seconds to wait at the most; None waits for ever.
        settings: how to flush.
        progress: called with every look at the namespace.

    Returns:
        The last look: its ``backlog`` is 0 unless time ran out.

    Durability: what was in the log when the backlog was 0 is in SQL. Repeat: harmless. Crash: as a flusher.

    Raises:
        RedisUnavailable, DatabaseUnavailable: a server cannot be reached.
        ConfigurationError: the namespace was not initialised.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    looks = [status(app)]
    stopping = threading.Event()
    looked_at = time.monotonic()

    def finished() -> bool:
        nonlocal looked_at
        now = time.monotonic()
        if now - looked_at >= LOOK_SECONDS:
            looks[0] = status(app)
            looked_at = now
            if progress is not None:
                progress(looks[0])
        return looks[0].backlog == 0 or (deadline is not None and now >= deadline)

    if looks[0].backlog:
        timer = None
        if deadline is not None:
            timer = threading.Timer(max(0.0, deadline - time.monotonic()), stopping.set)
            timer.daemon = True
            timer.start()
        try:
            Flusher(app, settings, member=False, stopping=stopping).run(until=finished)
        finally:
            if timer is not None:
                timer.cancel()
                timer.join()
        looks[0] = status(app)
    return looks[0]
