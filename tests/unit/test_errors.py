"""Which of several errors a caller gets."""

import itertools

import pytest

from writebehind.engine import (
    DataLossDetected,
    DurabilityTimeout,
    PoisonEntryError,
    RedisUnavailable,
    WriteThroughTimeout,
)
from writebehind.engine.errors import gravest

RANKED = [
    ZeroDivisionError("a fault of ours"),
    DataLossDetected("lost"),
    PoisonEntryError("refused"),
    RedisUnavailable("away"),
    DurabilityTimeout("late"),
]


@pytest.mark.parametrize("failures", list(itertools.permutations(RANKED, 2)))
def test_what_will_never_come_goes_first(failures: tuple[Exception, ...]) -> None:
    """In whatever order they are met."""
    assert gravest(failures) is min(failures, key=RANKED.index)


def test_the_others_are_noted() -> None:
    """The first of a kind is raised, and each other kind is told of once."""
    late, refused = DurabilityTimeout("late", "wait"), PoisonEntryError("refused")
    raised = gravest([late, refused, PoisonEntryError("another"), WriteThroughTimeout("later"), DurabilityTimeout("x")])
    assert raised is refused
    assert raised.__notes__ == ["other writes of the same call: late (wait)", "other writes of the same call: later"]
    assert not hasattr(late, "__notes__")
