"""The keyspace: which records Redis has, in bounded memory.

One SCAN goes over the whole Redis database, whatever the number of partitions. What SCAN promises holds: a record
that is there all the while is named; one that comes or goes meanwhile may be; while Redis resizes its table of keys a
record may be named twice.
"""

import random
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import redis

from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.engine.adapters.links import Links
from writebehind.engine.core.keys import Keys
from writebehind.engine.core.partitioning import partition_of
from writebehind.recovery.comparison import RecordKey
from writebehind.recovery.key_texts import ForeignKey, key_values
from writebehind.recovery.records import refused

__all__ = ["CHUNK_RECORDS", "Foreign", "Keyspace", "chunks", "sampled"]

SCAN_KEYS = 1000
CHUNK_RECORDS = 500
"""Records that are compared at once: so much is in memory."""

Advance = Callable[[int, int], None]
"""Told how many keys Redis has gone through, and how many there are, both roughly."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """A key that is no record of a declared table.

    Attributes:
        name: the key; bytes that are no UTF-8 are escaped.
        detail: why it is none.
    """

    name: str
    detail: str


class Keyspace:
    """The keys of one namespace.

    Args:
        links: connections.
        keys: the namespace's key names.
        tables: the declared tables by name.
        only_tables: keys of other tables are passed over, also where nobody declares them; None looks at all.
        only_partitions: likewise for partitions.
    """

    def __init__(
        self,
        links: Links,
        keys: Keys,
        tables: Mapping[str, DeclaredTable],
        only_tables: Collection[str] | None = None,
        only_partitions: Collection[int] | None = None,
    ) -> None:
        self._links = links
        self._keys = keys
        self._tables = tables
        self._only_tables = only_tables
        self._only_partitions = only_partitions
        self._stem = f"wb:{{{keys.namespace}:"
        self._partitions = {stem: number for number, stem in enumerate(keys.stems)}
        self._own = frozenset((*keys.logs, *keys.metas))

    def walk(self, advance: Advance | None = None) -> Iterator[RecordKey | Foreign]:
        """Name every record and every foreign key.

        Raises:
            RedisUnavailable: Redis cannot be read.
            ConfigurationError: Redis refuses for good.
        """
        cursor = b"0"
        gone_through = 0
        total = int(self._command("DBSIZE"))
        while True:
            cursor, names = self._command("SCAN", cursor, "MATCH", f"{self._stem}*", "COUNT", SCAN_KEYS)
            for name in names:
                found = self._found(name)
                if found is not None:
                    yield found
            gone_through += SCAN_KEYS
            if advance is not None:
                advance(total if cursor == b"0" else min(gone_through, total), total)
            if cursor == b"0":
                return

    def _command(self, *arguments: Any) -> Any:
        with self._links.link() as link:
            try:
                return link.command(*arguments)
            except redis.ResponseError as error:
                raise refused(error) from error

    def _found(self, raw: bytes) -> RecordKey | Foreign | None:
        name = raw.decode(errors="backslashreplace")
        if name in self._own:
            return None
        tag, _, rest = name.removeprefix(self._stem).partition("}:")
        partition = self._partitions.get(f"{self._stem}{tag}}}:")
        table = rest.partition(":")[0]
        if self._only_partitions is not None and partition not in self._only_partitions:
            return None
        if self._only_tables is not None and table not in self._only_tables:
            return None
        try:
            raw.decode()
            return self._record(partition, table, rest)
        except UnicodeDecodeError:
            return Foreign(name, "its name is no UTF-8")
        except ForeignKey as error:
            return Foreign(name, str(error))

    def _record(self, partition: int | None, table: str, rest: str) -> RecordKey:
        if partition is None:
            raise ForeignKey(f"the namespace has partitions 0 to {self._keys.partitions - 1}, and not this one")
        declared = self._tables.get(table)
        if declared is None:
            raise ForeignKey("no declared table is called so")
        key_text = rest[len(table) + 1 :]
        spread, values = key_values(declared.plan, key_text)
        home = partition_of(spread, self._keys.partitions)
        if home != partition:
            raise ForeignKey(f"this key belongs to partition {home}")
        return RecordKey(partition, table, key_text, values)


def chunks(found: Iterator[RecordKey | Foreign], foreign: Callable[[Foreign], None]) -> Iterator[list[RecordKey]]:
    """Gather records into chunks of one table each; hand foreign keys over as they come."""
    gathered: dict[str, list[RecordKey]] = {}
    for each in found:
        if isinstance(each, Foreign):
            foreign(each)
            continue
        chunk = gathered.setdefault(each.table, [])
        chunk.append(each)
        if len(chunk) >= CHUNK_RECORDS:
            yield gathered.pop(each.table)
    yield from gathered.values()


def sampled(
    found: Iterator[RecordKey | Foreign], foreign: Callable[[Foreign], None], size: int, chance: random.Random
) -> tuple[list[list[RecordKey]], dict[str, int]]:
    """Choose records at random, each of a table as likely as any other; return chunks, and how many each table has.

    Args:
        found: all keys.
        foreign: told of the foreign ones.
        size: records of each table at the most; so much is in memory.
        chance: where randomness comes from.
    """
    chosen: dict[str, list[RecordKey]] = {}
    totals: dict[str, int] = {}
    for each in found:
        if isinstance(each, Foreign):
            foreign(each)
            continue
        table = each.table
        totals[table] = total = totals.get(table, 0) + 1
        if total <= size:
            chosen.setdefault(table, []).append(each)
        elif (place := chance.randrange(total)) < size:
            chosen[table][place] = each
    return [
        records[start : start + CHUNK_RECORDS]
        for records in chosen.values()
        for start in range(0, len(records), CHUNK_RECORDS)
    ], totals
