"""What a write costs the service, compared with the least that redis-py can do."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import redis
import redis.asyncio

from writebehind.bench.report import Figure, Target, percentile
from writebehind.bench.trial import BATCH_WRITES, Plan, Trial, trial
from writebehind.bench.workload import record
from writebehind.engine import AsyncWriteBehind
from writebehind.engine.core.partitioning import partition_of

__all__ = ["batched", "concurrent", "hashes_of", "seconds_of", "single", "timed"]

SINGLE_ROUNDS = 15
SINGLE_WRITES_MAX = 1000
BATCHED_ROUNDS = 9
BATCHED_WRITES_MAX = 10_000
SINGLE_TARGET = Target(at_most=1.5)
BATCHED_TARGET = Target(at_least=0.8)
TASKS = 64

_encode = msgspec.msgpack.Encoder().encode


def single(plan: Plan) -> list[Figure]:
    """Measure one ``put`` at a time against a bare HSET of the same texts."""
    writes = min(plan.entries, SINGLE_WRITES_MAX)
    records = [record(key, key) for key in range(writes)]
    ours: list[list[float]] = []
    bare: list[list[float]] = []
    with trial(plan) as now, redis.Redis.from_url(plan.redis) as client:
        put, table = now.engine.put, now.table
        hashes = hashes_of(now, records)
        for _ in range(SINGLE_ROUNDS + 1):
            ours.append(timed(lambda each: put(table, each), records))
            bare.append(timed(lambda each: client.hset(each[0], mapping=each[1]), hashes))
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
        commands = _commands(now, records)

        def put_all() -> None:
            for start in range(0, writes, BATCH_WRITES):
                with now.engine.batch() as batch:
                    for each in records[start : start + BATCH_WRITES]:
                        batch.put(now.table, each)

        def pipeline_all() -> None:
            for start in range(0, writes, BATCH_WRITES):
                pipeline = client.pipeline(transaction=False)
                for log, name, mapping, each in commands[start : start + BATCH_WRITES]:
                    pipeline.hset(name, mapping=mapping)
                    pipeline.xadd(log, {"m": name, "p": _encode((1, 1, "accounts", name, each))})
                pipeline.execute()

        for _ in range(BATCHED_ROUNDS + 1):
            ours.append(writes / seconds_of(put_all))
            bare.append(writes / seconds_of(pipeline_all))
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


def concurrent(plan: Plan) -> list[Figure]:
    """Measure tasks that put one record after another against pipelines of as many writes, batched by hand."""
    return asyncio.run(_concurrent(plan))


async def _concurrent(plan: Plan) -> list[Figure]:
    writes = min(plan.entries, BATCHED_WRITES_MAX)
    records = [record(key, key) for key in range(writes)]
    ours: list[float] = []
    bare: list[float] = []
    with trial(plan) as now:
        engine = AsyncWriteBehind(
            redis=plan.redis, database=now.engine.database, tables=[now.table], namespace=now.engine.keys.namespace
        )
        commands = _commands(now, records)
        async with engine, redis.asyncio.Redis.from_url(plan.redis) as client:

            async def put_all() -> None:
                left = iter(records)

                async def put_some() -> None:
                    for each in left:
                        await engine.put(now.table, each)

                await asyncio.gather(*(put_some() for _ in range(TASKS)))

            async def pipeline_all() -> None:
                for start in range(0, writes, TASKS):
                    pipeline = client.pipeline(transaction=False)
                    for log, name, mapping, each in commands[start : start + TASKS]:
                        pipeline.hset(name, mapping=mapping)
                        pipeline.xadd(log, {"m": name, "p": _encode((1, 1, "accounts", name, each))})
                    await pipeline.execute()

            for _ in range(BATCHED_ROUNDS + 1):
                for work, rates in ((put_all, ours), (pipeline_all, bare)):
                    before = time.perf_counter()
                    await work()
                    rates.append(writes / (time.perf_counter() - before))
    return [
        Figure.compared(
            "async",
            f"puts of {TASKS} tasks",
            "writes/s",
            ours[1:],
            bare[1:],
            target=BATCHED_TARGET,
            note=f"bare pipelines of {TASKS} times HSET + XADD, redis.asyncio",
        )
    ]


def _commands(now: Trial, records: Sequence[dict[str, Any]]) -> list[tuple[str, str, dict[Any, Any], dict[str, Any]]]:
    """Return for each record the stream, the hash, what that holds, and the record."""
    logs = [f"{log}:bare" for log in now.engine.keys.logs]
    return [
        (logs[partition_of(str(each["id"]), len(logs))], name, mapping, each)
        for (name, mapping), each in zip(hashes_of(now, records), records, strict=True)
    ]


def hashes_of(now: Trial, records: Sequence[dict[str, Any]]) -> list[tuple[str, dict[Any, Any]]]:
    """Return for each record the name and the texts of a hash like the engine's own."""
    plan = now.engine.plan_of(now.table)
    hashes = []
    for each in records:
        key_text, _, _, fields = plan.full_record(each)
        name = f"{now.engine.keys.stems[0]}bare:{key_text}"
        mapping = dict(zip(fields[::2], fields[1::2], strict=True))
        hashes.append((name, {":version": "452000000000000-1", ":state": "full", **mapping}))
    return hashes


def timed(write: Callable[[Any], object], items: Sequence[Any]) -> list[float]:
    """Return the microseconds of each write."""
    clock = time.perf_counter
    times = []
    for item in items:
        before = clock()
        write(item)
        times.append((clock() - before) * 1e6)
    return times


def seconds_of(work: Callable[[], None]) -> float:
    """Return how long some work takes."""
    before = time.perf_counter()
    work()
    return time.perf_counter() - before
