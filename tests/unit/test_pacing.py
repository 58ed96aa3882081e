"""How large a flusher's batches are and how long they wait, without any clock."""

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
        assert (pace.entries_max, pace.wait_seconds(1000, 0.0)) == (1000, 0.0)
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
    """By a quarter for each full batch, up to what is set, and not where batches are not full or commits are slow."""
    pace = pacing(batch_entries_max=1000, commit_seconds_target=1.0)
    pace.timed_out(200)
    pace.committed(50, 0.1)
    pace.committed(100, 0.7)
    assert pace.entries_max == 100
    pace.committed(100, 0.1)
    assert pace.entries_max == 126
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


@given(
    rate=st.floats(1, 10_000),
    batches=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 3)), min_size=1, max_size=60),
)
def test_the_rate_is_kept(rate: float, batches: list[tuple[float, float]]) -> None:
    """Whatever batches come when, SQL gets no more than the rate, half a second of it and one batch."""
    pace = pacing(rows_per_second_max=rate, batch_entries_max=5000, lease_ttl_seconds=30)
    now, rows = 0.0, 0
    for share, idle_seconds in batches:
        now += idle_seconds
        size = max(1, int(share * pace.entries_max))
        now += pace.wait_seconds(size, now)
        rows += size
        assert rows <= rate * now + rate * BURST_SECONDS + size + 1e-6


def test_a_wait_ends_before_a_lease_does() -> None:
    """Where one batch takes more than the lease allows to wait for, later ones wait for the rest."""
    pace = pacing(rows_per_second_max=10, lease_ttl_seconds=4)
    assert pace.wait_seconds(100, 0.0) == 1.0
    assert pace.wait_seconds(1, 1.0) == 1.0
    assert pace.wait_seconds(1, 20.0) == 0.0
