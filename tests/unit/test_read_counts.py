"""What reads have met with, and how long what they loaded is kept."""

from dataclasses import fields
from pathlib import Path

import pytest

from writebehind.engine import CacheCounts, ConfigurationError, EngineSettings, ReadCounts
from writebehind.engine.adapters.reader import keeping_of


def test_sums_and_rates() -> None:
    """Counts of processes are added field by field; the rate is of what was looked for."""
    both = ReadCounts(hits=3, misses=1, load_ms=5) + ReadCounts(hits=3, negative_hits=1, misses=1)
    assert both == ReadCounts(hits=6, negative_hits=1, misses=2, load_ms=5)
    assert both.hit_rate == 0.75
    assert ReadCounts().hit_rate is None


def test_each_count_is_explained() -> None:
    """The page on hit rates has each of them."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "hit-rates.md").read_text()
    counts = {each.name for kind in (ReadCounts, CacheCounts) for each in fields(kind)}
    assert {name for name in counts if f"`{name}`" not in page} == set()


def test_lifetimes() -> None:
    """Jitter takes away from the time that a record is fresh, and never adds; what is stale comes on top."""
    keeping = keeping_of(EngineSettings(record_ttl_seconds=100, ttl_jitter_share=0.2, stale_seconds=10))
    assert [keeping.record_ms(chance) for chance in (0, 0.5, 1)] == [110_000, 100_000, 90_000]
    assert [keeping.negative_ms(chance) for chance in (0, 1)] == [30_000, 24_000]
    assert keeping_of(EngineSettings(negative_ttl_seconds=None)).negative_ms(0.5) == 0
    assert keeping_of(EngineSettings(record_ttl_seconds=None)).record_ms(0) == 3_600_000
    assert keeping_of(EngineSettings(record_ttl_seconds=0.0001)).record_ms(1) == 1


@pytest.mark.parametrize(
    "given",
    [
        {"negative_ttl_seconds": 0},
        {"load_lease_seconds": 0},
        {"stale_seconds": -1},
        {"ttl_jitter_share": 1},
        {"refresh_ahead_share": 1.0},
        {"ttl_jitter_share": -0.1},
    ],
)
def test_impossible_settings(given: dict[str, float]) -> None:
    """They are refused by name."""
    with pytest.raises(ConfigurationError, match=next(iter(given))):
        EngineSettings(**given)  # type: ignore[arg-type]
