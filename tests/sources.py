"""The database as reads see it: watched, slow or away."""

import threading
from typing import Any

import pytest

from writebehind.engine import DatabaseUnavailable
from writebehind.engine.adapters.async_clients import LoopRows
from writebehind.engine.adapters.rows import Rows

__all__ = ["Source"]

DEADLINE_SECONDS = 20.0


class Source:
    """Counts the queries for records, and can hold them back once they have read.

    Attributes:
        queries: the keys of each query.
        go_on: whether queries end.
        fails: whether they fail.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queries: list[list[str]] = []
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.go_on.set()
        self.fails = False
        for kind in (Rows, LoopRows):
            self._watch(monkeypatch, kind)

    def _watch(self, monkeypatch: pytest.MonkeyPatch, kind: type[Rows]) -> None:
        load = kind.load

        def loading(rows: Rows, declared: Any, keys: Any) -> Any:
            if isinstance(rows, LoopRows) and kind is Rows:
                return load(rows, declared, keys)  # inside the event loop, which is not to be held up
            self.queries.append(sorted(keys))
            found = load(rows, declared, keys)
            self.begun.release()
            assert self.go_on.wait(DEADLINE_SECONDS)
            if self.fails:
                raise DatabaseUnavailable("it is away", "wait")
            return found

        monkeypatch.setattr(kind, "load", loading)

    def hold(self) -> None:
        """Have loads end only when they are let go on."""
        self.go_on.clear()

    def wait(self) -> None:
        """Wait until a load has read the row."""
        assert self.begun.acquire(timeout=DEADLINE_SECONDS)
