"""What becomes of a small Redis whose writer is about twice as fast as SQL."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import redis
import sqlalchemy as sa

from writebehind.bench.report import Figure, Target
from writebehind.bench.trial import Plan, Trial, trial
from writebehind.bench.workload import MADE_AT
from writebehind.engine import BacklogFull, EngineSettings
from writebehind.engine.embedded import EmbeddedRedis
from writebehind.flushers.draining import drain
from writebehind.flushers.inspection import status

__all__ = ["SECONDS_FACTOR", "pressure"]

SECONDS_FACTOR = 2
"""How much longer this part lasts than other loads: the memory has to be full for most of the time."""

MEBIBYTE = 1024 * 1024
MEMORY_MEBIBYTES = 100
SQL_ROWS_PER_SECOND = 3000
WRITES_PER_SECOND = 2 * SQL_ROWS_PER_SECOND
KEYS = 5000
"""Few, because the records of all of them stay in Redis."""

NOTE = "x" * 2000
RETENTION_SECONDS = 1
TICK_SECONDS = 0.02
SAMPLE_SECONDS = 0.25
DRAIN_SECONDS_MAX = 120.0
MEMORY_TARGET = Target(at_most=MEMORY_MEBIBYTES)
LAG_TARGET = Target(at_most=30)
PACE_TARGET = Target(at_least=0.8)


@dataclass(slots=True)
class Seen:
    """What was seen at worst."""

    memory_bytes: int = 0
    lag_seconds: float = 0.0
    held: int = 0


def pressure(plan: Plan) -> list[Figure]:
    """Write into a Redis of 100 MiB beside a flusher that is told to be slow; compare every row in the end."""
    seconds = SECONDS_FACTOR * plan.seconds
    limits: dict[str, str | int] = {"maxmemory": MEMORY_MEBIBYTES * MEBIBYTE, "maxmemory-policy": "noeviction"}
    with EmbeddedRedis(settings=limits) as server:
        small = replace(plan, redis=server.url)
        options = ("--rows-per-second-max", str(SQL_ROWS_PER_SECOND), "--retention-seconds", str(RETENTION_SECONDS))
        patient, note_column = EngineSettings(write_timeout_seconds=60), sa.Column("note", sa.Text)
        with trial(small, note_column, settings=patient) as now, now.process("run", *options):
            with _watched(now) as seen:
                accepted, writes, refused = _write(now, seconds)
            left = drain(now.engine, DRAIN_SECONDS_MAX)
            _compare(now, accepted, left.lost_entries)
    note = f"{seconds:g} s; asked for {WRITES_PER_SECOND:,} writes/s of {len(NOTE):,} bytes; {refused} batches refused"
    part = "pressure"
    return [
        Figure(
            part=part,
            name="memory of a Redis of 100 MiB, most",
            value=seen.memory_bytes / MEBIBYTE,
            unit="MiB",
            target=MEMORY_TARGET,
            note=f"{note}; writes were held at {seen.held} of its samples",
        ),
        Figure(part=part, name="lag, longest", value=seen.lag_seconds, unit="s", target=LAG_TARGET, note=note),
        Figure.compared(
            part,
            "writes accepted",
            "writes/s",
            [writes / seconds],
            [float(SQL_ROWS_PER_SECOND)],
            target=PACE_TARGET,
            note="rows/s that the flusher is allowed; every accepted write is in SQL",
        ),
    ]


def _write(now: Trial, seconds: float) -> tuple[dict[int, int], int, int]:
    """Write at an even rate; return the last number accepted of each key, how many writes were, and what was not."""
    each = round(WRITES_PER_SECOND * TICK_SECONDS)
    accepted: dict[int, int] = {}
    number = writes = refused = 0
    due = time.perf_counter()
    ends = due + seconds
    while time.perf_counter() < ends:
        receipts = {}
        try:
            with now.engine.batch() as batch:
                for _ in range(each):
                    number += 1
                    receipts[number] = batch.put(now.table, _record(number))
        except BacklogFull:
            refused += 1
        taken = [made for made, receipt in receipts.items() if receipt.durability is not None]
        accepted |= {made % KEYS: made for made in taken}
        writes += len(taken)
        # What was held up is not made up for.
        due = max(due + TICK_SECONDS, time.perf_counter() - 1)
        time.sleep(max(0.0, due - time.perf_counter()))
    return accepted, writes, refused


def _record(number: int) -> dict[str, object]:
    return {
        "id": number % KEYS,
        "owner": "owner",
        "email": None,
        "balance": number,
        "score": 0.0,
        "updated_at": MADE_AT,
        "note": NOTE,
    }


@contextmanager
def _watched(now: Trial) -> Iterator[Seen]:
    """Sample the memory and the lag beside the block."""
    seen = Seen()
    finishing = threading.Event()

    def sample() -> None:
        with redis.Redis.from_url(now.plan.redis) as client:
            while not finishing.wait(SAMPLE_SECONDS):
                memory = client.info("memory")
                # What Redis itself holds against the limit: not the append-only file's buffer.
                used = int(memory["used_memory"]) - int(memory["mem_not_counted_for_evict"])
                seen.memory_bytes = max(seen.memory_bytes, used)
                found = status(now.engine)
                seen.lag_seconds = max(seen.lag_seconds, found.lag_seconds)
                seen.held += bool(found.pressed)

    thread = threading.Thread(target=sample, name="bench-sample")
    thread.start()
    try:
        yield seen
    finally:
        finishing.set()
        thread.join()


def _compare(now: Trial, accepted: dict[int, int], lost: int) -> None:
    with now.engine.database.connect() as connection:
        rows = {row.id: row.balance for row in connection.execute(sa.select(now.table.c.id, now.table.c.balance))}
    if rows != accepted or lost:
        wrong = sum(rows.get(key) != number for key, number in accepted.items())
        raise RuntimeError(f"{wrong} of {len(accepted)} rows are not as they were written last; {lost} entries lost")
