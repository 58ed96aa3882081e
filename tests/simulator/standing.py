"""What SQL has by the judge's own account: rows, and the dead letters that stand in line before them.

The rows and the letters of a key together are what its accepted entries give in their order. So an entry that a
transaction passes is applied, or supersedes the letters of its keys, or becomes a letter, because SQL refuses it or
because one of its keys has a letter; and a letter that goes was superseded, or discarded, or is applied, after what is
before it.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from simulator.constraints import Constraints
from simulator.naive import CONTROLS, Contents, apply_entry
from simulator.records import Place
from simulator.redis_keyspace import StreamID
from simulator.schema import TABLES
from writebehind.engine.core.payload import LETTER, MEANT, Mutation, Op, decode, encode
from writebehind.flushers.letters import FOREIGN_KEY

__all__ = ["Account", "Held", "Standing"]

Key = tuple[str, str]

MADE_AND_GONE = 1e-3
"""Sets a letter of which only the transaction knows behind the last one."""


@dataclass(frozen=True, slots=True)
class Held:
    """A letter.

    Attributes:
        entry: its entry in the log.
        mutation: the ID that its writer gave it.
        payload: what it would do.
        changes: the same, decoded.
    """

    entry: StreamID
    mutation: str
    payload: bytes
    changes: Sequence[Mutation]

    @property
    def keys(self) -> set[Key]:
        """The records that it changes."""
        return {(table, key) for _, table, key, _ in self.changes if key}


@dataclass(slots=True)
class Standing:
    """What SQL has.

    Attributes:
        contents: its rows.
        applied: the entries that it has passed, in the order of their commits.
        mutations: by mutation ID, the entry by which SQL has passed it.
        letters: by partition and place, the letters.
        in_doubt: the entries that it has passed although it may have their writes already, or not.
    """

    contents: Contents = field(default_factory=Contents)
    applied: dict[Place, None] = field(default_factory=dict)
    mutations: dict[str, Place] = field(default_factory=dict)
    letters: dict[tuple[int, int], Held] = field(default_factory=dict)
    in_doubt: dict[Place, None] = field(default_factory=dict)

    def copied(self) -> "Standing":
        """Return the same, to be changed apart."""
        return Standing(
            self.contents.copied(), dict(self.applied), dict(self.mutations), dict(self.letters), dict(self.in_doubt)
        )

    def of(self, partition: int) -> dict[int, Held]:
        """Return a partition's letters by place, in their order."""
        return {place: self.letters[number, place] for number, place in sorted(self.letters) if number == partition}

    def holds(self, keys: set[Key]) -> bool:
        """Tell whether a letter is about one of some records."""
        return any(not keys.isdisjoint(letter.keys) for letter in self.letters.values())


class Account:
    """Accounts for one transaction in one partition: each entry that it passes, each letter that it makes or deletes.

    Args:
        standing: what SQL had; changed.
        constraints: what SQL refuses, if anything.
        partition: its number.
        rows: by place, the letters that SQL has afterwards.

    Attributes:
        touched: the records concerned.
        seen: how often a letter was made, superseded, and so on.
        wrong: the first thing that cannot be: a rule and what was seen.
    """

    def __init__(
        self, standing: Standing, constraints: Constraints | None, partition: int, rows: Mapping[int, Mapping[str, Any]]
    ) -> None:
        self._standing = standing
        self._constraints = constraints
        self._partition = partition
        self._rows = rows
        self._lines: dict[float, Held] = {float(place): letter for place, letter in standing.of(partition).items()}
        self._made: dict[str, int] = {}
        self._gone: set[float] = set(self._lines.keys() - rows.keys())
        self._control: tuple[Op, int, dict[str, Any]] | None = None
        self._mistaken = False
        self._passed = 0
        self._passing: list[float] = []
        self._needless: list[Held] = []
        self.touched: set[Key] = set()
        self.seen: Counter[str] = Counter()
        self.wrong: tuple[str, str] | None = None
        for place in rows.keys() - self._lines.keys():
            entry = rows[place]["entry_id"]
            if entry in self._made or entry in {f"{held.entry[0]}-{held.entry[1]}" for held in self._lines.values()}:
                self._accuse("letters", f"entry {entry} is two letters of partition {partition}")
            self._made[entry] = place
        for place in standing.of(partition).keys() & rows.keys():
            before, after = self._lines[place], rows[place]
            if (before.mutation, before.payload) != (after["mutation_id"], after["payload"]):
                self._accuse("letters", f"{self._name(place)} was {before.mutation} and is {after['mutation_id']}")

    def take(self, entry: StreamID, mutation: str, payload: bytes, meant: str | None) -> None:
        """Account for an entry that takes effect, or becomes a letter.

        Args:
            entry: its ID.
            mutation: its mutation ID.
            payload: what it does.
            meant: where it is about a letter, the mutation ID of the letter that was meant.
        """
        held = Held(entry, mutation, payload, decode(payload))
        self._passed += 1
        self.touched |= held.keys
        op, _, _, values = held.changes[0]
        if op in CONTROLS:
            corrections = {name: value for name, value in values.items() if name not in {LETTER, MEANT}}
            self._control = Op(op), values[LETTER], corrections
            known = self._lines.get(values[LETTER])
            # After a rollback of SQL its place may be another's.
            self._mistaken = known is not None and known.mutation != meant
            return
        place = self._made.pop(f"{entry[0]}-{entry[1]}", None)
        if place is not None:
            self._set_aside(place, held)
            return
        before = self._before(held, inf)
        if before and self._replaces(held, before):
            for other in before:
                del self._lines[other]
                self.seen["letter superseded"] += 1
        elif before:
            # It waits, and one that comes after it in this transaction has to supersede it, too.
            self._passing.append(max(self._lines) + MADE_AND_GONE)
            self._lines[self._passing[-1]] = held
            return
        self._apply(payload)

    def conclude(self) -> None:
        """Account for what is left: letters that go without having been superseded."""
        for held in [self._lines.pop(place) for place in self._passing if place in self._lines]:
            self._accuse("overtaken", f"{held.mutation} took effect, or none, before the letters of its keys")
        if self._mistaken and (self._gone or self._made):
            self._accuse("mistaken", f"what was decided about another letter is done to {self._control}")
        for entry in self._made:
            self._accuse("letters", f"{entry} of partition {self._partition} became a letter and was not passed")
        for place in sorted(self._gone & self._lines.keys()):
            self._let_go(place, self._lines[place])
        op, named = (None, -1) if self._control is None else self._control[:2]
        if op is Op.DISCARD and named in self._rows and not self._mistaken:
            self._accuse("letters", f"{self._name(named)} was discarded and is there")
        for letter in self._needless:
            if not self._is_refused(letter):
                self._accuse("needless", f"{letter.mutation} became a letter; SQL does not refuse {letter.changes}")
        for place in self._standing.of(self._partition):
            del self._standing.letters[self._partition, place]
        for kept, letter in self._lines.items():
            self._standing.letters[self._partition, int(kept)] = letter

    def _let_go(self, place: float, letter: Held) -> None:
        discarded = self._control is not None and self._control[:2] == (Op.DISCARD, place)
        self.seen["letter discarded" if discarded else "letter applied"] += 1
        if self._passed and self._control is None:
            self._accuse("letters", f"{self._name(place)}, {letter.mutation}, is gone, and nobody knows why")
        before = [other for other in self._before(letter, place) if other not in self._gone]
        if not discarded:
            if before:
                self._accuse("order", f"{self._name(place)} is applied before {self._name(before[0])}")
            self._apply(self._corrected(place, letter))
        del self._lines[place]
        self.touched |= letter.keys

    def _set_aside(self, place: int, letter: Held) -> None:
        later = max(self._lines, default=-1)
        if place <= later:
            self._accuse("order", f"{self._name(place)}, {letter.mutation}, was made after {self._name(later)}")
        # A parent may have come, by another transaction, since SQL was asked.
        orphaned = self._rows[place]["failure"] == FOREIGN_KEY and self._constraints is not None
        if not self._before(letter, place) and not orphaned and not self._is_refused(letter):
            self._needless.append(letter)
        self._lines[place] = letter
        self.seen["letter behind another" if self._rows[place]["failure"] == "" else "letter"] += 1

    def _before(self, letter: Held, place: float) -> list[float]:
        return [
            other for other, known in self._lines.items() if other < place and not known.keys.isdisjoint(letter.keys)
        ]

    def _replaces(self, letter: Held, before: Collection[float]) -> bool:
        """Tell whether an entry makes the letters before it meaningless, and these are gone."""
        return (
            len(letter.changes) == 1
            and letter.changes[0][0] in {Op.PUT, Op.DELETE}
            and all(len(self._lines[place].keys) == 1 for place in before)
            and self._gone.issuperset(set(before).difference(self._passing))
        )

    def _apply(self, payload: bytes) -> None:
        self.touched |= apply_entry(self._standing.contents, payload, TABLES)

    def _corrected(self, place: float, letter: Held) -> bytes:
        if self._control is None or self._control[1] != place or not self._control[2] or len(letter.changes) > 1:
            return letter.payload
        op, table, key, values = letter.changes[0]
        return encode(op, table, key, {**values, **self._control[2]})

    def _is_refused(self, letter: Held) -> bool:
        """Tell whether SQL would not have a letter's rows now."""
        if self._constraints is None:
            return False
        contents = self._standing.contents.copied()
        appended = len(contents.appended)
        touched = apply_entry(contents, letter.payload, TABLES)
        rows = [(table, contents.rows[table, key]) for table, key in touched if (table, key) in contents.rows]
        if any(self._constraints.check(*row) for row in [*rows, *contents.appended[appended:]]):
            return True

        def table(name: str) -> dict[str, Any]:
            return {key: row for (of, key), row in contents.rows.items() if of == name}

        orphan = self._constraints.orphan(touched, lambda name, key: contents.rows.get((name, key)), table)
        return orphan is not None

    def _name(self, place: float) -> str:
        return f"letter {self._partition}-{place:g}"

    def _accuse(self, rule: str, text: str) -> None:
        self.wrong = self.wrong or (rule, text)
