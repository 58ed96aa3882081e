"""Stories: all that is written of one row, what of it SQL refuses, what is decided then, and how the row ends.

Pure. What the row is in between and in the end is not given but told from the writes themselves, one after the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from writebehind.engine.core.payload import Op

__all__ = ["KEYS_PER_STRIKE", "Ending", "Fate", "Story", "Ward", "Write", "stories_of"]

Ward = Mapping[str, int | None]
"""A row of the table, by column."""

KEYS_PER_STRIKE = 1_000
ROUNDS = 5
"""How many stories of each kind a strike tells; two of those in which nothing is refused."""
CORRECTED_LEVEL = 7


class Fate(Enum):
    """What SQL makes of a write."""

    TAKEN = "taken"
    """It is in SQL, or a later one has made it meaningless."""
    REFUSED = "refused"
    WAITS = "waits"
    """Nothing is wrong with it, but one before it was refused."""


class Ending(Enum):
    """What is done about what was set aside."""

    NOTHING = "nothing was set aside"
    CORRECTED = "the refused write is replayed with a correction"
    DISCARDED = "the refused write is discarded"
    GIVEN_UP = "the refused write is discarded, with all that wait behind it"
    PARENT = "the parent row is written; it is tried again by itself"


@dataclass(frozen=True, slots=True)
class Write:
    """One write of the row: a put of all columns, a patch of some, or amounts to add."""

    op: Op
    values: Mapping[str, int | None]
    fate: Fate = Fate.TAKEN


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """The story of one row.

    Attributes:
        key: of the row.
        writes: in their order; the first is there before anything is refused, where it is not refused itself.
        ending: what is done about what was set aside.
        correction: values for the replay.
    """

    key: int
    writes: Sequence[Write]
    ending: Ending = Ending.NOTHING
    correction: Mapping[str, int | None] | None = None

    @property
    def opening(self) -> Sequence[Write]:
        """The first write, where SQL takes it."""
        return self.writes[:1] if self.writes[0].fate is Fate.TAKEN else []

    @property
    def held(self) -> Ward | None:
        """The row while something is set aside; None for none."""
        return _told(self.key, [write for write in self.writes if write.fate is Fate.TAKEN])

    @property
    def final(self) -> Ward | None:
        """The row in the end; None for none."""
        if self.ending is Ending.GIVEN_UP:
            return self.held
        kept = [write for write in self.writes if write.fate is not Fate.REFUSED or self.ending is not Ending.DISCARDED]
        corrected = [
            Write(write.op, {**write.values, **(self.correction or {})}) if write.fate is Fate.REFUSED else write
            for write in kept
        ]
        return _told(self.key, corrected)


def stories_of(strike: int) -> list[Story]:
    """Return the stories of a strike; no two strikes have keys in common.

    Args:
        strike: its number, from 1.
    """
    stories: list[Story] = []
    first = strike * KEYS_PER_STRIKE
    for _ in range(ROUNDS):
        for tell in _PLOTS:
            stories.append(tell(first + len(stories), first))
    return stories


def _told(key: int, writes: Sequence[Write]) -> Ward | None:
    """Tell what a row is after some writes; a patch or an increment of no row makes none."""
    row: dict[str, Any] | None = None
    for write in writes:
        if write.op is Op.PUT:
            row = {"id": key, **write.values}
        elif row is not None and write.op is Op.PATCH:
            row |= write.values
        elif row is not None:
            row |= {name: row[name] + amount for name, amount in write.values.items()}
    return row


def _whole(key: int, **values: int | None) -> dict[str, int | None]:
    return {"code": key, "level": 1, "guardian": None, "version": 1, "steps": 0, **values}


def _later(fate: Fate) -> list[Write]:
    """Return writes of which only this order leads to the row as it has to be."""
    return [
        Write(Op.INCREMENT, {"steps": 1}, fate),
        Write(Op.PATCH, {"version": 2, "steps": 10}, fate),
        Write(Op.INCREMENT, {"steps": 1}, fate),
        Write(Op.PATCH, {"version": 3}, fate),
    ]


def _sound(key: int, _: int) -> Story:
    return Story(key=key, writes=[Write(Op.PUT, _whole(key)), *_later(Fate.TAKEN)])


def _too_low(key: int, ending: Ending, correction: Mapping[str, int | None] | None = None) -> Story:
    """A row is changed to what a CHECK refuses."""
    refused = Write(Op.PATCH, {"level": -1}, Fate.REFUSED)
    writes = [Write(Op.PUT, _whole(key)), refused, *_later(Fate.WAITS)]
    return Story(key=key, writes=writes, ending=ending, correction=correction)


def _too_low_corrected(key: int, _: int) -> Story:
    return _too_low(key, Ending.CORRECTED, {"level": CORRECTED_LEVEL})


def _too_low_discarded(key: int, _: int) -> Story:
    return _too_low(key, Ending.DISCARDED)


def _superseded(key: int, _: int) -> Story:
    """A row is changed to what a CHECK refuses, and then written whole."""
    writes = [
        Write(Op.PUT, _whole(key)),
        Write(Op.PATCH, {"level": -1}),
        Write(Op.INCREMENT, {"steps": 1}),
        Write(Op.PUT, _whole(key, version=4)),
    ]
    return Story(key=key, writes=writes)


def _used_code(key: int, taken: int, ending: Ending, correction: Mapping[str, int | None] | None = None) -> Story:
    """A new row has a code that UNIQUE refuses."""
    writes = [Write(Op.PUT, _whole(key, code=taken), Fate.REFUSED), *_later(Fate.WAITS)]
    return Story(key=key, writes=writes, ending=ending, correction=correction)


def _used_code_corrected(key: int, first: int) -> Story:
    return _used_code(key, first, Ending.CORRECTED, {"code": key})


def _used_code_given_up(key: int, first: int) -> Story:
    return _used_code(key, first, Ending.GIVEN_UP)


def _orphan(key: int, _: int) -> Story:
    """A new row refers to one that is not there yet."""
    writes = [Write(Op.PUT, _whole(key, guardian=key), Fate.REFUSED), *_later(Fate.WAITS)]
    return Story(key=key, writes=writes, ending=Ending.PARENT)


_PLOTS = (
    _sound,  # the first: its code is the one that others want, too
    _too_low_corrected,
    _used_code_given_up,
    _orphan,
    _sound,
    _superseded,
    _used_code_corrected,
    _too_low_discarded,
)
