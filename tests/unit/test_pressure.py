"""Limits as the write script is told of them, and what its refusals become."""

import pickle

import pytest

from writebehind.engine import BacklogFull, Backpressure, ConfigurationError, EngineSettings
from writebehind.engine.core.pressure import EXEMPT, OUT_OF_MEMORY, Drainage, Held, admission


def test_what_the_script_is_told() -> None:
    """Without any limit a call is exempt; memory and age are further limits."""
    assert admission(None, None, short_of_memory=False) == EXEMPT
    assert admission(100, None, short_of_memory=False) == (b"100", b"")
    assert admission(100, 0.5, short_of_memory=False) == (b"100", b"500")
    assert admission(100, 0.5, short_of_memory=True) == (b"100", b"500 m")
    assert admission(None, None, short_of_memory=True) == (b"9007199254740992", b"0 m")


@pytest.mark.parametrize("reason", ["entries", "seconds", "memory", OUT_OF_MEMORY])
def test_a_refusal_is_explained(reason: str) -> None:
    """The error names the partition and the limit, and crosses a process border with its advice."""
    error = Held(reason, 10, 4).error(3, 2.5)
    assert "partition 3" in str(error)
    assert "nothing was written" in error.hint
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (type(copy), str(copy), copy.retry_after_seconds) == (BacklogFull, str(error), 2.5)


def test_what_the_script_says() -> None:
    """Reason, backlog and where it resumes."""
    assert Held.parse("entries 1000 499") == Held("entries", 1000, 499)


def test_the_advice_follows_the_drainage() -> None:
    """As long as nothing was seen to be flushed a second is advised, then what the rest takes at the rate seen."""
    drainage = Drainage()
    assert drainage.retry_after_seconds(0, Held("entries", 1000, 499), 10.0) == 1.0
    assert drainage.retry_after_seconds(0, Held("entries", 1000, 499), 11.0) == 1.0
    assert drainage.retry_after_seconds(0, Held("entries", 900, 499), 12.0) == pytest.approx(4.01)
    assert drainage.retry_after_seconds(1, Held("entries", 900, 499), 12.0) == 1.0, "each partition for itself"
    assert drainage.retry_after_seconds(0, Held("entries", 500, 499), 12.0) == 0.05, "never at once"
    assert drainage.retry_after_seconds(0, Held("entries", 400, 399), 500.0) == 1.0, "what was long ago does not count"


def test_policies_have_names() -> None:
    """A policy may be given by its value, and only one that there is."""
    assert EngineSettings(backpressure="reject").backpressure is Backpressure.REJECT  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="'block', 'reject', 'write_through'"):
        EngineSettings(backpressure="drop")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="redis_memory_share_max"):
        EngineSettings(redis_memory_share_max=90)
    assert EngineSettings(backlog_entries_max=None, redis_memory_share_max=None).backlog_entries_max is None
