"""What of a namespace a comparison or a repair looks at."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from writebehind.engine import WriteBehind
from writebehind.engine.adapters.rows import different
from writebehind.engine.errors import ValidationError
from writebehind.recovery.keyspace import Keyspace
from writebehind.recovery.records import refused

__all__ = ["Scope"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scope:
    """What of a namespace to look at.

    Attributes:
        only_tables: names of tables, or None for all.
        partitions: numbers.
        whole: whether these are all of them.
    """

    only_tables: frozenset[str] | None
    partitions: Sequence[int]
    whole: bool

    @classmethod
    def of(cls, app: WriteBehind, tables: Collection[Any] | None, partitions: Collection[int] | None) -> "Scope":
        """Check what was asked for, and that the namespace is what the engine takes it for.

        Raises:
            ValidationError: a table is not declared, or a partition is out of range.
            ConfigurationError: the namespace has another number of partitions.
            RedisUnavailable: Redis cannot be read.
        """
        names = None
        if tables is not None:
            names = frozenset(table if isinstance(table, str) else app.declared(table).entity.name for table in tables)
            unknown = sorted(names - app.tables.keys())
            if unknown:
                raise ValidationError(
                    f"table {', '.join(unknown)} is not declared", f"choose from {', '.join(app.tables)}"
                )
        total = app.keys.partitions
        numbers = range(total) if partitions is None else sorted(set(partitions))
        if any(number not in range(total) for number in numbers):
            raise ValidationError("a partition is out of range", f"choose from 0 to {total - 1}")
        _agree(app)
        return cls(only_tables=names, partitions=numbers, whole=partitions is None)

    def keyspace(self, app: WriteBehind) -> Keyspace:
        """Return the keys in scope."""
        return Keyspace(
            app.links, app.keys, app.tables, self.only_tables, None if self.whole else frozenset(self.partitions)
        )


def _agree(app: WriteBehind) -> None:
    """Compare the number of partitions: with another one every record would seem to be in the wrong place."""
    app.rows.check(app.namespace_settings)
    with app.links.link() as link:
        try:
            found = link.command("HGET", app.keys.shared, "partitions")
        except redis.ResponseError as error:
            raise refused(error) from error
    if found is not None and int(found) != app.keys.partitions:
        raise different(app.namespace_settings, int(found), "Redis")
