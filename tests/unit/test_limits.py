"""Limits as they are given, hits as the script is told of them, and what its replies become."""

import math
import pickle
from typing import Any

import pytest

from clocked import units_max
from writebehind.engine import ConfigurationError, Hit, RedisUnavailable, ValidationError
from writebehind.engine.core.appending import Refused
from writebehind.engine.core.keys import Keys
from writebehind.engine.core.limits import Limits, hit_of, refused, subject_bytes


def test_one_limit_or_several() -> None:
    """Windows become microseconds; a hit may cost what the smallest limit has."""
    assert Limits.of("api", 100, 60) == Limits("api", ((100, 60_000_000),), 100)
    several = Limits.of("api", limits=[(10, 1.0), (100, 60)])
    assert several == Limits("api", ((10, 1_000_000), (100, 60_000_000)), 10)
    assert several.arguments(3, count=True) == (3, 1, 10, 1_000_000, 100, 60_000_000)
    assert several.arguments(3, count=False)[1] == 0


@pytest.mark.parametrize("name", ["", "a b", "x" * 33, "a:b", "a/b", "{a}", "\u00e9"])
def test_names(name: str) -> None:
    """A limiter's name has to fit into key names and hash tags."""
    with pytest.raises(ConfigurationError, match="name is not usable"):
        Limits.of(name, 1, 1)


@pytest.mark.parametrize(
    "given",
    [{}, {"limit": 1}, {"window_seconds": 1}, {"limit": 1, "window_seconds": 1, "limits": [(1, 1)]}],
)
def test_limits_that_are_not_clear(given: dict[str, Any]) -> None:
    """Either one limit with its window, or several."""
    with pytest.raises(ConfigurationError, match="not clear"):
        Limits.of("api", **given)


@pytest.mark.parametrize("count", [0, 9])
def test_too_few_and_too_many(count: int) -> None:
    """One to eight limits."""
    with pytest.raises(ConfigurationError, match=f"{count} limits"):
        Limits.of("api", limits=[(1, seconds + 1) for seconds in range(count)])


def test_two_limits_of_the_same_window() -> None:
    """The higher one would never matter."""
    with pytest.raises(ConfigurationError, match="same window"):
        Limits.of("api", limits=[(1, 60), (2, 60.0)])


@pytest.mark.parametrize("limit", [0, -1, 100_001, 1.0, True, "1", math.inf])
def test_limits_that_are_not_possible(limit: Any) -> None:
    """Whole numbers, few enough to keep each hit."""
    with pytest.raises(ConfigurationError, match=r"a limit of .* is not possible"):
        Limits.of("api", limit, 60)


@pytest.mark.parametrize("window", [0, -1, 0.0009, 366 * 86_400 + 1, math.nan, math.inf, 10**400, True, "60"])
def test_windows_that_are_not_possible(window: Any) -> None:
    """A millisecond to a year."""
    with pytest.raises(ConfigurationError, match=r"a window of .* is not possible"):
        Limits.of("api", 1, window)


@pytest.mark.parametrize("cost", [0, -1, 1.5, True, "1", None])
def test_costs_that_are_not_possible(cost: Any) -> None:
    """Nothing is free, and nothing is given back."""
    with pytest.raises(ValidationError, match="cannot cost"):
        Limits.of("api", 10, 60).arguments(cost, count=True)


def test_a_cost_above_a_limit() -> None:
    """It says that waiting is of no use."""
    limits = Limits.of("api", limits=[(100, 60), (10, 1)])
    assert limits.arguments(10, count=True)[0] == 10
    with pytest.raises(ValidationError, match=r"11 units can never be admitted, the limit is 10"):
        limits.arguments(11, count=True)


@pytest.mark.parametrize("subject", ["", "x" * 513, "\u00e9" * 257, "\ud800", 1, b"user", None])
def test_subjects(subject: Any) -> None:
    """A subject is a short text; what it is stands in no message."""
    assert subject_bytes("api", "\u00e9" * 256) == ("\u00e9" * 256).encode()
    with pytest.raises(ValidationError, match="the subject") as caught:
        subject_bytes("api", subject)
    assert "xx" not in str(caught.value)


def test_keys() -> None:
    """Each subject has a slot of its own; no two limiters, subjects or namespaces share a key, nor do records."""
    keys = Keys("shop", 2)
    assert keys.hits("api", b"user:1") == b"wb:{shop/api/user:1}:hits"
    texts = (b"1", b"a/1", b"1}:hits", b"{1}", b"/", b"api")
    names = [Keys(space, 2).hits(limiter, text) for space in ("a", "b") for limiter in ("a", "b") for text in texts]
    assert len(set(names)) == len(names)
    assert not [name for name in names if name.decode().startswith(("wb:{a:", "wb:{a}:"))]


def test_what_the_script_says() -> None:
    """A hit is as true as it was admitted; microseconds become seconds."""
    admitted, late = hit_of([1, 99, 0, 1]), hit_of([0, 0, 1_500_001, 1])
    assert (admitted, bool(admitted)) == (Hit(allowed=True, remaining=99, retry_after_seconds=0.0), True)
    assert (late, bool(late)) == (Hit(allowed=False, remaining=0, retry_after_seconds=1.500001), False)
    assert pickle.loads(pickle.dumps(late)) == late  # noqa: S301 - our own bytes


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("OOM", RedisUnavailable),
        ("READONLY", RedisUnavailable),
        ("MISCONF", RedisUnavailable),
        ("NOPERM", ConfigurationError),
        ("ERR", ConfigurationError),
        ("WRONGTYPE", ConfigurationError),
        ("FOREIGN", ConfigurationError),
    ],
)
def test_refusals(code: str, kind: type[Exception]) -> None:
    """What passes and what does not; in no case was anything counted."""
    error = refused("api", Refused(code, "text"))
    assert type(error) is kind
    assert "rate limiter api" in str(error)
    assert "nothing was counted" in error.hint


def test_the_checker() -> None:
    """Of two hits a window apart a window has one."""
    assert units_max([], 10) == 0
    assert units_max([(0, 1), (9, 2), (10, 4), (19, 8)], 10) == 12
    assert units_max([(10, 3), (0, 1), (10, 3)], 10) == 6
