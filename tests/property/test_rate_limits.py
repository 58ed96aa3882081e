"""Whatever the clock does and whatever hits cost: no window has more than its limit, and every reply is exact.

The script runs on a real server, its clock is the test's. ``HYPOTHESIS_PROFILE=long`` runs many more examples.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clocked import START, Clocked, Reply, units_max

EXAMPLES = 1000 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 200

Windows = Sequence[tuple[int, int]]

WINDOWS = st.lists(
    st.tuples(st.integers(1, 6), st.integers(1, 30)), min_size=1, max_size=3, unique_by=lambda each: each[1]
)


@dataclass(frozen=True)
class Step:
    """Time passes, the server's clock is set back or not, and then there is a hit, or a look."""

    passed: int
    back: int
    cost: int
    count: bool


def steps(back: st.SearchStrategy[int]) -> st.SearchStrategy[list[Step]]:
    """Make steps of a few microseconds."""
    return st.lists(
        st.builds(Step, st.integers(0, 12), back, st.integers(1, 6), st.sampled_from([True, True, True, False])),
        max_size=40,
    )


@dataclass
class Model:
    """The rules, said plainly: all hits are kept, and looked at each time."""

    windows: Windows
    hits: list[tuple[int, int]] = field(default_factory=list)

    def units(self, now: int, window: int) -> int:
        """Return what a window has that ends now."""
        return sum(cost for at, cost in self.hits if at > now - window)

    def fits(self, now: int, cost: int) -> bool:
        """Tell whether all limits have room."""
        return all(self.units(now, window) + cost <= limit for limit, window in self.windows)

    def hit(self, clock: int, cost: int, *, count: bool) -> Reply:
        """Do what the script does."""
        newest = max((at for at, _ in self.hits), default=clock)
        longest = max(window for _, window in self.windows)
        if newest - clock > longest:
            self.hits = [(clock, self.units(newest, longest))]
            newest = clock
        now = max(clock, newest)
        allowed = self.fits(now, cost)
        wait = next(wait for wait in itertools.count() if self.fits(max(now, clock + wait), cost))
        if allowed and count:
            self.hits.append((now, cost))
        left = min(limit - self.units(now, window) for limit, window in self.windows)
        return Reply(int(allowed), max(0, left), wait, clock)


@pytest.fixture(scope="module")
def client(redis_server: str) -> Iterator[Any]:
    """A plain client of the shared Redis."""
    with redis.Redis.from_url(redis_server) as plain:
        yield plain


def play(client: Any, windows: Windows, story: Sequence[Step]) -> None:
    """Let the story happen, and compare."""
    key = f"wb:{{t{os.getpid()}/property/subject}}:hits"
    client.delete(key)
    script, model = Clocked(client, key, *windows), Model(windows)
    admitted: list[tuple[int, int]] = []
    elapsed, behind = 0, 0
    for step in story:
        elapsed += step.passed
        behind += step.back
        cost = min(step.cost, *(limit for limit, _ in windows))
        clock = START + elapsed - behind
        reply = script.hit(clock, cost, count=step.count)
        assert reply == model.hit(clock, cost, count=step.count)
        if reply.allowed and step.count:
            admitted.append((elapsed, cost))
        if not reply.allowed:
            assert reply.wait <= 2 * max(window for _, window in windows)
            assert not script.hit(clock + reply.wait - 1, cost, count=False).allowed
            assert script.hit(clock + reply.wait, cost, count=False).allowed
        assert script.kept() <= len(admitted)
    # By the time that has really passed, whatever clocks said.
    for limit, window in windows:
        assert units_max(admitted, window) <= limit
    client.delete(key)


BOUNDS = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


@BOUNDS
@given(windows=WINDOWS, story=steps(st.just(0)))
def test_a_steady_clock(client: Any, windows: Windows, story: Sequence[Step]) -> None:
    """Every hit is admitted that has room, and no other; a refused one is told to the microsecond when it would be."""
    play(client, windows, story)


@BOUNDS
@example(windows=[(2, 1)], story=[Step(0, back, 1, count=True) for back in (0, 1, 0)])
@given(windows=WINDOWS, story=steps(st.just(0) | st.integers(0, 100)))
def test_a_clock_that_is_set_back(client: Any, windows: Windows, story: Sequence[Step]) -> None:
    """Still no window has more than its limit, and nobody waits for longer than two of them."""
    play(client, windows, story)
