"""What checkers find, and what they look at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from writebehind.drills.journal import Operation

__all__ = ["NOTHING", "Allowance", "Audited", "Check", "Row", "Snapshot", "described"]

Row = Mapping[str, object]

SHOWN = 5
"""Examples in a message."""


@dataclass(frozen=True, slots=True)
class Check:
    """What a checker found.

    Attributes:
        code: K1 to K12.
        title: what it looks at.
        passed: whether the promise was kept.
        detail: figures, or what is wrong.
        lost: acknowledged operations whose effect is missing.
        lost_unnamed: how many more are missing, of which only the number is known.
        doubled: how many effects are there too often.
    """

    code: str
    title: str
    passed: bool
    detail: str
    lost: tuple[Operation, ...] = ()
    lost_unnamed: int = 0
    doubled: int = 0


@dataclass(frozen=True, slots=True)
class Allowance:
    """Which acknowledged operations a fault may take, by the promise for its settings.

    Attributes:
        windows: pairs of times; what was acknowledged between them may be lost.
    """

    windows: Sequence[tuple[float, float]] = ()

    def covers(self, operation: Operation) -> bool:
        """Tell whether an operation may be lost."""
        ended = operation.ended
        return ended is not None and any(start <= ended <= end for start, end in self.windows)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one look at SQL saw.

    Attributes:
        at: when, on the monotonic clock.
        applied: by partition and epoch, the last applied sequence.
        tokens: fencing tokens by partition.
        banks: by bank, how many accounts and their sum.
        lists: by list, how many rows and the highest position.
    """

    at: float
    applied: Mapping[tuple[int, int], int] = field(default_factory=dict)
    tokens: Mapping[int, int] = field(default_factory=dict)
    banks: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    lists: Mapping[int, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Audited:
    """One committed move of an offset, as a trigger in the database wrote it down."""

    partition: int
    token: int
    epoch: int
    sequence: int


NOTHING = Allowance()
"""Nothing may be lost."""


def described(*found: tuple[str, Sequence[object]]) -> str:
    """Describe what is wrong, with a few examples of each; nothing where nothing is."""
    parts = []
    for what, examples in found:
        if examples:
            shown = ", ".join(map(str, examples[:SHOWN]))
            more = f" and {len(examples) - SHOWN} more" if len(examples) > SHOWN else ""
            parts.append(f"{what}: {shown}{more}")
    return "; ".join(parts)
