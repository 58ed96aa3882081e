"""What a read of a record costs that is in Redis, compared with the least that redis-py can do."""

import redis

from writebehind.bench.report import Figure, Target, percentile
from writebehind.bench.trial import Plan, trial
from writebehind.bench.workload import record
from writebehind.bench.writes import hashes_of, seconds_of, timed

__all__ = ["many", "one"]

ROUNDS = 15
READS_MAX = 1000
KEYS_TOGETHER = 100
ONE_TARGET = Target(at_most=1.4)
MANY_TARGET = Target(at_least=0.7)


def one(plan: Plan) -> list[Figure]:
    """Measure one ``get`` at a time, decoding included, against a bare HGETALL of the same hash."""
    reads = min(plan.entries, READS_MAX)
    records = [record(key, key) for key in range(reads)]
    ours: list[list[float]] = []
    bare: list[list[float]] = []
    with trial(plan) as now, redis.Redis.from_url(plan.redis) as client:
        get, table = now.engine.get, now.table
        for each in records:
            now.engine.put(table, each)
        names = []
        for name, mapping in hashes_of(now, records):
            client.hset(name, mapping=mapping)
            names.append(name)
        for _ in range(ROUNDS + 1):
            ours.append(timed(lambda key: get(table, key), range(reads)))
            bare.append(timed(client.hgetall, names))
    figures = []
    for share, name, target in ((0.5, "p50", ONE_TARGET), (0.99, "p99", None)):
        # The first round warms up.
        values, baselines = ([percentile(times, share) for times in series[1:]] for series in (ours, bare))
        figures.append(
            Figure.compared("get", f"one get, {name}", "us", values, baselines, target=target, note="bare HGETALL")
        )
    return figures


def many(plan: Plan) -> list[Figure]:
    """Measure ``get_many`` of 100 keys against a bare pipeline of as many HGETALL."""
    reads = min(plan.entries, READS_MAX) // KEYS_TOGETHER * KEYS_TOGETHER
    records = [record(key, key) for key in range(reads)]
    ours: list[float] = []
    bare: list[float] = []
    with trial(plan) as now, redis.Redis.from_url(plan.redis) as client:
        with now.engine.batch() as batch:
            for each in records:
                batch.put(now.table, each)
        names = []
        for name, mapping in hashes_of(now, records):
            client.hset(name, mapping=mapping)
            names.append(name)

        def get_all() -> None:
            for start in range(0, reads, KEYS_TOGETHER):
                now.engine.get_many(now.table, range(start, start + KEYS_TOGETHER))

        def pipeline_all() -> None:
            for start in range(0, reads, KEYS_TOGETHER):
                pipeline = client.pipeline(transaction=False)
                for name in names[start : start + KEYS_TOGETHER]:
                    pipeline.hgetall(name)
                pipeline.execute()

        for _ in range(ROUNDS + 1):
            ours.append(reads / seconds_of(get_all))
            bare.append(reads / seconds_of(pipeline_all))
    return [
        Figure.compared(
            "get",
            f"get_many of {KEYS_TOGETHER}",
            "records/s",
            ours[1:],
            bare[1:],
            target=MANY_TARGET,
            note="bare pipeline of HGETALL, redis-py",
        )
    ]
