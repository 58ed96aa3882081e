"""A flusher that runs beside a test."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from writebehind.engine import WriteBehind
from writebehind.flushers import FlusherSettings
from writebehind.flushers.flusher import Flusher

__all__ = ["flushing"]


@contextlib.contextmanager
def flushing(
    app: WriteBehind, settings: FlusherSettings, kind: Callable[..., Flusher] = Flusher, **options: Any
) -> Iterator[Flusher]:
    """Keep a flusher running in a thread; the test fails where it ends with an error."""
    flusher = kind(app, settings, **options)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            flusher.run()
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)

    thread = threading.Thread(target=run, name="flusher")
    thread.start()
    try:
        yield flusher
    finally:
        flusher.stopping.set()
        thread.join()
    assert failed == []
