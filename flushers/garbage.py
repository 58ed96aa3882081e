"""Garbage collection while a flusher runs.

A batch is tens of thousands of containers that live for one commit and hold no cycles. By its default thresholds the
collector looks at them, and now and then at everything else in the process, again and again to free nothing:
*measured*, 2.3 of the 7.8 us that an entry takes of the processor in Python (both processors busy with other work).
"""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["THRESHOLD_MIN", "collected_rarely"]

THRESHOLD_MIN: Final = 50_000
"""Containers made, less those freed, between two collections of the youngest generation."""

_lock = threading.Lock()
_users = 0
_before = (0, 0, 0)


@contextmanager
def collected_rarely() -> Iterator[None]:
    """Have the collector of this process run less often during the block; where it is off, it stays off.

    Repeat: blocks may nest and overlap between threads; the last one to end restores what was before the first.
    """
    global _users, _before  # noqa: PLW0603 - the collector is global too
    with _lock:
        if _users == 0:
            _before = gc.get_threshold()
            if 0 < _before[0] < THRESHOLD_MIN:
                gc.set_threshold(THRESHOLD_MIN, *_before[1:])
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                gc.set_threshold(*_before)
