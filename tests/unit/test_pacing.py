"""How large a flusher's batches are and how long they wait, without any clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from writebehind.flushers.config import FlusherSettings
from writebehind.flushers.pacing import BURST_SECONDS, Pacing


def pacing(**settings: float) -> Pacing:
    """Return a pace that begins at 0."""
    return Pacing(FlusherSettings(**settings), 0.0)  # type: ignore[arg-type]


def test_without_limits_nothing_changes() -> None:
    """Batches of the size that is set, which never wait."""
    pace = pacing(batch_entries_max=1000)
    for _ in range(5):
        pace.take(1000, 0.0)
        assert (pace.entries_max, pace.wait_seconds(0.0)) == (1000, 0.0)
        pace.committed(1000, 0.01)


def test_a_timeout_halves_the_batch_down_to_one() -> None:
    """One entry is the least; where even that times out, the size is not to blame."""
    pace = pacing(batch_entries_max=1000)
    assert pace.timed_out(1000)
    assert pace.entries_max == 500
    assert pace.timed_out(100), "the batch had fewer entries than it might have had"
    sizes = [pace.entries_max]
    while pace.timed_out(pace.entries_max):
        sizes.append(pace.entries_max)
    assert sizes == [50, 25, 12, 6, 3, 1]
    assert pace.entries_max == 1


def test_it_grows_again_while_commits_are_quick() -> None:
    """By a quarter for each full batch, up to what is set; by less where commits take most of the target."""
    pace = pacing(batch_entries_max=1000, commit_seconds_target=1.0)
    pace.timed_out(200)
    pace.committed(50, 0.1)
    assert pace.entries_max == 100
    pace.committed(100, 0.1)
    assert pace.entries_max == 126
    pace.committed(126, 0.7)
    assert pace.entries_max == 133
    for _ in range(100):
        pace.committed(pace.entries_max, 0.1)
    assert pace.entries_max == 1000


def test_slow_commits_shrink_the_batch_but_not_for_ever() -> None:
    """As much as the target asks for; not below a tenth, since then something else is slow."""
    pace = pacing(batch_entries_max=1000, commit_seconds_target=1.0)
    pace.committed(1000, 2.0)
    assert pace.entries_max == 500
    pace.committed(500, 60.0)
    assert pace.entries_max == 100
    pace.committed(100, 60.0)
    assert pace.entries_max == 100


def paid(pace: Pacing, now: float) -> float:
    """Wait, in as many pieces as it takes, until nothing is owed; return when that is."""
    while seconds := pace.wait_seconds(now):
        now += seconds
    return now


@pytest.mark.parametrize(
    ("seconds", "batches"), [(0.01, 40), (0.6, 160), (1.0, 160), (1.5, 160 + 500), (20.0, 160 + 500)]
)
def test_a_batch_that_timeouts_have_made_small_recovers(seconds: float, batches: int) -> None:
    """A commit that takes its time whatever its size needs large batches, also after a lock has stopped all of them."""
    pace = pacing()
    while pace.timed_out(pace.entries_max):
        pass
    assert pace.entries_max == 1
    for _ in range(batches):
        pace.committed(pace.entries_max, seconds)
    assert pace.entries_max >= (5000 if seconds <= 1 else 500)


def test_growing_stays_near_the_target() -> None:
    """Where a commit takes as long as it has entries, the size settles where that is the target."""
    pace = pacing()
    while pace.timed_out(pace.entries_max):
        pass
    sizes = []
    for _ in range(400):
        sizes.append(pace.entries_max)
        pace.committed(pace.entries_max, pace.entries_max / 2000)
    assert all(1800 <= size <= 2200 for size in sizes[-100:])


@given(
    rate=st.floats(1, 10_000),
    batches=st.lists(st.tuples(st.integers(1, 20_000), st.floats(0, 3)), min_size=1, max_size=60),
)
def test_the_rate_is_kept(rate: float, batches: list[tuple[int, float]]) -> None:
    """Whatever batches come when, SQL gets no more than the rate, half a second of it and the last batch."""
    pace = pacing(rows_per_second_max=rate, batch_entries_max=5000, lease_ttl_seconds=30)
    now, before = 0.0, 0
    for rows, idle_seconds in batches:
        now = paid(pace, now + idle_seconds)
        assert before <= rate * (now + BURST_SECONDS) + 1e-3
        pace.take(rows, now)
        before += rows


def test_groups_are_paid_for_and_no_more() -> None:
    """A batch of many times the rate is waited for in full; afterwards nothing is owed, and small ones pass."""
    pace = pacing(rows_per_second_max=100)
    now = 0.0
    for _ in range(20):
        now = paid(pace, now)
        pace.take(5000, now)
    assert now == pytest.approx(19 * 50)
    now = paid(pace, now)
    assert now == pytest.approx(20 * 50)
    for _ in range(3600):
        assert pace.wait_seconds(now) == 0
        pace.take(1, now)
        now += 1


def test_what_is_read_goes_by_the_rate() -> None:
    """A batch has half a second's worth of mutations, and of entries; without a rate as many as there are."""
    pace = pacing(rows_per_second_max=200)
    assert (pace.entries_max, pace.mutations_max) == (100, 100)
    assert pacing(rows_per_second_max=0.1).mutations_max == 1
    assert pacing(rows_per_second_max=1e9).entries_max == FlusherSettings().batch_entries_max
    assert pacing().mutations_max >= 1e9


def test_a_wait_ends_before_a_lease_does() -> None:
    """What takes longer is waited for in pieces; none is so short that it would be no wait at all."""
    pace = pacing(rows_per_second_max=10, lease_ttl_seconds=4)
    pace.take(100, 0.0)
    assert pace.wait_seconds(0.0) == 1.0
    assert pace.wait_seconds(9.5) == 0.5
    assert pace.wait_seconds(10 - 1e-12) == 0.001
    assert pace.wait_seconds(10.0) == 0.0
