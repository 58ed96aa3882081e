"""Reading: from a caller's keys to records, or to instances of the declared class."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from writebehind.engine.adapters.deadline import Waiting, wait_out
from writebehind.engine.adapters.models import instances_of
from writebehind.engine.adapters.reader import Reader
from writebehind.engine.declarations import Declarations

__all__ = ["Reading"]


class Reading:
    """Reads for one engine; safe to share between threads.

    Args:
        declarations: the tables.
        reader: reads their records.
    """

    __slots__ = ("_declarations", "_reader")

    def __init__(self, declarations: Declarations, reader: Reader) -> None:
        self._declarations = declarations
        self._reader = reader

    def one(self, table: Any, key: Any, *, as_model: bool) -> Any:
        """Read a record; see ``WriteBehind.get``."""
        make = self.maker_of(table, as_model=as_model)
        record = wait_out(self.reading_one(table, key))
        return record if record is None else make(record)

    def many(self, table: Any, keys: Sequence[Any], *, as_model: bool) -> dict[Any, Any]:
        """Read several records; see ``WriteBehind.get_many``."""
        make = self.maker_of(table, as_model=as_model)
        found = wait_out(self.reading(table, keys))
        return {key: None if record is None else make(record) for key, record in found.items()}

    def maker_of(self, table: Any, *, as_model: bool) -> Callable[[dict[str, Any]], Any]:
        """Return what makes of a record what a caller gets."""
        return instances_of(self._declarations.of(table)) if as_model else lambda record: record

    def reading_one(self, table: Any, key: Any) -> Waiting[dict[str, Any] | None]:
        """Do what ``WriteBehind.get`` does, for who waits in another way than in a thread."""
        if isinstance(key, Mapping):
            key = tuple(self._declarations.plan_of(table).key_only(key)[2].values())
        return self._reader.reading_one(self._declarations.of(table), key)

    def reading(self, table: Any, keys: Sequence[Any]) -> Waiting[dict[Any, dict[str, Any] | None]]:
        """Do what ``WriteBehind.get_many`` does, likewise."""
        return self._reader.reading(self._declarations.of(table), keys)
