"""What reads that are under way may return."""

from collections.abc import Callable, Collection, Mapping, Sequence

from simulator.naive import Contents, apply_entry
from simulator.records import Entry, Place, Watch
from simulator.redis_keyspace import StreamID
from simulator.schema import TABLES
from simulator.standing import Standing

__all__ = ["Reads"]


class Reads:
    """The reads under way.

    Args:
        standing: returns what SQL has.
        entries: every entry that a Redis ever accepted.
        waiting: returns the entries of a partition's log that SQL has not passed.
    """

    def __init__(
        self,
        standing: Callable[[], Standing],
        entries: Mapping[Place, Entry],
        waiting: Callable[[int], Sequence[StreamID]],
    ) -> None:
        self._standing = standing
        self._entries = entries
        self._waiting = waiting
        self._watches: list[Watch] = []

    def begin(self, watch: Watch) -> Watch:
        """Begin to look."""
        self._look(watch, ())
        self._watches.append(watch)
        return watch

    def end(self, watch: Watch) -> None:
        """End looking."""
        self._watches.remove(watch)

    def void(self) -> None:
        """Ask nothing of the reads under way."""
        for watch in self._watches:
            watch.void = True

    def look(self, partitions: Collection[int] | None = None, new: Collection[Place] = ()) -> None:
        """Note what records may be now.

        Args:
            partitions: which ones have changed; None for all.
            new: entries that were just accepted.
        """
        for watch in self._watches:
            if partitions is None or watch.partition in partitions:
                self._look(watch, new)

    def _look(self, watch: Watch, new: Collection[Place]) -> None:
        """Note what a record is: SQL's row, and on it what the log has that SQL has not.

        Entries that came together are independent all the same: a read may see some of them.
        """
        standing, contents = self._standing(), Contents()
        at = (watch.table, watch.key)
        if standing.holds({at}):
            # Redis shows what was accepted or what SQL has, by what it knows of the record.
            watch.void = True
        row = standing.contents.rows.get(at)
        if row is not None:
            contents.rows[at] = row
        seen: set[str] = set()
        for entry in self._waiting(watch.partition):
            known = self._entries[watch.partition, entry]
            if known.mutation not in standing.mutations and known.mutation not in seen:
                apply_entry(contents, known.payload, TABLES)
                seen.add(known.mutation)
            if (watch.partition, entry) in new:
                watch.possible.append(contents.rows.get(at))
        if not watch.possible or watch.possible[-1] != contents.rows.get(at):
            watch.possible.append(contents.rows.get(at))
