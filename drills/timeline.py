"""The timeline: how many operations were acknowledged and how many of them were in SQL, at each moment.

Pure. An operation counts as committed from the first look at SQL that saw its entry applied. One whose entry was lost
with Redis and written again under another ID counts from the end of the incident on.
"""

from collections.abc import Sequence

from writebehind.drills.checkers import Snapshot
from writebehind.drills.journal import Operation

__all__ = ["POINTS_MAX", "timeline"]

POINTS_MAX = 240

Point = tuple[float, int, int, float]
"""Seconds since the beginning, acknowledged, committed, lag in seconds."""


def timeline(
    operations: Sequence[Operation], snapshots: Sequence[Snapshot], began: float, recoveries: Sequence[float]
) -> list[Point]:
    """Return the curves of a drill.

    Args:
        operations: the history.
        snapshots: looks at SQL, in order.
        began: what the points' times count from.
        recoveries: when incidents were over, in order.
    """
    done = sorted((each for each in operations if each.acknowledged and each.ended is not None), key=_ended)
    commits = _commits(done, snapshots, recoveries)
    in_order = sorted(commits)
    points: list[Point] = []
    acknowledged = committed = oldest = 0
    for snapshot in snapshots:
        if snapshot.at < began:
            continue
        while acknowledged < len(done) and _ended(done[acknowledged]) <= snapshot.at:
            acknowledged += 1
        while committed < len(in_order) and in_order[committed] <= snapshot.at:
            committed += 1
        while oldest < len(done) and commits[oldest] <= snapshot.at:
            oldest += 1
        waiting = oldest < acknowledged
        lag = snapshot.at - _ended(done[oldest]) if waiting else 0.0
        points.append((round(snapshot.at - began, 3), acknowledged, min(committed, acknowledged), round(lag, 3)))
    return _thinned(points)


def _commits(done: Sequence[Operation], snapshots: Sequence[Snapshot], recoveries: Sequence[float]) -> list[float]:
    """Return for each operation when it was seen in SQL first; infinity where it never was."""
    by_epoch: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for index, each in enumerate(done):
        if each.entry is not None:
            by_epoch.setdefault((each.partition, each.entry.epoch), []).append((each.entry.sequence, index))
    for waiting in by_epoch.values():
        waiting.sort(reverse=True)
    commits = [float("inf")] * len(done)
    for snapshot in snapshots:
        for where, applied in snapshot.applied.items():
            waiting = by_epoch.get(where, [])
            while waiting and waiting[-1][0] <= applied:
                commits[waiting.pop()[1]] = snapshot.at
    for waiting in by_epoch.values():
        for _, index in waiting:
            later = [moment for moment in recoveries if moment >= _ended(done[index])]
            commits[index] = later[0] if later else float("inf")
    return commits


def _ended(operation: Operation) -> float:
    return operation.ended if operation.ended is not None else float("inf")


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Keep so many points at the most, of each group the one with the greatest lag, and the last."""
    size = -(-len(points) // POINTS_MAX)
    groups = [points[start : start + size] for start in range(0, len(points), size)] if size else []
    kept = [max(group, key=lambda point: point[3]) for group in groups]
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]
