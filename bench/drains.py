"""How fast a backlog empties, compared with hand-written loops over the same logs."""

import statistics
import time
from collections.abc import Callable

from writebehind.bench.report import Figure, Target
from writebehind.bench.rooflines import CopyLoop, ExecutemanyLoop, Loop, RowLoop
from writebehind.bench.trial import Plan, Trial, trial
from writebehind.bench.workload import DISTRIBUTIONS
from writebehind.flushers.config import FlusherSettings
from writebehind.flushers.draining import drain

__all__ = ["drains", "engine_rate"]

ROW_ENTRIES_MAX = 3000
COPY_TARGET = Target(at_least=0.85)
EXECUTEMANY_TARGET = Target(at_least=1.8)
ROW_TARGET = Target(at_least=40)


def drains(plan: Plan) -> list[Figure]:
    """Measure the engine's drain in one process against each loop, interleaved."""
    figures: list[Figure] = []
    few = min(plan.entries, ROW_ENTRIES_MAX)
    for distribution in DISTRIBUTIONS:
        rates: dict[str, list[float]] = {"engine": [], "copy": [], "executemany": [], "row": []}
        for _ in range(plan.rounds):
            rates["engine"].append(_measured(plan, distribution, plan.entries, _engine))
            rates["copy"].append(_measured(plan, distribution, plan.entries, _loop(CopyLoop)))
            rates["executemany"].append(_measured(plan, distribution, plan.entries, _loop(ExecutemanyLoop)))
            rates["row"].append(_measured(plan, distribution, few, _loop(RowLoop)))
        for kind, target, note in (
            ("copy", COPY_TARGET, "bare loop, binary COPY"),
            ("executemany", EXECUTEMANY_TARGET, "bare loop, SQLAlchemy executemany upsert"),
            ("row", ROW_TARGET, f"a commit for each entry; rate of {few:,} entries"),
        ):
            name = f"drain of {plan.entries:,}, {distribution} keys"
            figures.append(
                Figure.compared("drain", name, "entries/s", rates["engine"], rates[kind], target=target, note=note)
            )
    return figures


def engine_rate(plan: Plan) -> float:
    """Return the engine's own rate on uniform keys, in entries per second."""
    return statistics.median(_measured(plan, "uniform", plan.entries, _engine) for _ in range(plan.rounds))


def _measured(plan: Plan, distribution: str, entries: int, run: Callable[[Trial, int], float]) -> float:
    with trial(plan) as now:
        keys = now.fill(distribution, entries)
        seconds = run(now, entries)
        if now.rows() != keys:
            raise RuntimeError(f"{now.rows()} rows of {keys} keys arrived")
    return entries / seconds


def _engine(now: Trial, _entries: int) -> float:
    before = time.perf_counter()
    drain(now.engine)
    return time.perf_counter() - before


def _loop(kind: type[Loop]) -> Callable[[Trial, int], float]:
    def run(now: Trial, entries: int) -> float:
        loop = kind(
            now.plan.redis,
            now.plan.database,
            now.engine.keys.logs,
            now.table,
            FlusherSettings().batch_entries_max,
        )
        try:
            loop.prepare()
            before = time.perf_counter()
            loop.drain(entries)
            return time.perf_counter() - before
        finally:
            loop.close()

    return run
