"""Figures for Prometheus."""

import re

from writebehind.engine import CacheCounts, ReadCounts
from writebehind.flushers.inspection import LossStatus, PartitionStatus, Status
from writebehind.flushers.metrics import exposition
from writebehind.recovery.letters import LetterCounts

PARTITION = PartitionStatus(
    partition=0, offset="1-5", end="1-9", backlog=4, lag_seconds=1.25, holder="h", lost_entries=0, missing_rows=2,
    halted=None,
)  # fmt: skip
HELD = PartitionStatus(
    partition=1, offset="1-5", end="1-9", backlog=0, lag_seconds=0, holder=None, lost_entries=0, missing_rows=0,
    halted="entry 1-6: the value 'secret' has a \\n", pressure="entries",
)  # fmt: skip
DAMAGED = PartitionStatus(
    partition=2, offset="1-5", end=None, backlog=None, lag_seconds=None, holder=None, lost_entries=0, missing_rows=0,
    halted=None, damaged="WRONGTYPE",
)  # fmt: skip
LOSS = LossStatus(
    partition=0, first_id="1-1", last_id="1-3", entries=1, rewritten=2, reporter="r", from_ms=0, until_ms=0,
    found_ms=0, records="",
)  # fmt: skip
READS = ReadCounts(hits=9, negative_hits=2, misses=3, loads=3, load_ms=250, waits=1)
NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
SAMPLE = re.compile(rf'({NAME})\{{((?:{NAME}="(?:[^"\\\n]|\\.)*",?)*)\}} (\S+)')


def test_what_prometheus_reads() -> None:
    """Each figure has its type and meaning before it, labels are escaped, and the numbers are those of the status."""
    counts = {'a"b\\c\nd': LetterCounts(refused=3, retrying=0, waiting=1)}
    partitions = [PARTITION, HELD, DAMAGED]
    found = Status(
        namespace="shop",
        partitions=partitions,
        flushers=2,
        losses=[LOSS, LOSS],
        dead_letters=counts,
        reads={"accounts": READS},
        caches={"profile": CacheCounts(hits=3, loads=1, load_seconds=0.5)},
    )
    described: set[str] = set()
    figures: dict[str, dict[str, float]] = {}
    for line in exposition(found).splitlines():
        if line.startswith("# "):
            described.add(" ".join(line.split()[1:3]))
            continue
        matched = SAMPLE.fullmatch(line)
        assert matched is not None, line
        name, labels, value = matched.groups()
        assert {f"HELP {name}", f"TYPE {name}"} <= described
        figures.setdefault(name.removeprefix("writebehind_"), {})[labels] = float(value)
    space = 'namespace="shop"'
    assert figures == {
        "backlog_entries": {f'{space},partition="0"': 4, f'{space},partition="1"': 0},
        "lag_seconds": {f'{space},partition="0"': 1.25, f'{space},partition="1"': 0},
        "held": {f'{space},partition="1",limit="entries"': 1},
        "halted": {f'{space},partition="{number}"': float(number == 1) for number in range(3)},
        "damaged": {f'{space},partition="{number}"': float(number == 2) for number in range(3)},
        "missing_rows_total": {f'{space},partition="{number}"': 2.0 * (number == 0) for number in range(3)},
        "lost_entries_total": {space: 2},
        "rewritten_entries_total": {space: 4},
        "dead_letters": {
            f'{space},table="a\\"b\\\\c\\nd",state="{state}"': number
            for state, number in (("refused", 3), ("retrying", 0), ("waiting", 1))
        },
        "reads_total": {
            f'{space},table="accounts",what="{name}"': number
            for name, number in {
                "hits": 9,
                "negative_hits": 2,
                "misses": 3,
                "loads": 3,
                "waits": 1,
                "stale": 0,
                "not_kept": 0,
                "evictions": 0,
            }.items()
        },
        "read_load_seconds_total": {f'{space},table="accounts"': 0.25},
        "cache_reads_total": {
            f'{space},cache="profile",what="{name}"': {"hits": 3.0, "loads": 1.0}.get(name, 0.0)
            for name in CacheCounts.__dataclass_fields__
            if name != "load_seconds"
        },
        "cache_load_seconds_total": {f'{space},cache="profile"': 0.5},
        "flushers": {space: 2},
    }
    assert "secret" not in exposition(found)
