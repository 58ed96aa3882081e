"""What happened, line by line, when somebody wants to read it."""

from collections.abc import Callable

__all__ = ["Trace"]


class Trace:
    """The lines of one history.

    Args:
        now: returns the world's time.
        on: whether lines are kept.
    """

    def __init__(self, now: Callable[[], float], *, on: bool) -> None:
        self._now = now
        self.on = on
        self.lines: list[str] = []

    def __call__(self, text: str) -> None:
        """Note a line."""
        if self.on:
            self.lines.append(f"{self._now():9.3f}  {text}")

    def routine(self, text: str) -> None:
        """Note a line of which there are very many: it begins with a dot."""
        if self.on:
            self.lines.append(f".{self._now():8.3f}  {text}")
