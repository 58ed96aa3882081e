"""Which dead letters are meant, and how they are told to an operator."""

from typing import Any

import pytest

from writebehind.engine.core.payload import Op
from writebehind.engine.errors import ValidationError
from writebehind.flushers.commands.letter_text import NAMED, Chain, Loss, described, left
from writebehind.flushers.commands.moments import moment_ms
from writebehind.recovery.letters import (
    DeadLetter,
    LetterChange,
    LetterCounts,
    LetterFilter,
    LetterID,
    LetterState,
)

SECRET = "open-sesame"


def change(table: str = "accounts", key_text: str = "7", op: Op = Op.PUT, **values: Any) -> LetterChange:
    """Make a change."""
    given = values or {"id": 7, "note": SECRET}
    return LetterChange(op=op, table=table, key_text=key_text, key=7, columns=["note"], values=given)


def letter(place: int = 0, **given: Any) -> DeadLetter:
    """Make a letter."""
    values: dict[str, Any] = {
        "letter_id": LetterID(3, place),
        "state": LetterState.REFUSED,
        "failure": "poison",
        "error": "CHECK constraint failed: balance_positive",
        "attempts": 1,
        "entry_id": "5-9",
        "mutation_id": "0123456789a",
        "made_ms": 1_000,
        "dead_ms": 2_000,
        "retry_until_ms": 0,
        "changes": [change()],
    }
    return DeadLetter(**(values | given))


GROUP = letter(changes=[change(), change("orders", "a:1", Op.PATCH), change("orders", "a:1", Op.DELETE)])
DAMAGED = letter(failure="unreadable", changes=[])


def test_a_letter_is_named_by_its_partition_and_place() -> None:
    """As text and back; what is no name of one is refused."""
    assert str(LetterID.parse("3-17")) == "3-17"
    assert LetterID.parse("3-17") == (3, 17)
    for text in ("", "3", "3-", "-3", "a-1", "3-1-2", "3-x", "\u0663-1x"):
        with pytest.raises(ValidationError, match="PARTITION-PLACE"):
            LetterID.parse(text)


def test_values_are_in_no_repr_and_in_json_only_on_demand() -> None:
    """They may be secret."""
    assert SECRET not in repr(letter())
    assert SECRET not in str(letter().as_json())
    assert letter().as_json(with_values=True)["changes"][0]["values"] == {"id": 7, "note": SECRET}


def test_what_a_letter_is_about() -> None:
    """A change, a group of changes, or something that nobody can read."""
    assert (letter().operation, letter().subject, letter().replayable) == ("put", "accounts 7", True)
    assert (GROUP.operation, GROUP.subject, GROUP.replayable) == ("group of 3", "accounts 7 and 1 more", True)
    assert GROUP.records == [("accounts", "7"), ("orders", "a:1")]
    assert (DAMAGED.operation, DAMAGED.subject, DAMAGED.replayable) == ("unreadable", "unknown record", False)
    assert letter(changes=[change(key_text="", op=Op.INSERT)]).subject == "accounts (new row)"


@pytest.mark.parametrize(
    ("wanted", "admitted"),
    [
        (LetterFilter(), [True, True, True]),
        (LetterFilter(tables=frozenset({"orders"})), [False, True, False]),
        (LetterFilter(tables=frozenset({"accounts", "orders"})), [True, True, False]),
        (LetterFilter(key="a:1"), [False, True, False]),
        (LetterFilter(key="8"), [False, False, False]),
        (LetterFilter(error="check CONSTRAINT"), [True, True, True]),
        (LetterFilter(error="unreadable"), [False, False, True]),
        (LetterFilter(error="nothing of this"), [False, False, False]),
        (LetterFilter(states=frozenset({LetterState.WAITING})), [False, False, False]),
        (LetterFilter(states=frozenset({LetterState.REFUSED}), tables=frozenset({"orders"})), [False, True, False]),
    ],
)
def test_filters(wanted: LetterFilter, admitted: list[bool]) -> None:
    """All that is asked has to hold; a group counts for each of its tables and keys."""
    assert [wanted.admits(each) for each in (letter(), GROUP, DAMAGED)] == admitted


def test_moments() -> None:
    """A time, in this machine's zone where it names none, or so long ago."""
    assert moment_ms("2026-03-31T13:45:00+00:00", 0) == 1_774_964_700_000
    assert moment_ms("2026-03-31T13:45", 0) == moment_ms("2026-03-31 13:45:00", 0)
    now = 1_000_000.0
    assert [moment_ms(text, now) for text in ("90s", "1.5m", "2h", "1d")] == [
        (1_000_000 - seconds) * 1000 for seconds in (90, 90, 7200, 86_400)
    ]
    for text in ("", "soon", "5", "-5m", "5 m", "2h30m"):
        with pytest.raises(ValueError, match=r".*"):
            moment_ms(text, now)


def test_many_letters_are_counted_and_the_first_ones_named() -> None:
    """Nothing grows with their number."""
    chain = Chain.of(letter(place) for place in range(NAMED + 5))
    assert (len(chain.first), chain.total) == (NAMED, NAMED + 5)
    lines = list(chain.lines("Behind it wait"))
    assert lines[0] == f"Behind it wait ({NAMED + 5}):"
    assert lines[-1] == "  and 5 more"
    assert list(Chain.of([]).lines("Behind it wait")) == []


def test_a_discard_says_what_is_lost() -> None:
    """By table and operation, and the first ones by name."""
    loss = Loss.of([letter(0), letter(1), letter(2, changes=[change("orders", "a:1", Op.INCREMENT)]), DAMAGED])
    text = "\n".join(loss.lines())
    assert loss.total == 4
    assert "To be given up (4):" in text
    assert "  3-1  put, accounts 7, refused: poison: CHECK constraint failed: balance_positive" in text
    assert "SQL never gets these: 1 unreadable of ?, 2 put of accounts, 1 increment of orders." in text
    assert SECRET not in text
    assert list(Loss.of([]).lines()) == []


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({}, "refused: SQL does not take it"),
        (
            {"state": LetterState.RETRYING, "retry_until_ms": 90_000},
            "retrying: a flusher tries it again by itself until",
        ),
        ({"state": LetterState.WAITING, "failure": "", "error": ""}, "waiting: it is applied by itself when"),
    ],
)
def test_a_letter_is_described(state: dict[str, Any], said: str) -> None:
    """What it is, why, what waits, and what can be done about it; values only where they are asked for."""
    found = letter(17, **state)
    text = "\n".join(described(found, Chain.of([letter(2)]), Chain.of([letter(18), letter(19)]), with_values=False))
    assert said in text
    assert ("balance_positive" in text.split("It waits for")[0]) is bool(found.failure)
    assert "It waits for (1):\n  3-2  put, accounts 7" in text
    assert "Behind it wait (2):\n  3-18  put" in text
    assert "columns note; --values shows the values" in text
    assert "  dead-letters replay 3-17 --wait 10                     when SQL would take it now\n" in text
    assert "  dead-letters replay 3-17 --set COLUMN=VALUE --wait 10  with another value\n" in text
    assert SECRET not in text
    shown = "\n".join(described(found, Chain.of([]), Chain.of([]), with_values=True))
    assert f"note = {SECRET!r}" in shown
    assert "It waits for" not in shown


def test_what_cannot_be_read_can_only_be_discarded() -> None:
    """No other way is offered."""
    text = "\n".join(described(DAMAGED, Chain.of([]), Chain.of([]), with_values=True))
    assert "replay" not in text
    assert "dead-letters discard 3-0" in text


def test_what_is_left_is_told_by_table() -> None:
    """Also that nothing is, and that nothing matches."""
    counts = {"": LetterCounts(refused=1), "accounts": LetterCounts(refused=2, retrying=1, waiting=3)}
    told = "dead letters: not readable: 1 refused, 0 waiting; accounts: 2 refused, 1 retrying, 3 waiting"
    assert list(left(counts, none_match=False)) == [told]
    assert list(left(counts, none_match=True)) == ["no dead letter matches", told]
    assert list(left({}, none_match=True)) == ["there are no dead letters"]
