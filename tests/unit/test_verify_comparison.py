"""The comparison decides without any server, and blames nobody for what happens while it looks."""

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa

from writebehind.engine.adapters.declaration import declare
from writebehind.engine.adapters.rows import Applied
from writebehind.engine.core.positions import ORIGIN, EntryID
from writebehind.engine.core.reading import Standing
from writebehind.recovery.comparison import (
    LOOKS_MAX,
    Absent,
    AskSQL,
    Effect,
    Judged,
    Lettered,
    LoadRows,
    Look,
    RecordKey,
    Reply,
    Sighting,
    Unreadable,
    Verdict,
    compare,
    differing,
)

HISTORIES = 4000

table = sa.Table(
    "t",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("number", sa.Integer),
    sa.Column("other", sa.Integer),
)
PLAN = declare(table, "postgresql").plan
COLUMNS = {"t": PLAN.columns}
KEY = RecordKey(0, "t", "1", {"id": 1})

Row = dict[str, Any]


class World:
    """One record with its log and its row, as the write script, a flusher and settlement treat them.

    Attributes:
        log: what is left of the log: by sequence, what an entry does to the row.
        hash: version, state and values, or None.
        row: what SQL has, or None.
        applied: sequence of the last entry that SQL has.
        known: the watermark.
        letters: what SQL refused, and what waits behind it.
    """

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.letters: list[Callable[[Row | None], Row | None]] = []
        self.log: dict[int, Callable[[Row | None], Row | None]] = {}
        self.next = 0
        self.hash: tuple[int, Standing, Row] | None = None
        self.row: Row | None = None
        self.applied = self.known = -1
        # Each history has its own mixture, so that rare sequences are common in some.
        writes = [self.put, self.patch, self.increment, self.delete, self.elsewhere]
        self.writes = chance.choices(writes, k=chance.randrange(1, 6))
        self.serves = chance.choices([self.flush, self.settle, self.publish, self.evict], k=chance.randrange(1, 12))

    # What others do

    def _append(self, effect: Callable[[Row | None], Row | None]) -> int:
        self.log[self.next] = effect
        self.next += 1
        return self.next - 1

    def put(self) -> None:
        """Write the whole record."""
        row = {"id": 1, "number": self.chance.randrange(3), "other": self.chance.randrange(3)}
        self.hash = (self._append(lambda _: row), Standing.WHOLE, row)

    def patch(self) -> None:
        """Change a column."""
        change = {"number": self.chance.randrange(3)}
        entry = self._append(lambda row: None if row is None else row | change)
        if self.hash is None:
            self.hash = (entry, Standing.OVERLAY, change)
        else:
            _, state, values = self.hash
            self.hash = (entry, state, values | change if state in {Standing.WHOLE, Standing.OVERLAY} else values)

    def increment(self) -> None:
        """Add to a column."""
        entry = self._append(lambda row: None if row is None else row | {"other": row["other"] + 1})
        if self.hash is not None and self.hash[1] is Standing.WHOLE:
            self.hash = (entry, Standing.WHOLE, self.hash[2] | {"other": self.hash[2]["other"] + 1})
        else:
            self.hash = (entry, Standing.IN_LOG, {})

    def delete(self) -> None:
        """Delete the record."""
        self.hash = (self._append(lambda _: None), Standing.ABSENT, {})

    def elsewhere(self) -> None:
        """Write another record of the partition."""
        self._append(lambda row: row)

    def flush(self) -> None:
        """Commit some of what is in the log: rows and offset in one transaction."""
        if self.applied + 1 < self.next:
            until = self.chance.randrange(self.applied + 1, self.next)
            for entry in range(self.applied + 1, until + 1):
                self.row = self.log[entry](self.row)
            self.applied = until

    def settle(self) -> None:
        """Let records become clean, then publish the offset and trim all that is flushed."""
        if self.hash is not None and self.hash[0] <= self.applied and self.hash[1] is not Standing.WHOLE:
            self.hash = None
        self.publish()

    def publish(self) -> None:
        """Publish and trim, as a takeover does after a flusher was killed before it let records become clean."""
        self.known = self.applied
        self.log = {entry: effect for entry, effect in self.log.items() if entry > self.applied}

    def evict(self) -> None:
        """Let a clean record expire."""
        if self.hash is not None and self.hash[0] <= self.known:
            self.hash = None

    def happen(self, count: int) -> None:
        """Let some of this happen."""
        for _ in range(count):
            self.chance.choice([*self.writes, *self.serves])()

    # What the comparison asks

    def answer(self, effect: Effect) -> Reply:
        """Do one effect."""
        match effect:
            case Look(keys):
                return {key: self._sighting() for key in keys}
            case AskSQL(partitions):
                return {number: Applied(offset=EntryID(5, self.applied), ended={}) for number in partitions}
            case Absent(entries):
                return {entry for entry in entries if entry[1].sequence not in self.log}
            case Lettered(keys):
                return set(keys) if self.letters else set()
            case LoadRows(keys):
                return {} if self.row is None else {key: dict(self.row) for key in keys}

    def _sighting(self) -> Sighting | None:
        if self.hash is None:
            return None
        version, state, values = self.hash
        raw = {b":version": b"5-%d" % version, b"values": repr((state, sorted(values.items()))).encode()}
        return Sighting(raw=raw, state=state, version=EntryID(5, version), values=values, settled=version <= self.known)

    def judge(self, busy: int) -> list[Judged]:
        """Compare, while so much happens between any two effects at the most."""
        protocol = compare([KEY], COLUMNS)
        try:
            effect = next(protocol)
            while True:
                self.happen(self.chance.randrange(busy + 1))
                reply = self.answer(effect)
                self.happen(self.chance.randrange(busy + 1))
                effect = protocol.send(reply)
        except StopIteration as stop:
            judged: list[Judged] = stop.value
            return judged


class PickyWorld(World):
    """Its SQL refuses entries, which become dead letters; these are tried again, or given up."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self.discards: set[int] = set()
        self.serves += chance.choices([self.retry, self.discard], k=2)

    def flush(self) -> None:
        """Commit some of what is in the log, or set it aside: rows, letters and offset in one transaction."""
        if self.applied + 1 == self.next:
            return
        until = self.chance.randrange(self.applied + 1, self.next)
        for entry in range(self.applied + 1, until + 1):
            if entry in self.discards:
                del self.letters[:1]
                self.retry()
            elif self.letters or not self.chance.randrange(3):
                self.letters.append(self.log[entry])
            else:
                self.row = self.log[entry](self.row)
        self.applied = until

    def retry(self) -> None:
        """Try letters again, of the flusher's own accord: the log and the hash know nothing of it."""
        for effect in self.letters:
            self.row = effect(self.row)
        self.letters = []

    def discard(self) -> None:
        """Ask for the first letter to be given up."""
        self.discards.add(self._append(lambda row: row))
        if self.hash is not None:
            self.hash = (self.next - 1, Standing.IN_LOG, {})


@pytest.mark.parametrize("busy", [0, 1, 2, 4])
def test_nothing_is_blamed_for_what_sql_refuses(busy: int) -> None:
    """A record with dead letters has a verdict of its own, also where they come and go meanwhile."""
    seen: set[Verdict] = set()
    for seed in range(HISTORIES):
        world = PickyWorld(random.Random(seed))
        world.happen(world.chance.randrange(12))
        for judged in world.judge(busy):
            assert judged.verdict not in {Verdict.DIVERGED, Verdict.LOST}, (seed, busy, judged)
            if not busy and judged.verdict is not Verdict.PENDING:
                assert (judged.verdict is Verdict.DEAD_LETTERED) is bool(world.letters), (seed, judged)
            seen.add(judged.verdict)
    assert {Verdict.AGREES, Verdict.PENDING, Verdict.DEAD_LETTERED} <= seen


@pytest.mark.parametrize("busy", [1, 2, 4])
def test_nothing_is_blamed_for_the_moment(busy: int) -> None:
    """Whatever is written, flushed, trimmed and evicted between any two steps, nothing seems diverged or lost."""
    seen: set[Verdict] = set()
    for seed in range(HISTORIES):
        world = World(random.Random(seed))
        world.happen(world.chance.randrange(12))
        if world.chance.randrange(2):
            world.writes = []
        for judged in world.judge(busy):
            assert judged.verdict in {Verdict.AGREES, Verdict.PENDING, Verdict.LEFT_OVER}, (seed, busy, judged)
            seen.add(judged.verdict)
    assert {Verdict.AGREES, Verdict.PENDING} <= seen


def test_damage_is_found_once_nobody_writes() -> None:
    """A row or a hash that was changed by hand is found, whatever happened to the record before; so is a lost entry."""
    found: set[tuple[str, Verdict]] = set()
    for seed in range(HISTORIES):
        world = World(random.Random(seed))
        world.happen(world.chance.randrange(2, 15))
        if world.hash is None or world.hash[1] is Standing.IN_LOG:
            continue
        version, state, values = world.hash
        damage = world.chance.choice(["row", "no row", "hash", "log"])
        expected = {Verdict.PENDING} if version > world.applied else {Verdict.DIVERGED}
        match damage:
            case "row":
                world.row = {"id": 1, "number": 99, "other": 99}
            case "no row":
                if state is not Standing.WHOLE:
                    continue
                world.row = None
            case "hash":
                if state is Standing.ABSENT:
                    continue
                world.hash = (version, state, values | {"number": 99})
                if world.row is None and state is Standing.OVERLAY:
                    continue
            case _:
                if version <= world.applied:
                    continue
                world.log.pop(version)
                same = (
                    world.row is None
                    if state is Standing.ABSENT
                    else world.row is not None and values.items() <= world.row.items()
                )
                expected = (
                    {Verdict.AGREES, Verdict.LEFT_OVER}
                    if same or (state is Standing.OVERLAY and world.row is None)
                    else {Verdict.LOST}
                )
        (judged,) = world.judge(0)
        assert judged.verdict in expected, (seed, damage, judged)
        found.add((damage, judged.verdict))
    assert {
        ("row", Verdict.DIVERGED),
        ("no row", Verdict.DIVERGED),
        ("hash", Verdict.DIVERGED),
        ("row", Verdict.PENDING),
        ("log", Verdict.LOST),
    } <= found


def play(*answers: Reply | Callable[[Effect], Reply], lettered: bool = False) -> tuple[list[Effect], list[Judged]]:
    """Answer the comparison of one record; return its effects, but for the question for letters, and verdicts."""
    protocol = compare([KEY], COLUMNS)
    effects = [next(protocol)]
    for answer in answers:
        try:
            effect = protocol.send(answer(effects[-1]) if callable(answer) else answer)
            if isinstance(effect, Lettered):
                effect = protocol.send(set(effect.keys) if lettered else set())
            effects.append(effect)
        except StopIteration as stop:
            return effects, stop.value
    raise AssertionError(effects)


def sight(version: str, values: Row, state: Standing = Standing.WHOLE, **more: Any) -> Mapping[RecordKey, Sighting]:
    """Make the sighting of the record."""
    raw = {b":version": version.encode(), b"v": repr(values).encode()}
    return {KEY: Sighting(raw=raw, state=state, version=EntryID.parse(version), values=values, **more)}


def at(text: str, **ended: int) -> Mapping[int, Applied]:
    """Make SQL's answer."""
    return {0: Applied(offset=EntryID.parse(text), ended={int(epoch[1:]): last for epoch, last in ended.items()})}


WHOLE = {"id": 1, "number": 2, "other": 3}
OTHER = WHOLE | {"number": 4}


def test_a_verdict_names_the_columns() -> None:
    """It is reached by looking at the hash, at SQL, at the row, and at the hash again."""
    effects, (judged,) = play(sight("5-3", WHOLE), at("5-3"), {KEY: OTHER}, sight("5-3", WHOLE))
    assert effects == [Look([KEY]), AskSQL([0]), LoadRows([KEY]), Look([KEY])]
    assert (judged.verdict, judged.columns, judged.row) == (Verdict.DIVERGED, ("number",), OTHER)
    assert "2" not in judged.detail


def test_a_record_with_dead_letters_is_not_compared() -> None:
    """Its row is not even read; but a last change that is lost is lost also where letters are left."""
    effects, (judged,) = play(sight("5-3", WHOLE), at("5-3"), lettered=True)
    assert effects == [Look([KEY]), AskSQL([0])]
    assert (judged.verdict, judged.applied, judged.row) == (Verdict.DEAD_LETTERED, False, None)
    look = sight("5-9", WHOLE)
    assert play(look, at("6-100", e5=8), {KEY: OTHER}, look, lettered=True)[1][0].verdict is Verdict.LOST


def test_epochs_are_never_compared() -> None:
    """An entry of an epoch that ended below it is lost; one of an epoch that SQL does not know yet is on its way."""
    _, (judged,) = play(sight("5-9", WHOLE), at("6-100", e5=8), {KEY: OTHER}, sight("5-9", WHOLE))
    assert judged.verdict is Verdict.LOST
    _, (judged,) = play(sight("5-9", WHOLE), at("6-100", e5=9), {KEY: OTHER}, sight("5-9", WHOLE))
    assert judged.verdict is Verdict.DIVERGED
    _, (judged,) = play(sight("7-0", WHOLE), at("6-100", e5=9), set[tuple[int, EntryID]]())
    assert judged.verdict is Verdict.PENDING


def test_an_entry_that_is_gone_is_lost_only_if_sql_does_not_have_it_afterwards() -> None:
    """A flusher may have committed and trimmed it just then."""
    gone = {(0, EntryID(5, 3))}
    look = sight("5-3", WHOLE)
    effects, (judged,) = play(look, at("5-2"), gone, at("5-2"), {}, look)
    assert effects == [
        Look([KEY]),
        AskSQL([0]),
        Absent([(0, EntryID(5, 3))]),
        AskSQL([0]),
        LoadRows([KEY]),
        Look([KEY]),
    ]
    assert (judged.verdict, judged.detail) == (Verdict.LOST, "SQL has no such row")
    _, (judged,) = play(look, at("5-2"), gone, at("5-3"), look, at("5-3"), {KEY: WHOLE})
    assert judged.verdict is Verdict.AGREES


def test_a_record_from_before_a_rollback_is_suspect() -> None:
    """Reads ask SQL for it, so it contradicts nobody."""
    look = sight("5-3", WHOLE, suspect=True)
    assert play(look, at("5-9"), {KEY: OTHER}, look)[1][0].verdict is Verdict.SUSPECT
    assert play(look, at("5-9"), {KEY: WHOLE})[1][0].verdict is Verdict.AGREES


def test_states_are_compared_as_reads_see_them() -> None:
    """A tombstone has no row; an overlay that found no row is no record; a marker has nothing to compare."""
    tombstone = sight("5-3", {}, Standing.ABSENT)
    assert play(tombstone, at("5-3"), {KEY: WHOLE}, tombstone)[1][0].verdict is Verdict.DIVERGED
    assert play(tombstone, at("5-3"), {})[1][0].verdict is Verdict.AGREES
    overlay = sight("5-3", {"number": 2}, Standing.OVERLAY)
    assert play(overlay, at("5-3"), {})[1][0].verdict is Verdict.AGREES
    assert play(overlay, at("5-3"), {KEY: WHOLE})[1][0].verdict is Verdict.AGREES
    assert play(overlay, at("5-3"), {KEY: OTHER}, overlay)[1][0].columns == ("number",)
    marker = sight("5-3", {}, Standing.IN_LOG)
    assert play(marker, at("5-3"))[1][0].verdict is Verdict.AGREES
    marker = sight("5-3", {}, Standing.IN_LOG, settled=True)
    assert play(marker, at("5-3"))[1][0].verdict is Verdict.LEFT_OVER


def test_what_cannot_be_read_is_said() -> None:
    """A hash that is none, and a row that SQLAlchemy cannot read."""
    broken = sight("5-3", {}, trouble="it is not a hash")
    judged = play(broken, at("5-3"), broken)[1][0]
    assert (judged.verdict, judged.detail, judged.applied) == (Verdict.UNREADABLE, "it is not a hash", True)
    judged = play(broken, at("5-2"), set[tuple[int, EntryID]](), broken)[1][0]
    assert (judged.verdict, judged.applied) == (Verdict.UNREADABLE, False)
    look = sight("5-3", WHOLE)
    judged = play(look, at("5-3"), {KEY: Unreadable("no date")}, look)[1][0]
    assert (judged.verdict, judged.detail) == (Verdict.DIVERGED, "no date")


def test_a_record_that_is_written_all_the_time_is_pending() -> None:
    """It is looked at a few times only."""
    answers: list[Any] = []
    for number in range(LOOKS_MAX):
        answers += [sight(f"5-{number}", WHOLE), at("5-99"), {KEY: OTHER}, sight(f"5-{number + 1}", WHOLE)]
    _, (judged,) = play(*answers)
    assert judged.verdict is Verdict.PENDING


def test_readers_that_load_write_nothing() -> None:
    """Their leases come and go; the verdict stands."""
    (before,) = sight("5-3", WHOLE).values()
    now = replace(before, raw={**before.raw, b":overlay": b"1 token 5-3", b":token": b"token", b":until": b"1"})
    _, (judged,) = play({KEY: before}, at("5-3"), {KEY: OTHER}, {KEY: now})
    assert judged.verdict is Verdict.DIVERGED


def test_a_record_that_is_gone_is_not_judged() -> None:
    """Neither where it was gone at once, nor where it went meanwhile."""
    assert play({KEY: None})[1] == []
    assert play(sight("5-3", WHOLE), at("5-3"), {KEY: OTHER}, {KEY: None})[1] == []
    assert play(sight("5-3", WHOLE), {0: Applied(offset=ORIGIN, ended={})}, set[Any]())[1][0].verdict is Verdict.PENDING


@pytest.mark.parametrize(
    ("kind", "first", "second", "same"),
    [
        (sa.Integer(), 1, 2, False),
        (sa.Integer(), None, 0, False),
        (sa.Integer(), None, None, True),
        (sa.Double(), 0.1 + 0.2, 0.3, True),
        (sa.Double(), 1.0, 1.00001, False),
        (sa.Double(), float("nan"), float("nan"), True),
        (sa.Double(), float("inf"), float("-inf"), False),
        (sa.Numeric(20, 10), Decimal("1.0000000001"), Decimal("1.0000000002"), False),
        (sa.Numeric(12, 4, asdecimal=False), 12345678.1234, 12345678.1235, False),
        (sa.JSON(), {"a": [1, True]}, {"a": [1, True]}, True),
        (sa.JSON(), {"a": [1, True]}, {"a": [True, 1]}, False),
        (sa.JSON(), {"a": 1}, {"a": 1, "b": None}, False),
        (sa.JSON(), [1], [1, 2], False),
    ],
)
def test_values_are_the_same_or_not(kind: Any, first: Any, second: Any, same: bool) -> None:  # noqa: FBT001
    """Floats by nine digits, because increments of them are rounded; all else exactly, and JSON knows true from 1."""
    one = sa.Table("o", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("value", kind))
    columns = declare(one, "postgresql").plan.columns
    assert differing(columns, {"value": first}, {"value": second}) == (() if same else ("value",))
