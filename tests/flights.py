"""Reads that are under way while other things happen: each goes on by one effect at a time."""

import copy
from typing import Any

import sqlalchemy as sa

from writebehind.engine import DatabaseUnavailable, RedisUnavailable, WriteBehind
from writebehind.engine.core.read_effects import Release, Wait

__all__ = ["Flight"]

Row = dict[str, Any]


class Flight:
    """A read of one record, begun and not ended.

    Args:
        app: the engine that reads.
        table: the record's table.
        key: its key.
        now: what the record is.

    Attributes:
        effect: what it does next.
        void: nothing is asked of what it finds: Redis has lost what it had when the read began.
    """

    def __init__(self, app: WriteBehind, table: sa.Table, key: int, now: Row | None) -> None:
        app.start()
        self.table = table.name
        self.key = key
        self.void = False
        self._possible = [copy.deepcopy(now)]
        self._reader = app._reader
        self._declared = app.declared(table)
        self._steps = self._reader._steps(self._declared, [key])
        self.effect = next(self._steps)

    def note(self, now: Row | None) -> None:
        """Note what the record has become."""
        if now != self._possible[-1]:
            self._possible.append(copy.deepcopy(now))

    def fail(self) -> bool:
        """Have SQL away at this effect; tell whether the read goes on: that renews what is there may."""
        try:
            self.effect = self._steps.throw(DatabaseUnavailable("it is away", "wait"))
            return not isinstance(self.effect, Release) or self.step()
        except StopIteration as done:
            self._check(done.value)
        except DatabaseUnavailable:
            pass
        return False

    def step(self) -> bool:
        """Do one effect; tell whether the read goes on."""
        try:
            if isinstance(self.effect, Wait):
                # As if the watermark had been awaited for long.
                self.effect = self._steps.send(1.0)
            else:
                self.effect = self._steps.send(self._reader._perform(self._declared, self.effect))
        except StopIteration as done:
            self._check(done.value)
            return False
        except (RedisUnavailable, DatabaseUnavailable):
            # Redis was restarted meanwhile, or SQL was away at the effect before.
            return False
        return True

    def _check(self, records: dict[Any, Row | None]) -> None:
        found = records[self.key]
        assert self.void or found in self._possible, f"{found} was read; it was {self._possible}"
