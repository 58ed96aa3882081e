"""Settings that cannot work are refused when they are made."""

import pickle
from typing import Any

import pytest

from writebehind.engine import errors
from writebehind.engine.config import PAYLOAD_BYTES_MAX, EngineSettings, NamespaceSettings
from writebehind.flushers.config import FlusherSettings


@pytest.mark.parametrize("namespace", ["", "a b", "x" * 33, "a:b", "{a}"])
def test_namespace_names(namespace: str) -> None:
    """A namespace has to fit into key names and hash tags."""
    with pytest.raises(errors.ConfigurationError, match="namespace"):
        NamespaceSettings(namespace=namespace, partitions=1)


@pytest.mark.parametrize("partitions", [0, -1, 1025, 1.5])
def test_partition_counts(partitions: int) -> None:
    """The number of partitions has limits."""
    with pytest.raises(errors.ConfigurationError, match="partitions"):
        NamespaceSettings(namespace="a", partitions=partitions)


def test_positive_numbers() -> None:
    """Limits and times are positive; a record may live for ever."""
    with pytest.raises(errors.ConfigurationError, match="payload_bytes_max"):
        EngineSettings(payload_bytes_max=0)
    with pytest.raises(errors.ConfigurationError, match=r"payload_bytes_max is .*at most"):
        EngineSettings(payload_bytes_max=PAYLOAD_BYTES_MAX + 1)
    with pytest.raises(errors.ConfigurationError, match="lease_ttl_seconds"):
        FlusherSettings(lease_ttl_seconds=0.5)
    with pytest.raises(errors.ConfigurationError, match="batch_entries_max"):
        FlusherSettings(batch_entries_max=0)
    assert EngineSettings(record_ttl_seconds=None).record_ttl_seconds is None
    assert FlusherSettings(linger_seconds=0, retention_seconds=0).linger_seconds == 0


@pytest.mark.parametrize("settings", [EngineSettings, FlusherSettings])
def test_times_have_an_end(settings: Any) -> None:
    """A time that cannot be counted in milliseconds is refused with its name and the limit; so is what is no number."""
    names = [name for name in settings.__dataclass_fields__ if "_seconds" in name]
    assert len(names) >= 7
    for name in names:
        for value in (1e17, float("inf")):
            with pytest.raises(errors.ConfigurationError, match=rf"^{name} is .*give at most \d+ seconds"):
                settings(**{name: value})
        with pytest.raises(errors.ConfigurationError, match=rf"^{name} is nan"):
            settings(**{name: float("nan")})
        longest = {"redis_timeout_seconds": 2**31 // 1000, "lease_ttl_seconds": 86_400}.get(name, 2**31)
        settings(**{name: longest})
        with pytest.raises(errors.ConfigurationError, match=str(longest)):
            settings(**{name: longest + 1})


@pytest.mark.parametrize("name", errors.__all__)
def test_errors_pickle(name: str) -> None:
    """Errors keep message and hint when they cross a process border."""
    error = getattr(errors, name)("what happened", "what to do")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(copy) is type(error)
    assert str(copy) == "what happened (what to do)"
