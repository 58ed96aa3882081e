"""Isolating refused entries: the guilty and what waits behind them are set aside, the rest is applied in order."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from writebehind.engine.core.payload import Mutation, Op, encode, encode_group
from writebehind.engine.core.positions import EntryID
from writebehind.engine.errors import LeaseLost, PoisonEntryError
from writebehind.flushers.batch import Segment
from writebehind.flushers.flush import Begin, Commit, Fence, Fenced, RollBack
from writebehind.flushers.isolation import Effect, Read, Reply, isolate
from writebehind.flushers.quarantine import Letter, Quarantine, letter_of
from writebehind.flushers.sifting import Attempt, Outcome, Record
from writebehind.flushers.suspect import Suspect

SEGMENT = Segment(partition=3, token=1, start=EntryID(5, 0), end=EntryID(5, 9), ids=[])
OPS = (Op.PUT, Op.PATCH, Op.INCREMENT, Op.DELETE)


def entry(place: int, *mutations: tuple[Op, str], bad: bool = False) -> Suspect:
    """Make an entry; its value says whether SQL refuses it."""
    members: list[Mutation] = [(op, "t", key, {"bad": bad, "place": place}) for op, key in mutations]
    payload = encode(*members[0]) if len(members) == 1 else encode_group(members)
    return Suspect(b"5-%d" % place, f"m{place}", payload, place)


def is_bad(suspect: Suspect) -> bool:
    """Tell whether SQL refuses an entry."""
    return any(values["bad"] for _, _, _, values in suspect.mutations or ())


@dataclass
class World:
    """A database that notes by key what was applied to it, and refuses bad entries."""

    fenced: Fenced = Fenced.MOVED
    rows: dict[str, list[int]] = field(default_factory=dict)
    effects: list[Effect] = field(default_factory=list)
    attempts: int = 0
    letters: Sequence[Suspect] = ()

    def perform(self, effect: Effect) -> Reply:
        """Do one effect."""
        self.effects.append(effect)
        if isinstance(effect, Fence):
            return self.fenced
        if isinstance(effect, Read):
            return [suspect for suspect in self.letters if suspect.place in effect.places]
        if isinstance(effect, Attempt):
            self.attempts += 1
            if any(map(is_bad, effect.suspects)):
                return PoisonEntryError("refused")
            for suspect in effect.suspects:
                self.apply(suspect)
        return None

    def apply(self, suspect: Suspect) -> None:
        """Apply an entry."""
        for op, _, key, values in suspect.mutations or ():
            if op in {Op.PUT, Op.DELETE}:
                self.rows[key] = []
            self.rows.setdefault(key, []).append(values["place"])

    def isolate(self, suspects: Sequence[Suspect], quarantine: Quarantine | None = None) -> Outcome:
        """Run the protocol."""
        due = [suspect.place for suspect in self.letters]
        protocol = isolate(SEGMENT, suspects, quarantine or Quarantine(), due=due)
        effect = next(protocol)
        while True:
            try:
                effect = protocol.send(self.perform(effect))
            except StopIteration as stop:
                outcome: Outcome = stop.value
                return outcome


def places(outcome: Outcome) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return the places of what was applied, refused, parked, and of the letters that are gone."""
    return (
        sorted(suspect.place for suspect in outcome.applied),
        sorted(suspect.place for suspect, _ in outcome.refused),
        sorted(suspect.place for suspect in outcome.parked),
        sorted(outcome.gone),
    )


def one_by_one(suspects: Sequence[Suspect], quarantine: Quarantine) -> tuple[World, tuple[list[int], ...], set[int]]:
    """Do naively what isolation has to do; return the rows, the places, and those of the letters in the end."""
    world, held = World(), quarantine.copy()
    applied, refused, parked, gone = [], [], [], set()
    for suspect in suspects:
        mutations = suspect.mutations or ()
        superseded = held.superseded_by(mutations) if held.holds(mutations) else ()
        if held.holds(mutations) and not superseded:
            parked.append(suspect.place)
            held.add(suspect.place, suspect.as_letter())
        elif is_bad(suspect):
            refused.append(suspect.place)
            held.add(suspect.place, suspect.as_letter())
        else:
            world.apply(suspect)
            applied.append(suspect.place)
            gone |= set(superseded)
            held.remove(superseded)
    return world, (applied, refused, parked, sorted(gone)), set(held.letters)


members = st.lists(st.tuples(st.sampled_from(OPS), st.sampled_from("abcd")), min_size=1, max_size=3)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(members, st.integers(0, 4).map(lambda n: n == 0)), max_size=24),
    st.lists(st.lists(st.sampled_from("abcd"), max_size=2, unique=True), max_size=3),
)
def test_as_one_by_one(drawn: list[tuple[list[tuple[Op, str]], bool]], letters: list[list[str]]) -> None:
    """Attempts in halves give what trying each entry alone gives, with groups and old letters."""
    quarantine = Quarantine()
    for place, keys in enumerate(letters):
        quarantine.add(place, Letter(tuple(("t", key) for key in keys)))
    suspects = [entry(10 + number, *mutations, bad=bad) for number, (mutations, bad) in enumerate(drawn)]
    world = World()
    outcome = world.isolate(suspects, quarantine)
    expected, found, _ = one_by_one(suspects, quarantine)
    assert world.rows == expected.rows
    assert places(outcome) == found
    assert set(quarantine.letters) == set(range(len(letters)))


def test_the_rest_is_applied_in_one_transaction() -> None:
    """The offset is moved first; rows and letters follow; the commit is one."""
    world = World()
    bad = entry(1, (Op.PUT, "a"), bad=True)
    outcome = world.isolate([entry(0, (Op.PUT, "b")), bad, entry(2, (Op.PATCH, "a")), entry(3, (Op.PUT, "c"))])
    assert places(outcome) == ([0, 3], [1], [2], [])
    first, second, *attempts, record, last = world.effects
    assert (first, second, record, last) == (
        Begin(attempting=True),
        Fence([SEGMENT]),
        Record(SEGMENT, outcome),
        Commit(),
    )
    assert all(isinstance(effect, Attempt) for effect in attempts)


@pytest.mark.parametrize("guilty", [1, 5, 20])
def test_few_attempts(guilty: int) -> None:
    """``k`` guilty among ``n`` take ``O(k log n)`` attempts."""
    n = 1024
    world = World()
    world.isolate([entry(number, (Op.PUT, str(number)), bad=number % (n // guilty) == 7) for number in range(n)])
    assert world.attempts <= 1 + 2 * (guilty + 1) * math.ceil(math.log2(n))


@pytest.mark.parametrize("fenced", [Fenced.LOST, Fenced.ALREADY])
def test_nothing_is_tried_without_the_fence(fenced: Fenced) -> None:
    """Another holder has the partition, or the attempt before was committed: SQL is asked anew."""
    world = World(fenced=fenced)
    with pytest.raises(LeaseLost):
        world.isolate([entry(0, (Op.PUT, "a"))])
    assert world.effects == [Begin(attempting=True), Fence([SEGMENT]), RollBack()]


def test_what_cannot_be_read_is_refused_untried() -> None:
    """A damaged entry is set aside; it has no key, so nothing waits behind it."""
    world = World()
    broken = Suspect(b"5-1", "", b"\xc1", 1)
    outcome = world.isolate([entry(0, (Op.PUT, "a")), broken, entry(2, (Op.PATCH, "a"))])
    assert places(outcome) == ([0, 2], [1], [], [])
    assert world.attempts == 1


def test_letters_are_tried_again_in_their_order() -> None:
    """A line whose first letter passes now is applied whole; one that does not keeps its places."""
    quarantine = Quarantine()
    line = [entry(0, (Op.PUT, "a")), entry(1, (Op.PATCH, "a")), entry(2, (Op.INCREMENT, "b"), bad=True)]
    line += [entry(3, (Op.PATCH, "b"))]
    for suspect in line:
        suspect.letter = True
        quarantine.add(suspect.place, Letter(suspect.keys))
    world = World(letters=line)
    outcome = world.isolate([], quarantine)
    assert places(outcome) == ([0, 1], [2], [3], [0, 1])
    assert world.rows == {"a": [0, 1]}


def test_letters_that_an_earlier_attempt_has_applied() -> None:
    """The outcome of its commit was unknown: what SQL has no more is not tried again, and is forgotten."""
    quarantine = Quarantine()
    line = [entry(0, (Op.PUT, "a")), entry(1, (Op.PATCH, "a")), entry(2, (Op.INCREMENT, "a"), bad=True)]
    for suspect in line:
        suspect.letter = True
        quarantine.add(suspect.place, Letter(suspect.keys))
    world = World(letters=line[2:])
    assert places(world.isolate([], quarantine)) == ([], [2], [], [0, 1])
    assert world.rows == {}


@pytest.mark.parametrize(
    ("op", "columns", "superseded"),
    [
        (Op.PUT, "abc", [0, 1]),
        (Op.PUT, "abcd", [0, 1]),
        (Op.PUT, "ab", []),
        (Op.DELETE, "", [0, 1]),
        (Op.PATCH, "abc", []),
    ],
)
def test_a_put_supersedes_what_it_covers(op: Op, columns: str, superseded: list[int]) -> None:
    """A put of an older release lacks columns: it makes nothing meaningless that changed one of those."""
    quarantine = Quarantine()
    quarantine.add(0, letter_of([(Op.PATCH, "t", "k", {"c": 1})]))
    quarantine.add(1, letter_of([(Op.PUT, "t", "k", {"a": 1, "b": 1})]))
    assert list(quarantine.superseded_by([(op, "t", "k", dict.fromkeys(columns))])) == superseded


def test_what_is_not_about_one_row_is_not_superseded() -> None:
    """A group that also makes a row whose key the database makes; and a delete, by a put that is no whole row."""
    quarantine = Quarantine(whole={"t": frozenset("ab")})
    quarantine.add(0, letter_of([(Op.INSERT, "audit", "", {"x": 1}), (Op.PUT, "t", "k", {"a": 1})]))
    quarantine.add(1, letter_of([(Op.DELETE, "t", "l", {"a": 1})]))
    quarantine.add(2, letter_of([(Op.DELETE, "u", "m", {"a": 1})]))
    assert quarantine.superseded_by([(Op.PUT, "t", "k", {"a": 1, "b": 1})]) == ()
    assert quarantine.superseded_by([(Op.DELETE, "t", "k", {"a": 1})]) == ()
    assert quarantine.superseded_by([(Op.PUT, "t", "l", {"a": 1})]) == ()
    assert quarantine.superseded_by([(Op.PUT, "t", "l", {"a": 1, "b": 1})]) == (1,)
    assert quarantine.superseded_by([(Op.PUT, "u", "m", {"a": 1})]) == ()


def test_a_line_is_in_the_order_of_its_places() -> None:
    """Whatever is set aside first; the first one without another before it leads."""
    quarantine = Quarantine()
    for place in (4, 2, 9, 3):
        quarantine.add(place, Letter((("t", "a"),)))
    quarantine.add(2, Letter((("t", "a"), ("t", "b"))))
    assert quarantine.chain(9) == [2, 3, 4, 9]
    assert quarantine.leading() == [2]
    assert quarantine.holds([(Op.PATCH, "t", "a", {})], 3)
    assert not quarantine.holds([(Op.PATCH, "t", "a", {})], 2)


def test_chains() -> None:
    """Letters are tied by the keys that they share, groups tie lines together, and only single ones are superseded."""
    quarantine = Quarantine()
    for place, keys in enumerate(("a", "ab", "b", "c", "")):
        quarantine.add(place, Letter(tuple(("t", key) for key in keys)))
    assert [quarantine.chain(place) for place in range(5)] == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [3], [4]]
    put: list[Mutation] = [(Op.PUT, "t", "c", {})]
    assert quarantine.superseded_by(put) == (3,)
    assert quarantine.superseded_by([(Op.PATCH, "t", "c", {})]) == ()
    assert quarantine.superseded_by([(Op.PUT, "t", "a", {})]) == ()
    quarantine.remove([1, 7])
    assert quarantine.superseded_by([(Op.DELETE, "t", "a", {})]) == (0,)
    assert [quarantine.chain(place) for place in (0, 2)] == [[0], [2]]
