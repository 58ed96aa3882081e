"""What this process has put into Redis, and until when it is to be there: what goes before was evicted or removed."""

import threading

__all__ = ["NAMES_MAX", "KeptNames"]

NAMES_MAX = 10_000
"""Of the last ones only: a megabyte or two."""


class KeptNames:
    """Names and the times of their ends; may be shared between threads.

    Args:
        names_max: how many are known at the most; the oldest are forgotten.
    """

    def __init__(self, names_max: int = NAMES_MAX) -> None:
        self._names_max = names_max
        self.begin()

    def begin(self) -> None:
        """Know of nothing; to be called in a forked child, whose parent may have been in here with another thread."""
        self._lock = threading.Lock()
        self._ends: dict[str, float] = {}

    def note(self, name: str, end_seconds: float) -> None:
        """Note that something is there until a time."""
        with self._lock:
            self._ends.pop(name, None)
            self._ends[name] = end_seconds
            if len(self._ends) > self._names_max:
                del self._ends[next(iter(self._ends))]

    def forget(self, name: str) -> None:
        """Forget what this process removes itself."""
        with self._lock:
            self._ends.pop(name, None)

    def gone(self, name: str, now_seconds: float) -> bool:
        """Tell whether what is not there any more was to be there still. Repeat: False."""
        with self._lock:
            return self._ends.pop(name, 0.0) > now_seconds
