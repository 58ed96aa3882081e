"""What does the work of an engine for event loops: the one for threads, whose rows may be read in the loop."""

from collections.abc import Callable, Generator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from writebehind.engine.adapters.async_clients import LoopCalls, LoopRows
from writebehind.engine.adapters.confirmer import Passed
from writebehind.engine.adapters.deadline import Waiting
from writebehind.engine.adapters.rows import Rows
from writebehind.engine.core.durability import Durability
from writebehind.engine.core.positions import EntryID
from writebehind.engine.lanes import Lanes
from writebehind.engine.write_behind import WriteBehind

__all__ = ["AsyncCore"]


class AsyncCore(WriteBehind):
    """What does the work, in threads.

    Args:
        database: as ``AsyncWriteBehind``.
        calls: gives what asks an ``AsyncEngine`` in its event loop.
        flushed_by: gives the engine with which a flusher of this process's own works; this one where None.
        given: the others of ``WriteBehind``.
    """

    def __init__(
        self,
        *,
        database: str | sa.URL | AsyncEngine | sa.Engine,
        calls: Callable[[], LoopCalls | None] = lambda: None,
        flushed_by: Callable[[], WriteBehind] | None = None,
        **given: Any,
    ) -> None:
        self._flushed_by_another = flushed_by
        self._in_loop = (database, calls) if isinstance(database, AsyncEngine) else None
        super().__init__(database=database.sync_engine if isinstance(database, AsyncEngine) else database, **given)

    def _rows(self) -> Rows:
        seconds = self.settings.load_lease_seconds
        return Rows(self.database, seconds) if self._in_loop is None else LoopRows(*self._in_loop, seconds)

    def _flushed_by(self) -> WriteBehind:
        return self if self._flushed_by_another is None else self._flushed_by_another()

    def lanes(self) -> Lanes:
        """Return lanes for the running event loop."""
        return Lanes(self._appender, self.settings)

    def require(self, level: Durability) -> None:
        """Refuse a level that the servers cannot give; see ``Confirmer.require``."""
        self._confirmer.require(level)

    @property
    def started(self) -> bool:
        """Whether a start has succeeded."""
        return self._started

    def maker_of(self, table: Any, *, as_model: bool) -> Callable[[dict[str, Any]], Any]:
        """Return what makes of a record what a caller gets."""
        return self._reading.maker_of(table, as_model=as_model)

    def reading_one(self, table: Any, key: Any) -> Waiting[dict[str, Any] | None]:
        """Do what ``get`` does, for who waits in another way than in a thread."""
        return self._reading.reading_one(table, key)

    def reading(self, table: Any, keys: Sequence[Any]) -> Waiting[dict[Any, dict[str, Any] | None]]:
        """Do what ``get_many`` does, likewise."""
        return self._reading.reading(table, keys)

    def place_of(self, partition: int, entry_id: EntryID) -> EntryID:
        """Return where an entry stands that may have been written again."""
        return self._confirmations.place_of(partition, entry_id)

    def progress(self, partition: int, entry_id: EntryID) -> Generator[float, EntryID | None, Passed]:
        """Wait until the offset has passed an entry; see ``Confirmations.progress``."""
        return self._confirmations.progress(partition, entry_id)
