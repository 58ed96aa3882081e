"""Each checker passes a history that keeps its promise, and catches every kind of violation planted into it."""

from collections.abc import Mapping

import pytest

from writebehind.drills import checkers
from writebehind.drills.checkers import Allowance, Audited, Check, Halt, Look, Row, Snapshot
from writebehind.drills.journal import Kind, Operation, Outcome
from writebehind.engine.core.positions import EntryID

ACKED, UNSURE, REFUSED = Outcome.ACKNOWLEDGED, Outcome.INDETERMINATE, Outcome.REFUSED


def operation(number: int, kind: Kind, *arguments: int, outcome: Outcome = ACKED, at: float = 0.0) -> Operation:
    """Make an operation that ended a second after it began."""
    return Operation(number, kind, arguments, at, at + 1.0, outcome, 0, EntryID(7, number))


def broken(check: Check, *words: str) -> None:
    """Make sure that a check failed, and says why."""
    assert not check.passed
    for word in words:
        assert word in check.detail


# K1

SETS = [
    operation(1, Kind.SET),
    operation(2, Kind.SET, outcome=UNSURE),
    operation(3, Kind.SET, outcome=REFUSED),
    operation(4, Kind.TRANSFER, 0, 0, 1, 5),
]


@pytest.mark.parametrize("stored", [{1: 1, 4: 1}, {1: 1, 2: 1, 4: 1}])
def test_set_full_takes_an_uncertain_one_either_way(stored: dict[int, int]) -> None:
    """Acknowledged once, uncertain once or not, refused not at all."""
    check = checkers.set_full(SETS, stored)
    assert check.passed
    assert (check.lost, check.doubled) == ((), 0)


def test_set_full_notices_a_lost_operation() -> None:
    """It is named."""
    check = checkers.set_full(SETS, {1: 1})
    broken(check, "lost: 4")
    assert [each.number for each in check.lost] == [4]


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ({1: 2, 4: 1}, "doubled: 1"),
        ({1: 1, 2: 2, 4: 1}, "doubled: 2"),
        ({1: 1, 3: 1, 4: 1}, "refused, yet stored: 3"),
        ({1: 1, 4: 1, 9: 1}, "never written, yet stored: 9"),
    ],
)
def test_set_full_notices_what_should_not_be_there(stored: dict[int, int], words: str) -> None:
    """Twice, although refused, or out of nothing."""
    broken(checkers.set_full(SETS, stored), words)


def test_what_may_be_lost_is_listed_and_is_no_violation() -> None:
    """Only inside the window that the promise allows."""
    history = [operation(1, Kind.SET, at=4.0), operation(2, Kind.SET, at=8.5)]
    allowed = Allowance([(9.0, 10.0)])
    check = checkers.set_full(history, {1: 1}, allowed)
    assert check.passed
    assert [each.number for each in check.lost] == [2]
    broken(checkers.set_full(history, {2: 1}, allowed), "lost: 1")


# K2

COUNTS = [
    *(operation(number, Kind.COUNT, 5) for number in range(3)),
    operation(3, Kind.COUNT, 5, outcome=UNSURE),
    operation(4, Kind.COUNT, 5, outcome=REFUSED),
]


@pytest.mark.parametrize("value", [3, 4])
def test_counters_between_certain_and_possible(value: int) -> None:
    """Acknowledged <= value <= acknowledged + uncertain."""
    assert checkers.counters(COUNTS, {5: value}).passed


@pytest.mark.parametrize(
    ("values", "words"),
    [({5: 2}, "too low: 5 by 1"), ({}, "too low: 5 by 3"), ({5: 5}, "too high: 5 by 1"), ({5: 3, 6: 1}, "too high: 6")],
)
def test_counters_outside(values: dict[int, int], words: str) -> None:
    """A missing or a doubled increment, and one that nobody made."""
    broken(checkers.counters(COUNTS, values), words)


def test_counters_may_miss_only_what_may_be_lost() -> None:
    """One increment lies in the window: two missing are a violation."""
    history = [operation(1, Kind.COUNT, 5), operation(2, Kind.COUNT, 5, at=9.0)]
    allowed = Allowance([(9.5, 11.0)])
    assert checkers.counters(history, {5: 1}, allowed).passed
    broken(checkers.counters(history, {5: 0}, allowed), "too low")


# K3, lists

LISTS = [
    operation(1, Kind.LIST, 8, 0),
    operation(2, Kind.LIST, 8, 1, outcome=UNSURE),
    operation(3, Kind.LIST, 8, 2),
    operation(4, Kind.LIST, 8, 3),
]


def seen(*pairs: tuple[int, int]) -> list[Snapshot]:
    """Make snapshots of list 8 from pairs of count and highest position."""
    return [Snapshot(at=number, lists={8: pair}) for number, pair in enumerate(pairs)]


@pytest.mark.parametrize("positions", [[0, 2, 3], [0, 1, 2, 3]])
def test_lists_grow_in_order(positions: list[int]) -> None:
    """Every snapshot a beginning, with or without what is uncertain."""
    snapshots = seen((1, 0), (2, 2), (3, 3)) if len(positions) == 3 else seen((1, 0), (2, 1), (3, 2), (4, 3))
    assert checkers.lists(LISTS, {8: positions}, snapshots).passed


@pytest.mark.parametrize(
    ("positions", "words"),
    [([0, 2], "lost: 8[3]"), ([0, 2, 3, 3], "doubled: 8[3]"), ([0, 2, 3, 7], "never written, yet stored: 8[7]")],
)
def test_lists_that_end_wrong(positions: list[int], words: str) -> None:
    """An element is missing, there twice, or out of nothing."""
    broken(checkers.lists(LISTS, {8: positions}, []), words)


def test_lists_that_were_out_of_order_for_a_moment() -> None:
    """In the end everything is there, but position 3 was seen before position 2."""
    broken(checkers.lists(LISTS, {8: [0, 2, 3]}, seen((1, 0), (2, 3), (3, 3))), "not a beginning", "list 8")


# K3, records

RECORDS = [
    operation(1, Kind.PUT, 6, 1, 1),
    operation(2, Kind.PATCH, 6, 2, 1),
    operation(3, Kind.PUT, 6, 3, 3, outcome=UNSURE),
    operation(4, Kind.PUT, 6, 4, 4, outcome=REFUSED),
]


@pytest.mark.parametrize("row", [(2, 1), (3, 3)])
def test_records_are_as_written_last(row: tuple[int, int]) -> None:
    """The last acknowledged write, or an uncertain one after it."""
    assert checkers.records(RECORDS, {6: row}).passed


@pytest.mark.parametrize("rows", [{6: (1, 1)}, {}, {6: (4, 4)}, {6: (9, 9)}, {6: (2, 1), 7: (1, 1)}, {6: (2, 3)}])
def test_records_that_are_something_else(rows: dict[int, tuple[int, int]]) -> None:
    """An older write, nothing, a refused write, a foreign one, a record that nobody wrote, a mixture."""
    broken(checkers.records(RECORDS, rows), "wrong")


def test_deleted_records_are_gone() -> None:
    """An acknowledged delete leaves nothing, an uncertain one either."""
    certain = [operation(1, Kind.PUT, 6, 1, 1), operation(2, Kind.DELETE, 6, 2)]
    assert checkers.records(certain, {}).passed
    broken(checkers.records(certain, {6: (1, 1)}), "record 6")
    unsure = [certain[0], operation(2, Kind.DELETE, 6, 2, outcome=UNSURE)]
    assert checkers.records(unsure, {}).passed
    assert checkers.records(unsure, {6: (1, 1)}).passed


def test_an_older_write_may_show_where_the_last_may_be_lost() -> None:
    """What was lost is named; a value that was never written is a violation even there."""
    history = [operation(1, Kind.PUT, 6, 1, 1), operation(2, Kind.PATCH, 6, 2, 1, at=9.0)]
    allowed = Allowance([(9.5, 11.0)])
    check = checkers.records(history, {6: (1, 1)}, allowed)
    assert check.passed
    assert [each.number for each in check.lost] == [2]
    broken(checkers.records(history, {6: (5, 5)}, allowed), "record 6")


# K4

MOVES = [operation(1, Kind.TRANSFER, 3, 0, 1, 30), operation(2, Kind.TRANSFER, 3, 1, 0, 10, outcome=UNSURE)]


def in_bank(*sums: tuple[int, int]) -> list[Snapshot]:
    """Make snapshots of bank 3."""
    return [Snapshot(at=number, banks={3: pair}) for number, pair in enumerate(sums)]


def test_money_moves_and_stays() -> None:
    """Balances are what the groups that are there moved."""
    snapshots = in_bank((2, 200), (2, 200))
    assert checkers.bank(MOVES, {1: 1}, {(3, 0): 70, (3, 1): 130}, snapshots, 100).passed
    assert checkers.bank(MOVES, {1: 1, 2: 1}, {(3, 0): 80, (3, 1): 120}, snapshots, 100).passed


@pytest.mark.parametrize(
    ("stored", "balances", "words"),
    [
        ({1: 1}, {(3, 0): 70, (3, 1): 100}, "unequal"),
        ({1: 1}, {(3, 0): 100, (3, 1): 100}, "unequal"),
        ({}, {(3, 0): 70, (3, 1): 130}, "unequal"),
        ({1: 1}, {(3, 0): 40, (3, 1): 160}, "unequal"),
    ],
)
def test_half_a_group_is_noticed(stored: dict[int, int], balances: dict[tuple[int, int], int], words: str) -> None:
    """One half, a row without its money, money without its row, twice the money for one row."""
    broken(checkers.bank(MOVES, stored, balances, [], 100), words)


@pytest.mark.parametrize("torn", [(2, 170), (1, 100)])
def test_a_torn_snapshot_is_noticed(torn: tuple[int, int]) -> None:
    """The sum was another one for a moment, or an account was missing."""
    snapshots = in_bank((2, 200), torn, (2, 200))
    broken(checkers.bank(MOVES, {1: 1}, {(3, 0): 70, (3, 1): 130}, snapshots, 100), "torn: bank 3")


# K5 to K12


def test_tails() -> None:
    """A record that is gone is no contradiction; one that says otherwise than the log is."""
    newest = {"a": EntryID(7, 5), "b": EntryID(7, 6)}
    assert checkers.tails({"a": EntryID(7, 5), "c": EntryID(1, 1)}, newest).passed
    broken(checkers.tails({"a": EntryID(7, 4)}, newest), "a: record 7-4, log 7-5")
    broken(checkers.tails({"a": EntryID(8, 0)}, newest), "a: record 8-0, log 7-5")


def test_fencing() -> None:
    """Tokens grow per partition; each offset is committed once."""
    sound = [Audited(0, 1, 7, 4), Audited(1, 5, 7, 0), Audited(0, 2, 7, 9), Audited(0, 2, 8, 0)]
    assert checkers.fencing(sound).passed
    broken(checkers.fencing([*sound, Audited(0, 1, 8, 5)]), "token went back: partition 0: token 1 after 2")
    broken(checkers.fencing([*sound, Audited(0, 3, 8, 0)]), "offset did not advance")
    broken(checkers.fencing([*sound, Audited(0, 3, 7, 3)]), "7-3 after 9")


def test_convergence() -> None:
    """Reads and rows agree, also on what is absent."""
    assert checkers.convergence({"a": {"n": 1}}, {"a": {"n": 1}}).passed
    broken(checkers.convergence({"a": {"n": 1}}, {"a": {"n": 2}}), "a: n read 1, row 2")
    broken(checkers.convergence({}, {"a": {"n": 2}}), "a is only in SQL")
    broken(checkers.convergence({"a": {"n": 2}}, {}), "a is only in what is read")


def test_liveness() -> None:
    """A backlog, a halted partition or a process that ended is a violation."""
    assert checkers.liveness(0, 0.5, [], []).passed
    broken(checkers.liveness(3, 45.0, [], []), "backlog: 3")
    broken(checkers.liveness(0, 0.5, ["partition 1: no such table"], []), "halted", "no such table")
    broken(checkers.liveness(0, 0.5, [], ["flusher-0 ended by itself with 1"]), "trouble")


def test_hygiene() -> None:
    """Whatever is left is named."""
    assert checkers.hygiene([]).passed
    broken(checkers.hygiene(["session 12"]), "session 12")


@pytest.mark.parametrize(("lost", "uncertain", "reported"), [(0, 0, 0), (3, 0, 3), (3, 2, 3), (3, 2, 5), (0, 4, 1)])
def test_an_honest_report(lost: int, uncertain: int, reported: int) -> None:
    """All that was lost is reported; what nobody was promised may be reported too."""
    assert checkers.honesty(lost, uncertain, reported).passed


@pytest.mark.parametrize(("lost", "uncertain", "reported"), [(3, 0, 0), (3, 5, 2), (0, 0, 1), (3, 2, 6)])
def test_a_report_that_is_not_honest(lost: int, uncertain: int, reported: int) -> None:
    """Silence about a loss, and alarm about none."""
    broken(checkers.honesty(lost, uncertain, reported), f"{reported} reported, {lost} lost")


def test_what_nobody_can_know_need_not_be_reported() -> None:
    """Neither Redis nor the service survived; but what was not lost is not reported even then."""
    assert checkers.honesty(3, 0, 0, knowable=False).passed
    assert not checkers.honesty(3, 0, 4, knowable=False).passed


def look(found: list[str], rows: Mapping[int, Row | None], *troubles: str) -> Look:
    """Make a look at two letters, a row as it should be, and one that should not be there."""
    return Look(
        when="now",
        expected=["a", "b"],
        found=found,
        rows_expected={1: {"level": 1}, 2: None},
        rows_found=rows,
        troubles=troubles,
    )


ROWS: Mapping[int, Row | None] = {1: {"level": 1}, 2: None}


def test_exactly_what_is_refused() -> None:
    """The letters expected, in their order, and the rows that go with them."""
    assert checkers.dead_letters([look(["a", "b"], ROWS)]).passed
    assert checkers.dead_letters([]).passed


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (look(["a"], ROWS), "now: not set aside: b"),
        (look(["a", "b", "c"], ROWS), "now: set aside for no reason: c"),
        (look(["a", "b", "b"], ROWS), "set aside for no reason: b"),
        (look(["b", "a"], ROWS), "in another order: b for a"),
        (look(["a", "b"], {1: {"level": 2}, 2: None}), "rows: 1 is {'level': 2}, not {'level': 1}"),
        (look(["a", "b"], {1: {"level": 1}, 2: {"level": 1}}), "rows: 2 is {'level': 1}, not None"),
        (look(["a", "b"], {}), "rows: 1 is None"),
        (look(["a", "b"], ROWS, "letter 3-1 is pending"), "trouble: letter 3-1 is pending"),
    ],
)
def test_other_dead_letters_are_noticed(seen: Look, words: str) -> None:
    """Too few, too many, in another order, other rows; also where a later look is as it should be."""
    broken(checkers.dead_letters([seen, look(["a", "b"], ROWS)]), words)


def test_halts() -> None:
    """A partition that has to halt does, and names what is missing as a word of its own."""
    assert checkers.halts([]).passed
    assert checkers.halts([Halt(0, "op", "entry 7-1: table sets has no column named op")]).passed
    broken(checkers.halts([Halt(0, "op", "no column named op"), Halt(1, "op", None)]), "partition 1 said nothing")
    broken(checkers.halts([Halt(0, "op", "the operation has stopped")]), "without op")


def test_messages_stay_short() -> None:
    """A few examples, and how many more there are."""
    history = [operation(number, Kind.SET) for number in range(100)]
    broken(checkers.set_full(history, {}), "lost: 0, 1, 2, 3, 4 and 95 more")
