"""How long after its put a row is committed in SQL, under half the load that one flusher can bear."""

import threading
import time
from collections import deque

import sqlalchemy as sa

from writebehind.bench.report import Figure, percentile
from writebehind.bench.trial import Plan, Trial, trial
from writebehind.bench.workload import record
from writebehind.engine.adapters.control_tables import partitions
from writebehind.engine.core.positions import EntryID
from writebehind.engine.receipts import Receipt
from writebehind.flushers.inspection import status

__all__ = ["lag"]

TICK_SECONDS = 0.01
WARM_SECONDS = 1.0
POLL_SECONDS = 0.001
WAIT_SECONDS_MAX = 60.0


def lag(plan: Plan, rate: float) -> list[Figure]:
    """Measure with a flusher in a process of its own.

    Args:
        plan: what with.
        rate: writes per second to aim at.
    """
    with trial(plan) as now, now.process("run"):
        _await_flusher(now)
        watch = Watch(now)
        watch.start()
        try:
            written = _write(now, watch, rate, plan.seconds)
        finally:
            watch.finish()
    note = f"{written / plan.seconds:,.0f} writes/s of {rate:,.0f} asked for; {len(watch.lags):,} samples"
    milliseconds = {share: 1000 * percentile(watch.lags, share) for share in (0.5, 0.99)}
    return [
        Figure(part="lag", name=f"put to commit, p{100 * share:g}", value=value, unit="ms", note=note)
        for share, value in milliseconds.items()
    ]


class Watch(threading.Thread):
    """Looks at the offsets in SQL all the time, and notes when they pass the receipts that it was given."""

    def __init__(self, now: Trial) -> None:
        super().__init__(name="bench-watch")
        self.lags: list[float] = []
        self._trial = now
        self._waiting: deque[tuple[float, int, EntryID]] = deque()
        self._finishing = threading.Event()

    def expect(self, put_at: float, receipt: Receipt) -> None:
        """Note when the offset passes this receipt, in seconds since ``put_at`` on the performance counter."""
        self._waiting.append((put_at, receipt.partition, receipt.entry_id))

    def run(self) -> None:
        """Look until everything expected has come, or has not for too long."""
        namespace = self._trial.engine.keys.namespace
        query = sa.select(partitions.c.partition, partitions.c.epoch, partitions.c.sequence).where(
            partitions.c.namespace == namespace
        )
        deadline: float | None = None
        with self._trial.engine.database.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            while True:
                offsets = {number: EntryID(epoch, sequence) for number, epoch, sequence in connection.execute(query)}
                now = time.perf_counter()
                for _ in range(len(self._waiting)):
                    put_at, partition, entry_id = expected = self._waiting.popleft()
                    if offsets[partition] >= entry_id:
                        self.lags.append(now - put_at)
                    else:
                        self._waiting.append(expected)
                if self._finishing.is_set():
                    deadline = deadline or now + WAIT_SECONDS_MAX
                    if not self._waiting or now > deadline:
                        return
                time.sleep(POLL_SECONDS)

    def finish(self) -> None:
        """Wait for the last one."""
        self._finishing.set()
        self.join()
        if self._waiting:
            raise RuntimeError(f"{len(self._waiting)} writes did not arrive in SQL")


def _await_flusher(now: Trial) -> None:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while any(partition.holder is None for partition in status(now.engine).partitions):
        if time.monotonic() > deadline:
            raise RuntimeError("the flusher did not start")
        time.sleep(TICK_SECONDS)


def _write(now: Trial, watch: Watch, rate: float, seconds: float) -> int:
    """Write at an even rate, a batch each tick; return how many writes counted. One write of each batch is watched."""
    each = max(1, round(rate * TICK_SECONDS))
    began = time.perf_counter() + WARM_SECONDS
    ends = began + seconds
    due = time.perf_counter()
    number = written = 0
    while due < ends:
        with now.engine.batch() as batch:
            for _ in range(each - 1):
                number += 1
                batch.put(now.table, record(number % now.plan.entries, number))
            number += 1
            watched = batch.put(now.table, record(number % now.plan.entries, number))
            put_at = time.perf_counter()
        if put_at >= began:
            watch.expect(put_at, watched)
            written += each
        due += TICK_SECONDS
        pause = due - time.perf_counter()
        if pause > 0:
            time.sleep(pause)
        elif time.perf_counter() >= ends:
            break
    return written
