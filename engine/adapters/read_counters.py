"""Counting what reads of tables and of caches meet with, in this process and summed over all of them."""

from collections.abc import Iterable, Mapping

from writebehind.engine.adapters.links import Links
from writebehind.engine.adapters.shared_counts import Counted, SharedCounts, sums_of
from writebehind.engine.core.caching import CacheCounts
from writebehind.engine.core.keys import Keys
from writebehind.engine.core.read_counts import ReadCounts

__all__ = ["CacheCounters", "ReadCounters", "summed_cache_reads", "summed_reads"]


class ReadCounters:
    """What reads of tables have met with in this process; may be shared between threads.

    Args:
        links: connections.
        keys: the namespace's key names.
        tables: the names of the tables.
    """

    def __init__(self, links: Links, keys: Keys, tables: Iterable[str]) -> None:
        self._tables = tuple(tables)
        self._shared = SharedCounts(links, keys.reads)

    def begin(self) -> None:
        """Count from 0; to be called in a forked child."""
        self._shared.begin()

    def add(self, table: str, name: str, amount: int) -> None:
        """Add to a field of a table's ``ReadCounts``."""
        self._shared.add((table, name), amount)

    def counts(self) -> dict[str, ReadCounts]:
        """Return what this process has counted, by table."""
        return dict.fromkeys(self._tables, ReadCounts()) | _of_tables(self._shared.counts())

    def tell(self) -> None:
        """Add what is new to the sums in Redis; see ``SharedCounts.tell``."""
        self._shared.tell()


class CacheCounters:
    """What reads of one cache have met with in this process; may be shared between threads.

    Args:
        links: connections.
        keys: the namespace's key names.
        cache: its name.
    """

    def __init__(self, links: Links, keys: Keys, cache: str) -> None:
        self._cache = cache
        self._shared = SharedCounts(links, keys.cache_reads)

    def begin(self) -> None:
        """Count from 0; to be called in a forked child."""
        self._shared.begin()

    def add(self, name: str, amount: float = 1) -> None:
        """Add to a field of ``CacheCounts``."""
        if name == "load_seconds":
            name, amount = "load_us", round(1e6 * amount)
        self._shared.add((self._cache, name), int(amount))

    def counts(self) -> CacheCounts:
        """Return what this process has counted."""
        return _of_caches(self._shared.counts()).get(self._cache, CacheCounts())

    def tell(self) -> None:
        """Add what is new to the sums in Redis; see ``SharedCounts.tell``."""
        self._shared.tell()


def summed_reads(links: Links, keys: Keys) -> dict[str, ReadCounts]:
    """Return what all processes of a namespace have told, by table.

    Raises:
        RedisUnavailable: Redis cannot be reached.
    """
    return _of_tables(sums_of(links, keys.reads))


def summed_cache_reads(links: Links, keys: Keys) -> dict[str, CacheCounts]:
    """Return the same of caches, by cache.

    Raises:
        RedisUnavailable: Redis cannot be reached.
    """
    return _of_caches(sums_of(links, keys.cache_reads))


def _of_tables(counted: Mapping[Counted, int]) -> dict[str, ReadCounts]:
    found: dict[str, dict[str, int]] = {}
    for (table, name), amount in counted.items():
        if name in ReadCounts.__dataclass_fields__:
            found.setdefault(table, {})[name] = amount
    return {table: ReadCounts(**counts) for table, counts in sorted(found.items())}


def _of_caches(counted: Mapping[Counted, int]) -> dict[str, CacheCounts]:
    found: dict[str, dict[str, float]] = {}
    for (cache, name), amount in counted.items():
        if name == "load_us":
            found.setdefault(cache, {})["load_seconds"] = amount / 1e6
        elif name in CacheCounts.__dataclass_fields__:
            found.setdefault(cache, {})[name] = amount
    return {cache: CacheCounts(**counts) for cache, counts in sorted(found.items())}  # type: ignore[arg-type]
