"""Repair: one side wins, and the other is made to follow.

SQL wins: the record is removed from Redis, where it is still what was judged; the next read loads the row. Redis wins:
the record is written again through the log, likewise; a flusher brings it to SQL. What SQL still has to hear of is
never removed, and foreign keys are never touched.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from enum import Enum
from itertools import groupby

import redis

from writebehind.engine import WriteBehind
from writebehind.engine.adapters.scripts import FORGET
from writebehind.engine.core.composing import Entry
from writebehind.engine.core.reading import Standing
from writebehind.engine.errors import ValidationError
from writebehind.recovery.comparison import Judged, Verdict
from writebehind.recovery.records import refused
from writebehind.recovery.rewriting import ConditionalWriter, Rewrite

__all__ = ["Outcome", "Repair", "Winner"]

NO_HASH = b"!"


class Winner(Enum):
    """The side that is right."""

    REDIS = "redis"
    SQL = "sql"


class Outcome(Enum):
    """What became of a record that had to be repaired."""

    REMOVED = "removed"
    REWRITTEN = "rewritten"
    LEFT_ALONE = "left_alone"
    """It was written while it was being repaired, or SQL still has to hear of it: verify again."""
    IMPOSSIBLE = "impossible"
    """This winner does not know what to write; the other one would."""


class Repair:
    """Repairs what ``verify`` judges, chunk by chunk; hand it over as ``on_judged``.

    Args:
        app: the engine.
        winner: the side that is right.
        dry_run: only count what would be done.

    Attributes:
        counts: how many records had which outcome.

    Durability: what was rewritten is in the log of the primary, and in SQL when it is flushed. Repeat: repairs what is
    left. Crash: each record is repaired or not; verify again.
    """

    def __init__(self, app: WriteBehind, winner: Winner, *, dry_run: bool) -> None:
        self._app = app
        self._winner = winner
        self._dry_run = dry_run
        self._writer = ConditionalWriter(app)
        self.counts: Counter[Outcome] = Counter()

    def __call__(self, chunk: Sequence[Judged]) -> None:
        """Repair those records of a chunk that need it.

        Raises:
            RedisUnavailable: Redis cannot be reached or refuses; the chunk is repaired in part.
            ConfigurationError: Redis refuses for good.
        """
        to_remove: list[Judged] = []
        to_write: list[tuple[Judged, Entry]] = []
        for judged in chunk:
            if removable(judged, self._winner):
                if judged.applied:
                    to_remove.append(judged)
                else:
                    self.counts[Outcome.LEFT_ALONE] += 1
            elif judged.verdict in {Verdict.DIVERGED, Verdict.LOST, Verdict.UNREADABLE}:
                entry = self._entry(judged)
                if entry is None:
                    self.counts[Outcome.IMPOSSIBLE] += 1
                else:
                    to_write.append((judged, entry))
        if self._dry_run:
            self.counts[Outcome.REMOVED] += len(to_remove)
            self.counts[Outcome.REWRITTEN] += len(to_write)
            return
        self._note(Outcome.REMOVED, self._remove(to_remove))
        self._note(Outcome.REWRITTEN, self._write(to_write))

    def _note(self, outcome: Outcome, done: Sequence[bool]) -> None:
        self.counts[outcome] += sum(done)
        self.counts[Outcome.LEFT_ALONE] += len(done) - sum(done)

    def _remove(self, chunk: Sequence[Judged]) -> list[bool]:
        done: list[bool] = []
        with self._app.links.link() as link:
            try:
                for _, group in groupby(sorted(chunk, key=_partition), key=_partition):
                    listed = list(group)
                    names = [self._name(judged) for judged in listed]
                    done += map(bool, link.script(FORGET, names, [_mark(judged) for judged in listed]))
            except redis.ResponseError as error:
                raise refused(error) from error
        return done

    def _write(self, todo: Sequence[tuple[Judged, Entry]]) -> list[bool]:
        return self._writer.write([Rewrite(self._name(judged), _mark(judged) or None, entry) for judged, entry in todo])

    def _entry(self, judged: Judged) -> Entry | None:
        """Return what makes SQL follow a record, or None where its hash does not tell."""
        sighting = judged.sighting
        if sighting is None or sighting.trouble is not None:
            return None
        composer, plan = self._app.composer, self._app.tables[judged.key.table].plan
        values = {name: value for name, value in sighting.values.items() if name not in judged.key.values}
        try:
            match sighting.state:
                case Standing.WHOLE:
                    return composer.put(plan, sighting.values) if len(sighting.values) == len(plan.columns) else None
                case Standing.OVERLAY:
                    return composer.patch(plan, judged.key.values, values)
                case Standing.ABSENT:
                    return composer.delete(plan, judged.key.values)
                case _:
                    return None
        except ValidationError:
            # Another program has put values there that the column cannot hold.
            return None

    def _name(self, judged: Judged) -> str:
        key = judged.key
        return self._app.keys.record(key.partition, key.table, key.key_text)


def removable(judged: Judged, winner: Winner) -> bool:
    """Tell whether a record is to be removed: what is left over always, what is wrong where SQL wins."""
    wrong = judged.verdict in {Verdict.DIVERGED, Verdict.LOST, Verdict.UNREADABLE}
    return judged.verdict is Verdict.LEFT_OVER or (wrong and winner is Winner.SQL)


def _partition(judged: Judged) -> int:
    return judged.key.partition


def _mark(judged: Judged) -> bytes:
    """Return what the record has to be still: its version, or that it is no hash."""
    raw: Mapping[bytes, bytes] = {} if judged.sighting is None else judged.sighting.raw
    return raw.get(b":version", NO_HASH if b"" in raw else b"")
