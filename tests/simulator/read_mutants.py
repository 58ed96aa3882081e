"""Known mistakes with what reads put into Redis; see ``mutants``."""

from collections.abc import Iterator
from contextlib import contextmanager

from simulator.faults import Fault
from simulator.mutant import Mutant, edited
from simulator.theme import Theme
from writebehind.engine.adapters import scripts

__all__ = ["READING"]


@contextmanager
def _left() -> Iterator[None]:
    """Neither what a commit puts, nor what it touches, nor what lacks a letter, is removed."""
    with (
        edited(scripts.SETTLE, "elseif not version then", "elseif false then"),
        edited(scripts.SETTLE, "elseif not known[1] then", "elseif false then"),
        edited(scripts.SETTLE, "local lacking = late and", "local lacking = false and"),
    ):
        yield


READING = [
    Mutant(
        name="a fill without a token",
        harm="a slow reader puts the row of before over what was written meanwhile",
        rules=frozenset({"reads", "clean"}),
        make=lambda: edited(
            scripts.RECORD_FILL,
            "found[1] == state and found[2] == ARGV[2] and (found[3] or '') == version",
            "true",
        ),
        theme=Theme(faults=[Fault.FREEZE_AFTER]),
    ),
    Mutant(
        name="what was loaded is not judged",
        harm="after a rollback of Redis an old row is read that was loaded before SQL got a later one",
        rules=frozenset({"reads"}),
        make=lambda: edited(scripts.DISTRUST, "elseif loaded and", "elseif false and"),
        theme=Theme(events=["failover", "replica cut"], only=True, forgets=True),
        seeds_max=1000,
    ),
    Mutant(
        name="a dirty record under a row expires",
        harm="evicted before its flush, an old row is read in its place",
        rules=frozenset({"reads", "clean"}),
        make=lambda: edited(
            scripts.RECORD_OVERLAY, "unpack(ARGV, 2))", "unpack(ARGV, 2)) redis.call('PEXPIRE', KEYS[1], 100)"
        ),
        theme=Theme(),
    ),
    Mutant(
        name="a late commit leaves what was loaded before it",
        harm="a letter that SQL takes at last, or a replay after SQL was rolled back, is not seen",
        rules=frozenset({"reads"}),
        make=_left,
        theme=Theme(events=["sql rollback"], only=True, refuses=True, reads=True),
    ),
]
