"""Dead letters as an operator reads them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Self, assert_never

from rich.table import Table
from rich.text import Text

from writebehind.engine.core.printable import printable
from writebehind.recovery.letters import DeadLetter, LetterChange, LetterCounts, LetterState

__all__ = ["Chain", "Loss", "described", "left", "tabulated"]

NAMED: Final = 20
"""Letters that are named one by one in a text; all are counted."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Letters before or behind one.

    Attributes:
        first: the nearest ones.
        total: how many there are.
    """

    first: Sequence[DeadLetter]
    total: int

    @classmethod
    def of(cls, letters: Iterable[DeadLetter]) -> Self:
        """Count letters, and keep the first ones."""
        first: list[DeadLetter] = []
        total = 0
        for letter in letters:
            total += 1
            if len(first) < NAMED:
                first.append(letter)
        return cls(first, total)

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {"total": self.total, "first": [str(letter.letter_id) for letter in self.first]}

    def lines(self, heading: str) -> Iterator[str]:
        """Yield a heading and what stands under it; nothing where there is none."""
        if not self.total:
            return
        yield f"{heading} ({self.total}):"
        for letter in self.first:
            yield f"  {_line(letter)}"
        if self.total > len(self.first):
            yield f"  and {self.total - len(self.first)} more"


@dataclass(frozen=True, slots=True)
class Loss:
    """What a discard would give up.

    Attributes:
        by_table: how many of which table do what.
        chain: the letters.
    """

    by_table: Mapping[tuple[str, str], int]
    chain: Chain

    @classmethod
    def of(cls, letters: Iterable[DeadLetter]) -> Self:
        """Count letters."""
        by_table: Counter[tuple[str, str]] = Counter()

        def counted() -> Iterator[DeadLetter]:
            for letter in letters:
                by_table[letter.changes[0].table if letter.changes else "", letter.operation] += 1
                yield letter

        chain = Chain.of(counted())
        return cls(by_table, chain)

    @property
    def total(self) -> int:
        """How many there are."""
        return self.chain.total

    def lines(self) -> Iterator[str]:
        """Yield what is lost."""
        if not self.total:
            return
        yield from self.chain.lines("To be given up")
        told = [f"{count} {operation} of {table or '?'}" for (table, operation), count in sorted(self.by_table.items())]
        yield f"SQL never gets these: {', '.join(told)}."
        yield "Reads of their records show what SQL has. What waits behind them and is not listed here is applied then."


def tabulated(letters: Iterable[DeadLetter]) -> Table:
    """Return letters as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("letter", "table", "key", "what", "state", "set aside", "tries"):
        table.add_column(heading, no_wrap=heading in {"letter", "state", "set aside"}, overflow="fold")
    table.add_column("error", overflow="fold", ratio=1)
    for letter in letters:
        name, key_text = letter.records[0] if letter.changes else ("?", "?")
        more = f" +{len(letter.records) - 1}" if len(letter.records) > 1 else ""
        table.add_row(
            *(
                Text(printable(cell))
                for cell in (
                    str(letter.letter_id),
                    name,
                    (key_text or "(new row)") + more,
                    letter.operation,
                    letter.state.value,
                    moment(letter.dead_ms),
                    str(letter.attempts),
                    _said(letter),
                )
            )
        )
    return table


def described(letter: DeadLetter, before: Chain, following: Chain, *, with_values: bool) -> Iterator[str]:
    """Yield one letter in full, and what can be done about it."""
    yield f"letter {letter.letter_id}: {letter.operation}, {letter.subject}"
    yield f"state      {_standing(letter)}"
    if letter.failure:
        yield f"failure    {letter.failure}, tried {'once' if letter.attempts == 1 else f'{letter.attempts} times'}"
        yield f"error      {letter.error}"
    yield f"written    {moment(letter.made_ms)} as {letter.mutation_id or '?'}, entry {letter.entry_id}"
    yield f"set aside  {moment(letter.dead_ms)}"
    for change in letter.changes:
        yield from _change(change, with_values=with_values)
    yield from before.lines("It waits for")
    yield from following.lines("Behind it wait")
    yield from _advice(letter)


def left(counts: Mapping[str, LetterCounts], *, none_match: bool) -> Iterator[str]:
    """Yield how many letters there are."""
    if not counts:
        yield "there are no dead letters"
        return
    if none_match:
        yield "no dead letter matches"
    told = "; ".join(f"{table or 'not readable'}: {count}" for table, count in counts.items())
    yield f"dead letters: {told}"


def moment(ms: int) -> str:
    """Return a moment in this machine's time zone."""
    return datetime.fromtimestamp(ms / 1000).astimezone().isoformat(" ", "seconds") if ms else "?"


def _line(letter: DeadLetter) -> str:
    said = _said(letter)
    return f"{letter.letter_id}  {letter.operation}, {letter.subject}, {letter.state.value}{': ' if said else ''}{said}"


def _said(letter: DeadLetter) -> str:
    return f"{letter.failure}: {letter.error}" if letter.failure else ""


def _standing(letter: DeadLetter) -> str:
    match letter.state:
        case LetterState.REFUSED:
            return "refused: SQL does not take it; later writes of its keys wait behind it"
        case LetterState.RETRYING:
            return f"retrying: a flusher tries it again by itself until {moment(letter.retry_until_ms)}"
        case LetterState.WAITING:
            return "waiting: it is applied by itself when nothing of its keys is refused before it any more"
        case _:
            assert_never(letter.state)


def _change(change: LetterChange, *, with_values: bool) -> Iterator[str]:
    yield f"{change.op.name.lower():<10} {change.table} {change.key_text or '(new row)'}"
    if with_values:
        for name, value in change.values.items():
            yield f"{'':<10} {name} = {value!r}"
    elif change.columns:
        yield f"{'':<10} columns {', '.join(change.columns)}; --values shows the values"


def _advice(letter: DeadLetter) -> Iterator[str]:
    name = letter.letter_id
    ways: list[tuple[str, str]] = []
    if letter.replayable:
        ways.append((f"dead-letters replay {name} --wait 10", "when SQL would take it now"))
        if len(letter.changes) == 1 and letter.changes[0].columns:
            ways.append((f"dead-letters replay {name} --set COLUMN=VALUE --wait 10", "with another value"))
    ways.append((f"dead-letters discard {name} --wait 10", "give it up for good"))
    yield "What you can do:"
    for command, effect in ways:
        yield f"  {command:<{max(len(way[0]) for way in ways)}}  {effect}"
    if not letter.replayable:
        yield "Nobody can read it, so it can only be discarded; its bytes are in writebehind_dead_letters.payload."
