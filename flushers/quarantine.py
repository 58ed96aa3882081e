"""Which keys wait behind a dead letter: the holder's memory of what SQL has in its dead letters.

Pure. Letters of one key form a line; a letter of several keys, an atomic group's, ties their lines together. What is
tied is a chain, and is resolved in the order of its places.

Invariants:

1. An entry whose key has a letter is set aside behind it, or it supersedes the letter; it never overtakes it.
2. Only a whole put and a delete supersede, and only where all letters of their key are about this one key.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from writebehind.engine.core.payload import Mutation, Op

__all__ = ["Key", "Letter", "Quarantine", "keys_of", "superseded_key"]

Key = tuple[str, str]
"""Table and key text."""

SUPERSEDING = frozenset({Op.PUT, Op.DELETE})


@dataclass(frozen=True, slots=True)
class Letter:
    """A letter, as far as the flusher has to know it.

    Attributes:
        keys: what it changes; none for a row whose key the database makes, and for what cannot be read.
        retry_at: when to try it again, on the monotonic clock; None where nobody does by himself.
        retry_until: how long that goes on.
    """

    keys: tuple[Key, ...]
    retry_at: float | None = None
    retry_until: float = 0.0


@dataclass(slots=True)
class Quarantine:
    """The letters of one partition.

    Attributes:
        letters: by place.
    """

    letters: dict[int, Letter] = field(default_factory=dict)
    _places: dict[Key, tuple[int, ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.letters)

    def copy(self) -> "Quarantine":
        """Return another one with the same letters."""
        return Quarantine(dict(self.letters), dict(self._places))

    def add(self, place: int, letter: Letter) -> None:
        """Add a letter, or put another one in its place."""
        self.remove([place])
        self.letters[place] = letter
        for key in letter.keys:
            self._places[key] = tuple(sorted({*self._places.get(key, ()), place}))

    def remove(self, places: Iterable[int]) -> None:
        """Remove letters; those that are not there are no error."""
        for place in places:
            letter = self.letters.pop(place, None)
            for key in letter.keys if letter is not None else ():
                left = tuple(other for other in self._places[key] if other != place)
                if left:
                    self._places[key] = left
                else:
                    del self._places[key]

    def holds(self, mutations: Iterable[Mutation], place: float = inf) -> bool:
        """Tell whether an entry that would get a place has to wait behind a letter, or to supersede it."""
        places = self._places
        return any((table, key) in places and places[table, key][0] < place for _, table, key, _ in mutations)

    def superseded_by(self, mutations: Sequence[Mutation], place: float = inf) -> tuple[int, ...]:
        """Return the letters that an entry makes meaningless, once it is applied; none where it has to wait."""
        key = superseded_key(mutations)
        before = tuple(other for other in self._places.get(key, ()) if other < place) if key is not None else ()
        return before if all(len(self.letters[other].keys) == 1 for other in before) else ()

    def chain(self, place: int) -> list[int]:
        """Return the places of all letters that are tied to one, itself included, in their order."""
        found, todo = {place}, [place]
        while todo:
            for key in self.letters[todo.pop()].keys:
                new = set(self._places[key]) - found
                found |= new
                todo += new
        return sorted(found)

    def due(self, now: float) -> list[int]:
        """Return the letters that have to be tried again."""
        return [
            place for place, letter in self.letters.items() if letter.retry_at is not None and letter.retry_at <= now
        ]

    def postpone(self, place: int, retry_at: float | None) -> None:
        """Say when a letter is tried again."""
        self.letters[place] = replace(self.letters[place], retry_at=retry_at)


def keys_of(mutations: Sequence[Mutation]) -> tuple[Key, ...]:
    """Return the keys that an entry changes, each once."""
    return tuple(dict.fromkeys((table, key) for _, table, key, _ in mutations if key))


def superseded_key(mutations: Sequence[Mutation]) -> Key | None:
    """Return the key whose history an entry makes meaningless, or None."""
    if len(mutations) != 1:
        return None
    op, table, key, _ = mutations[0]
    return (table, key) if op in SUPERSEDING and key else None
