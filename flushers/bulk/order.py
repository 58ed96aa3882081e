"""The order in which tables are written, so that parents exist before their children."""

from collections.abc import Iterable

from writebehind.engine.adapters.declaration import DeclaredTable

__all__ = ["in_foreign_key_order"]


def in_foreign_key_order(tables: Iterable[DeclaredTable]) -> list[DeclaredTable]:
    """Return the tables with referred ones before referring ones; deletes go through it reversed.

    Where nothing else decides, the given order stays. In a cycle no order is right: the table given
    first comes last of its cycle. A reference of a table to itself counts for nothing: its rows stay
    in the order of their entries.
    """
    declared = {table.entity.name: table for table in tables}
    ordered: dict[str, DeclaredTable] = {}
    seen: set[str] = set()
    for first in declared:
        # An explicit stack: a chain of tables may be longer than Python's recursion limit allows.
        stack = [first]
        while stack:
            name = stack[-1]
            if name not in seen:
                seen.add(name)
                waiting = [other for other in declared if other in declared[name].foreign_keys and other not in seen]
                stack.extend(reversed(waiting))
                if waiting:
                    continue
            stack.pop()
            ordered.setdefault(name, declared[name])
    return list(ordered.values())
