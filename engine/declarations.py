"""The tables of an engine, and what each says of its writes."""

from collections.abc import Collection, Sequence
from typing import Any

from writebehind.engine.adapters.declaration import DeclaredTable, declare
from writebehind.engine.config import Backpressure, WritePolicy, policy_of
from writebehind.engine.core.appending import Call
from writebehind.engine.core.payload import decode
from writebehind.engine.core.records import RecordPlan
from writebehind.engine.core.retention import Accepted
from writebehind.engine.errors import ConfigurationError

__all__ = ["Declarations"]

HARSHEST_FIRST = (Backpressure.REJECT, Backpressure.BLOCK, Backpressure.WRITE_THROUGH)


class Declarations:
    """What is declared to one engine.

    Args:
        tables: declarative classes or ``sqlalchemy.Table``.
        dialect_name: of the database that they lie in.
        backpressure: of tables that do not name one.

    Attributes:
        by_name: the tables.

    Raises:
        ConfigurationError: a table cannot be mirrored faithfully, or is given twice.
    """

    __slots__ = ("_backpressure", "_given", "_one_backpressure", "_through", "by_name")

    def __init__(self, tables: Sequence[Any], dialect_name: str, backpressure: Backpressure) -> None:
        self._backpressure = backpressure
        self._given: dict[Any, DeclaredTable] = {}
        self.by_name: dict[str, DeclaredTable] = {}
        for table in tables:
            declared = declare(table, dialect_name)
            name = declared.entity.name
            if name in self.by_name:
                raise ConfigurationError(f"table {name} is given twice", "name each table once")
            self.by_name[name] = declared
            self._given[table] = self._given[declared.table] = declared
        self._one_backpressure = all(declared.backpressure is None for declared in self.by_name.values())
        self._through = frozenset(
            name for name, declared in self.by_name.items() if declared.policy is WritePolicy.WRITE_THROUGH
        )

    def of(self, table: Any) -> DeclaredTable:
        """Return what is known of a declared class or table.

        Raises:
            ConfigurationError: it is not declared.
        """
        try:
            return self._given[table]
        except (KeyError, TypeError):
            name = getattr(table, "__tablename__", None) or getattr(table, "name", None) or repr(table)
            raise ConfigurationError(
                f"table {name} is not declared", f"add it to tables=[...]; declared are: {', '.join(self.by_name)}"
            ) from None

    def plan_of(self, table: Any) -> RecordPlan:
        """Return the record plan of a declared class or table.

        Raises:
            ConfigurationError: it is not declared.
        """
        try:
            return self._given[table].plan
        except (KeyError, TypeError):
            return self.of(table).plan

    def key_columns(self) -> dict[str, frozenset[str]]:
        """Return the names of each table's key columns."""
        return {
            name: frozenset(column.name for column in declared.entity.key) for name, declared in self.by_name.items()
        }

    def writes_through(self, names: Collection[str], policy: WritePolicy | None) -> bool:
        """Tell whether a call returns only when SQL has its writes: as it says itself, else as one of its tables does.

        Raises:
            ConfigurationError: there is no such policy.
        """
        if policy is not None:
            return policy_of(WritePolicy, policy, "policy", "write") is WritePolicy.WRITE_THROUGH
        return bool(self._through) and not self._through.isdisjoint(names)

    def backpressure_of_call(self, call: Call) -> Backpressure:
        """Return what becomes of a call where a limit is reached."""
        if self._one_backpressure:
            return self._backpressure
        singles = Accepted(call, b"0-0", 0.0).singles()
        return self.backpressure_of({table for single in singles for _, table, _, _ in decode(single.payload)})

    def backpressure_of(self, names: Collection[str]) -> Backpressure:
        """Return what becomes of writes to some tables, together, where a limit is reached.

        Where there are several tables: REJECT goes before BLOCK, and that before WRITE_THROUGH.
        """
        if self._one_backpressure:
            return self._backpressure
        # What is about a dead letter may name a table that is not declared, or none.
        chosen = {self.by_name[name].backpressure if name in self.by_name else None for name in names}
        policies = {policy or self._backpressure for policy in chosen}
        return next(each for each in HARSHEST_FIRST if each in policies)
