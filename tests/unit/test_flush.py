"""The flush protocol decides without any server."""

import pytest

from writebehind.engine.core.coalescing import Changes
from writebehind.engine.core.positions import EntryID
from writebehind.engine.errors import LeaseLost
from writebehind.flushers.batch import Batch, Segment
from writebehind.flushers.flush import Acknowledge, Begin, Commit, Effect, Fence, Fenced, RollBack, Write, flush

BATCH = Batch(
    segments=[Segment(partition=3, token=1, start=EntryID(5, 0), end=EntryID(5, 1), ids=[b"5-1"])], changes=Changes({})
)


def play(fenced: Fenced) -> tuple[list[type[Effect]], bool]:
    """Answer the fence; return the effects and whether the lease was lost."""
    protocol = flush(BATCH)
    effects: list[type[Effect]] = []
    reply = None
    while True:
        try:
            effect = protocol.send(reply)
        except StopIteration:
            return effects, False
        except LeaseLost:
            return effects, True
        effects.append(type(effect))
        reply = fenced if isinstance(effect, Fence) else None


def test_the_fence_comes_first_and_the_acknowledgement_last() -> None:
    """Rows are written under the fence and acknowledged after the commit."""
    assert play(Fenced.MOVED) == ([Begin, Fence, Write, Commit, Acknowledge], False)


def test_a_batch_that_was_committed_before_is_only_acknowledged() -> None:
    """An earlier attempt whose outcome was unknown is not repeated."""
    assert play(Fenced.ALREADY) == ([Begin, Fence, RollBack, Acknowledge], False)


def test_a_lost_lease_writes_nothing() -> None:
    """Another holder, or another offset, ends the flush before any row."""
    assert play(Fenced.LOST) == ([Begin, Fence, RollBack], True)


def test_an_error_ends_the_protocol_before_the_commit() -> None:
    """What the shell raises passes through, so nothing after it happens."""
    protocol = flush(BATCH)
    next(protocol)
    protocol.send(None)
    protocol.send(Fenced.MOVED)
    with pytest.raises(OSError, match="gone"):
        protocol.throw(OSError("gone"))
