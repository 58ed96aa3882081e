"""Ending together with whoever started this process."""

import os
import signal
import threading

__all__ = ["stopping_event"]


def stopping_event() -> threading.Event:
    """Return an event that is set by SIGTERM, by SIGINT, and when standard input ends, because the parent is gone."""
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, lambda *_: stopping.set())
    threading.Thread(target=_until_orphaned, args=(stopping,), daemon=True, name="drill-parent").start()
    return stopping


def _until_orphaned(stopping: threading.Event) -> None:
    # Not through sys.stdin: a thread that waits inside its buffer's lock makes the interpreter abort at exit.
    while os.read(0, 1):
        pass
    stopping.set()
