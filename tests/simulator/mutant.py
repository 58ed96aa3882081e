"""What a known mistake is."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from simulator.faults import Fault
from simulator.history import SCRIPTS
from simulator.theme import Theme
from writebehind.engine.adapters import scripts

__all__ = ["KILLS", "Mutant", "edited"]

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


@contextmanager
def edited(script: scripts.Script, old: str, new: str) -> Iterator[None]:
    """Have a Lua script run with one piece of it replaced; inside another one, with both pieces.

    Raises:
        ValueError: the piece is not there, or more than once: the mutant has to move with the script.
    """
    text = SCRIPTS.edits.get(script.text, script.text)
    if text.count(old.encode()) != 1:
        raise ValueError(f"{script.name}.lua has {old!r} {text.count(old.encode())} times")
    edits = {**SCRIPTS.edits, script.text: text.replace(old.encode(), new.encode())}
    with mock.patch.object(SCRIPTS, "edits", edits):
        yield
