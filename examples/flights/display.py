"""Progress: a bar on a terminal, a line every few seconds elsewhere."""

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["Bar", "Display", "Lines", "display"]

LINE_SECONDS = 5.0
BAR_SECONDS = 0.1


class Display(Protocol):
    """Where progress is shown."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """End, and leave the terminal as it was."""

    def say(self, line: str) -> None:
        """Show a line that stays."""

    def update(self, written: int, backlog: int) -> None:
        """Show how many flights are written and how many entries SQL has not applied."""


class Bar:
    """A bar of rich, drawn by the caller's own thread."""

    def __init__(self, console: Console, flights: int) -> None:
        columns = (
            TextColumn("flights"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        self._progress = Progress(*columns, console=console, auto_refresh=False)
        self._task = self._progress.add_task("", total=flights)
        self._drawn = float("-inf")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._progress.refresh()
        self._progress.stop()

    def say(self, line: str) -> None:
        """Print above the bar."""
        self._progress.console.print(line, highlight=False, markup=False)

    def update(self, written: int, backlog: int) -> None:
        """Draw, if it is time."""
        self._progress.update(self._task, completed=written, description=f"backlog {backlog:,}")
        if time.monotonic() - self._drawn >= BAR_SECONDS:
            self._progress.refresh()
            self._drawn = time.monotonic()


class Lines:
    """Plain lines."""

    def __init__(self, console: Console, flights: int) -> None:
        self._console = console
        self._flights = flights
        self._drawn = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        pass

    def say(self, line: str) -> None:
        """Print."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def update(self, written: int, backlog: int) -> None:
        """Print, if it is time."""
        if time.monotonic() - self._drawn >= LINE_SECONDS:
            self.say(f"{written:,} of {self._flights:,} flights written, backlog {backlog:,}")
            self._drawn = time.monotonic()


def display(flights: int, *, stderr: bool) -> Display:
    """Choose what fits the terminal.

    Args:
        flights: how many there will be.
        stderr: keep standard output free.
    """
    console = Console(stderr=stderr)
    return Bar(console, flights) if console.is_terminal else Lines(console, flights)
