"""Draining: flush until nothing is left."""

import threading
import time
from collections.abc import Callable

from writebehind.engine import WriteBehind
from writebehind.engine.errors import LogDamaged
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

    What can be drained is, before partitions are told of whose logs are damaged.

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
        LogDamaged: the others are drained, or time ran out.
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
    if looks[0].damaged:
        raise _damaged(looks[0])
    return looks[0]


def _damaged(last: Status) -> LogDamaged:
    named = "; ".join(f"partition {each.partition}: {each.damaged}" for each in last.damaged)
    others = f"{last.backlog} entries of the others remain" if last.backlog else "SQL has all of the others"
    return LogDamaged(f"not drained: {named}; {others}", "see 'writebehind status'; drain again when they are mended")
