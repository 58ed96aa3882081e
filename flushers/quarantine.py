"""Which keys wait behind a dead letter: the holder's memory of what SQL has in its dead letters.

Pure. Letters of one key form a line; a letter of several keys, an atomic group's, ties their lines together. What is
tied is a chain, and is resolved in the order of its places.

Invariants:

1. An entry whose key has a letter is set aside behind it, or it supersedes the letter; it never overtakes it.
2. Only a put and a delete supersede, and only where all letters of their key are about this one row; and a put only
   where it has every column that they change.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from writebehind.engine.core.payload import Mutation, Op

__all__ = ["Key", "Letter", "Quarantine", "keys_of", "letter_of"]

Key = tuple[str, str]
"""Table and key text."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A letter, as far as the flusher has to know it.

    Attributes:
        keys: what it changes; none for a row whose key the database makes, and for what cannot be read.
        retry_at: when to try it again, on the monotonic clock; None where nobody does by himself.
        retry_until: how long that goes on.
        columns: what it changes of its row; None for the row as a whole, which it deletes.
        keyless: it also makes rows whose keys the database makes.
    """

    keys: tuple[Key, ...]
    retry_at: float | None = None
    retry_until: float = 0.0
    columns: frozenset[str] | None = frozenset()
    keyless: bool = False


@dataclass(slots=True)
class Quarantine:
    """The letters of one partition.

    Attributes:
        letters: by place.
        whole: by table, the columns that a put has to have to replace a whole row.
    """

    letters: dict[int, Letter] = field(default_factory=dict)
    whole: Mapping[str, frozenset[str]] = field(default_factory=dict)
    _places: dict[Key, dict[int, None]] = field(default_factory=dict)  # in their order

    def __bool__(self) -> bool:
        return bool(self.letters)

    def copy(self) -> "Quarantine":
        """Return another one with the same letters."""
        return Quarantine(dict(self.letters), self.whole, {key: dict(places) for key, places in self._places.items()})

    def add(self, place: int, letter: Letter) -> None:
        """Add a letter, or put another one in its place."""
        former = self.letters.get(place)
        if former is not None and former.keys != letter.keys:
            self.remove([place])
        self.letters[place] = letter
        for key in letter.keys:
            places = self._places.setdefault(key, {})
            in_order = not places or place in places or next(reversed(places)) < place
            places[place] = None
            if not in_order:
                self._places[key] = dict.fromkeys(sorted(places))

    def remove(self, places: Iterable[int]) -> None:
        """Remove letters; those that are not there are no error."""
        for place in places:
            letter = self.letters.pop(place, None)
            for key in letter.keys if letter is not None else ():
                del self._places[key][place]
                if not self._places[key]:
                    del self._places[key]

    def holds(self, mutations: Iterable[Mutation], place: float = inf) -> bool:
        """Tell whether an entry that would get a place has to wait behind a letter, or to supersede it."""
        for _, table, key, _ in mutations:
            line = self._places.get((table, key))
            if line is not None and next(iter(line)) < place:
                return True
        return False

    def superseded_by(self, mutations: Sequence[Mutation], place: float = inf) -> tuple[int, ...]:
        """Return the letters that an entry makes meaningless, once it is applied; none where it has to wait."""
        if len(mutations) != 1:
            return ()
        op, table, key, values = mutations[0]
        before: list[int] = []
        for other in self._places.get((table, key), ()) if op in {Op.PUT, Op.DELETE} else ():
            letter = self.letters[other]
            needed = self.whole.get(table) if letter.columns is None else letter.columns
            if other < place:
                if letter.keyless or len(letter.keys) > 1 or (op == Op.PUT and not _covers(values, needed)):
                    return ()
                before.append(other)
        return tuple(before)

    def leading(self) -> list[int]:
        """Return the letters that have no other one before them in any of their lines."""
        first = {key: next(iter(places)) for key, places in self._places.items()}
        return [place for place, letter in self.letters.items() if all(first[key] == place for key in letter.keys)]

    def chain(self, place: int) -> list[int]:
        """Return the places of all letters that are tied to one, itself included, in their order."""
        return self.chains([place])

    def chains(self, places: Iterable[int]) -> list[int]:
        """Return the places of all letters that are tied to some; those that are no letters are left out."""
        todo = [place for place in places if place in self.letters]
        found, seen = set(todo), set[Key]()
        while todo:
            for key in self.letters[todo.pop()].keys:
                if key not in seen:
                    seen.add(key)
                    todo += self._places[key].keys() - found
                    found |= self._places[key].keys()
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


def _covers(values: Mapping[str, Any], columns: frozenset[str] | None) -> bool:
    return columns is not None and values.keys() >= columns


def letter_of(mutations: Sequence[Mutation], retry_at: float | None = None, retry_until: float = 0.0) -> Letter:
    """Return what the flusher has to know of an entry that becomes a letter."""
    keys = keys_of(mutations)
    deletes = any(op == Op.DELETE for op, _, _, _ in mutations)
    columns = None if deletes else frozenset[str]().union(*(values for _, _, _, values in mutations))
    return Letter(keys, retry_at, retry_until, columns, not all(key for _, _, key, _ in mutations))
