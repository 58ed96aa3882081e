"""What a known mistake is."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from simulator.faults import Fault
from simulator.theme import Theme

__all__ = ["KILLS", "Mutant"]

KILLS = (Fault.KILL_BEFORE, Fault.KILL_AFTER)


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A mistake.

    Attributes:
        name: a short name.
        harm: what it does to data.
        rules: the invariants by which it may be seen.
        make: makes it.
        theme: what the histories have in any case.
        seeds_max: it shows in one of so many histories.
    """

    name: str
    harm: str
    rules: frozenset[str]
    make: Callable[[], AbstractContextManager[Any]]
    theme: Theme
    seeds_max: int = 300
