"""What entries that SQL refuses cost the others: a drain with some of them against one without."""

import random
import time

import sqlalchemy as sa

from writebehind.bench.report import Figure, Target
from writebehind.bench.trial import BATCH_WRITES, Plan, Trial, trial
from writebehind.bench.workload import record
from writebehind.engine.adapters.control_tables import dead_letters
from writebehind.flushers.draining import drain

__all__ = ["poison"]

SHARES = {0.0001: Target(at_least=0.85), 0.01: Target(at_least=0.4)}
"""Of the entries, how many are refused, and what that may cost."""


def poison(plan: Plan) -> list[Figure]:
    """Measure drains with refused entries at random, by a CHECK constraint, interleaved with drains of clean data."""
    rates: dict[float, list[float]] = {0.0: [], **{share: [] for share in SHARES}}
    for number in range(plan.rounds):
        for share, found in rates.items():
            found.append(_drained(plan, share, plan.seed + number))
    return [
        Figure.compared(
            "poison",
            f"drain of {plan.entries:,}, {share:.2%} refused",
            "entries/s",
            rates[share],
            rates[0.0],
            target=target,
            note="the same without refused entries",
        )
        for share, target in SHARES.items()
    ]


def _drained(plan: Plan, share: float, seed: int) -> float:
    with trial(plan, sa.CheckConstraint("balance >= 0")) as now:
        refused = _fill(now, share, seed)
        before = time.perf_counter()
        drain(now.engine)
        seconds = time.perf_counter() - before
        _check(now, refused)
    return plan.entries / seconds


def _check(now: Trial, refused: set[int]) -> None:
    """Raise unless exactly these keys have a dead letter, and every other one has the row that was written."""
    ours = dead_letters.c.namespace == now.engine.keys.namespace
    with now.engine.database.connect() as connection:
        set_aside = {int(key) for key in connection.execute(sa.select(dead_letters.c.record_key).where(ours)).scalars()}
        rows = [tuple(row) for row in connection.execute(sa.select(now.table))]
    names = now.table.columns.keys()
    wanted = {key: tuple(record(key, key)[name] for name in names) for key in set(range(now.plan.entries)) - refused}
    if set_aside != refused or {row[0]: row for row in rows} != wanted:
        raise RuntimeError(
            f"{len(rows)} rows and {len(set_aside)} dead letters of {now.plan.entries} are not the right ones"
        )


def _fill(now: Trial, share: float, seed: int) -> set[int]:
    chance = random.Random(seed)
    refused = set(chance.sample(range(now.plan.entries), round(share * now.plan.entries)))
    for start in range(0, now.plan.entries, BATCH_WRITES):
        with now.engine.batch() as batch:
            for key in range(start, min(start + BATCH_WRITES, now.plan.entries)):
                batch.put(now.table, record(key, key) | ({"balance": -1} if key in refused else {}))
    return refused
