"""K11 and K12: what SQL refuses, and what it cannot take."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from writebehind.drills.checkers.check import Check, Row, described

__all__ = ["Halt", "Look", "dead_letters", "halts"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What was set aside at one moment, and what should have been.

    Attributes:
        when: the moment, in words.
        expected, found: dead letters, partition by partition in their order.
        rows_expected, rows_found: by key, rows of which something was refused, and their neighbours; None for no row.
        troubles: what else was not as it should be.
    """

    when: str
    expected: Sequence[str]
    found: Sequence[str]
    rows_expected: Mapping[int, Row | None]
    rows_found: Mapping[int, Row | None]
    troubles: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Halt:
    """A partition with writes that SQL could not take for want of something: what it has to name, what it said."""

    partition: int
    wanted: str
    said: str | None


def dead_letters(looks: Sequence[Look]) -> Check:
    """K11.

    Args:
        looks: in their order; the last one is at rows that nobody writes any more.
    """
    problems = "; ".join(f"{look.when}: {problem}" for look in looks if (problem := _wrong(look)))
    rows = len(looks[-1].rows_expected) if looks else 0
    return Check(
        "K11",
        "what SQL refuses is set aside, and nothing else",
        not problems,
        problems or f"{max((len(look.expected) for look in looks), default=0)} set aside at a time, {rows} rows",
    )


def _wrong(look: Look) -> str:
    expected, found = Counter(look.expected), Counter(look.found)
    same = expected == found
    rows = [
        f"{key} is {look.rows_found.get(key)}, not {row}"
        for key, row in look.rows_expected.items()
        if look.rows_found.get(key) != row
    ]
    return described(
        ("not set aside", list((expected - found).elements())),
        ("set aside for no reason", list((found - expected).elements())),
        ("in another order", [f"{a} for {b}" for a, b in zip(look.found, look.expected, strict=True) if a != b]
         if same else []),
        ("rows", rows),
        ("trouble", look.troubles),
    )  # fmt: skip


def halts(seen: Sequence[Halt]) -> Check:
    """K12.

    Args:
        seen: each partition that had to halt, as it was before the cause was mended.
    """
    wrong = [
        f"partition {halt.partition} said {halt.said or 'nothing'}, without {halt.wanted}"
        for halt in seen
        if re.search(rf"\b{re.escape(halt.wanted)}\b", halt.said or "") is None
    ]
    problems = described(("not halted", wrong))
    detail = f"{len(seen)} halted: {seen[0].said}" if seen else "nothing had to halt"
    return Check("K12", "what SQL cannot take halts its partition, which says why", not problems, problems or detail)
