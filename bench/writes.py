"""What a write costs the service, compared with the least that redis-py can do."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import redis

from writebehind.bench.report import Figure, Target, percentile
from writebehind.bench.trial import BATCH_WRITES, Plan, Trial, trial
from writebehind.bench.workload import record
from writebehind.engine.core.partitioning import partition_of

__all__ = ["batched", "single"]

SINGLE_ROUNDS = 15
SINGLE_WRITES_MAX = 1000
BATCHED_ROUNDS = 9
BATCHED_WRITES_MAX = 10_000
SINGLE_TARGET = Target(at_most=1.5)
BATCHED_TARGET = Target(at_least=0.8)

_encode = msgspec.msgpack.Encoder().encode


def single(plan: Plan) -> list[Figure]:
    """Measure one ``put`` at a time against a bare HSET of the same texts."""
    writes = min(plan.entries, SINGLE_WRITES_MAX)
    records = [record(key, key) for key in range(writes)]
    ours: list[list[float]] = []
    bare: list[list[float]] = []
    with trial(plan) as now, redis.Redis.from_url(plan.redis) as client:
        put, table = now.engine.put, now.table
        hashes = _hashes(now, records)
        for _ in range(SINGLE_ROUNDS + 1):
            ours.append(_timed(lambda each: put(table, each), records))
            bare.append(_timed(lambda each: client.hset(each[0], mapping=each[1]), hashes))
    figures = []
    for share, name, target in ((0.5, "p50", SINGLE_TARGET), (0.99, "p99", None)):
        # The first round warms up.
        values, baselines = ([percentile(times, share) for times in series[1:]] for series in (ours, bare))
        figures.append(
            Figure.compared("put", f"one put, {name}", "us", values, baselines, target=target, note="bare HSET")
        )
    return figures


def batched(plan: Plan) -> list[Figure]:
    """Measure batches against a bare pipeline of HSET and XADD, whose payload is encoded too."""
    writes = min(plan.entries, BATCHED_WRITES_MAX)
    records = [record(key, key) for key in range(writes)]
    ours: list[float] = []
    bare: list[float] = []
    with trial(plan) as now, redis.Redis.from_url(plan.redis) as client:
        hashes = _hashes(now, records)
        logs = [f"{log}:bare" for log in now.engine.keys.logs]
        placed = [partition_of(str(each["id"]), len(logs)) for each in records]

        def put_all() -> None:
            for start in range(0, writes, BATCH_WRITES):
                with now.engine.batch() as batch:
                    for each in records[start : start + BATCH_WRITES]:
                        batch.put(now.table, each)

        def pipeline_all() -> None:
            for start in range(0, writes, BATCH_WRITES):
                pipeline = client.pipeline(transaction=False)
                for index in range(start, min(start + BATCH_WRITES, writes)):
                    name, mapping = hashes[index]
                    payload = _encode((1, 1, "accounts", name, records[index]))
                    pipeline.hset(name, mapping=mapping)
                    pipeline.xadd(logs[placed[index]], {"m": name, "p": payload})
                pipeline.execute()

        for _ in range(BATCHED_ROUNDS + 1):
            ours.append(writes / _seconds(put_all))
            bare.append(writes / _seconds(pipeline_all))
    return [
        Figure.compared(
            "batch",
            f"batches of {BATCH_WRITES:,} puts",
            "writes/s",
            ours[1:],
            bare[1:],
            target=BATCHED_TARGET,
            note="bare pipeline of HSET + XADD, redis-py",
        )
    ]


def _hashes(now: Trial, records: Sequence[dict[str, Any]]) -> list[tuple[str, dict[Any, Any]]]:
    """Return for each record the name and the texts of a hash like the engine's own."""
    plan = now.engine.plan_of(now.table)
    hashes = []
    for each in records:
        key_text, _, _, fields = plan.full_record(each)
        name = f"{now.engine.keys.stems[0]}bare:{key_text}"
        mapping = dict(zip(fields[::2], fields[1::2], strict=True))
        hashes.append((name, {":version": "452000000000000-1", ":state": "full", **mapping}))
    return hashes


def _timed(write: Callable[[Any], object], items: Sequence[Any]) -> list[float]:
    """Return the microseconds of each write."""
    clock = time.perf_counter
    times = []
    for item in items:
        before = clock()
        write(item)
        times.append((clock() - before) * 1e6)
    return times


def _seconds(work: Callable[[], None]) -> float:
    before = time.perf_counter()
    work()
    return time.perf_counter() - before
