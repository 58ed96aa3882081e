"""One history: a world is drawn, things happen in it, it is left alone, and it is judged."""

import gc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from simulator.adapters import Engine
from simulator.chance import Chance
from simulator.constraints import Constraints
from simulator.database import Database
from simulator.faults import STALLS_SECONDS, Fault, Faults
from simulator.judge import Judge
from simulator.loop import Loop, Process, Task
from simulator.nemesis import EVENTS, Nemesis
from simulator.records import Violation
from simulator.redis_node import Policy
from simulator.redis_scripts import Scripts
from simulator.redis_service import Pool, Service
from simulator.schema import TABLES
from simulator.standins import Event, bind
from simulator.substitution import RedisTarget
from simulator.theme import THEMES, Theme
from simulator.trace import Trace
from simulator.workload import Application
from writebehind.engine import Backpressure, Durability, EngineSettings, WriteBehind
from writebehind.engine.adapters import scripts as product_scripts
from writebehind.engine.core.partitioning import partition_of
from writebehind.flushers import Flusher, FlusherSettings

__all__ = ["SCRIPTS", "History", "run"]

EFFECTS_MAX = 20_000
ACTIVE_SECONDS_MAX = 150.0
QUIET_SECONDS_MAX = 40.0
SHORT_TTL_SECONDS = 0.3
RESOLVING_MAX = 20
"""How often the operator resolves what there is: what is resolved lets others be tried, which SQL may refuse."""
RESOLVED_SECONDS = 2.0
BEGIN_SECONDS = 0.5
"""How long a supervisor takes to begin a process in place of one that was killed."""

SCRIPTS = Scripts(
    {script.sha: script.text for script in vars(product_scripts).values() if isinstance(script, product_scripts.Script)}
)


@dataclass(kw_only=True)
class History:
    """What became of it.

    Attributes:
        seed: what it was drawn from.
        decisions: what was decided; gives the same history again.
        violation: what must not have been, or None.
        effects: how many there were.
        happened: how often each fault and event occurred, and how often letters were made.
        trace: what happened, where that was wanted.
        facts: what it was like.
    """

    seed: int
    decisions: list[int]
    violation: Violation | None
    effects: int
    happened: Counter[str]
    trace: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def run(
    seed: int,
    replay: Sequence[int] | None = None,
    *,
    trace: bool = False,
    theme: Theme | None = None,
    answered: Callable[[Sequence[bytes], Any], None] | None = None,
) -> History:
    """Run one history; inside ``substituted``.

    Args:
        seed: where its decisions come from.
        replay: decisions to be made instead.
        trace: whether to keep what happens.
        theme: what is part of it in any case; one of ``THEMES`` where not given.
        answered: called with each command that a Redis has executed, and its reply.
    """
    chance = Chance(seed, replay)
    world = _World(seed, chance, theme or THEMES[chance.below(len(THEMES))], trace=trace)
    if answered is not None:
        world.service.answered = answered
    violation: Violation | None = None
    collects = gc.isenabled()
    gc.disable()  # greenlets that it would end at some other moment
    try:
        world.live()
    except Violation as seen:
        violation = seen
    finally:
        world.loop.close()
        if collects:
            gc.enable()
    return History(
        seed=seed,
        decisions=chance.decisions,
        violation=violation,
        effects=world.loop.effects,
        happened=world.faults.seen + world.nemesis.seen + world.judge.seen,
        trace=world.trace.lines,
        facts=world.facts,
    )


class _World:
    def __init__(self, seed: int, chance: Chance, theme: Theme, *, trace: bool) -> None:
        self.chance = chance
        self.loop = Loop(chance, (0.0, 0.1, 0.4)[chance.below(3)], EFFECTS_MAX)
        bind(self.loop, seed)
        self.trace = Trace(lambda: self.loop.now, on=trace)
        share = 0.0 if theme.only else 0.4
        kinds = [fault for fault in Fault if fault in theme.faults or (fault.value and chance.happens(share))]
        self.faults = Faults(chance, chance.below(13), (0.01, 0.03, 0.1)[chance.below(3)], kinds)
        share = 0.0 if theme.only else 0.3
        self.events = [name for name in EVENTS if name in theme.events or chance.happens(share)]
        self.count = chance.below(8) if self.events else 0
        appendfsync = theme.appendfsync or ("always", "everysec", "no", "none")[chance.pick((5, 6, 1, 1))]
        policy = Policy(appendfsync, (10**6, 12)[chance.pick((9, 1))])
        self.service = Service(self.loop, self.faults, policy, SCRIPTS, self.trace)
        self.service.replica_lag_seconds = (0.0, 0.05, 1.0)[2 if theme.replica_lags else chance.below(3)]
        self.refuses = theme.refuses or chance.happens(0.25)
        self.reads = theme.reads or chance.happens(0.0 if theme.only else 0.25)
        self.reads_several = self.reads or not theme.only
        self.partitions = chance.up_to(1, 3)
        self.ttl_seconds = float(chance.up_to(1, 4))
        self.flusher_settings = FlusherSettings(
            linger_seconds=(0.0, 0.05)[chance.below(2)],
            batch_entries_max=(1000, 1, 3, 7)[chance.below(4)],
            lease_ttl_seconds=self.ttl_seconds,
            retention_seconds=(60.0, 0.0, 1.0)[chance.pick((3, 1, 2))],
            retry_seconds_max=1.0,
            halt_retry_seconds=1.0,
            foreign_key_seconds=(2.0, 0.0, 10.0)[chance.below(3) if self.refuses else 0],
        )
        self.engine_settings = EngineSettings(
            redis_timeout_seconds=1.0,
            write_timeout_seconds=4.0,
            read_timeout_seconds=3.0,
            record_ttl_seconds=SHORT_TTL_SECONDS if theme.reads else (3600.0, None, SHORT_TTL_SECONDS)[chance.below(3)],
            negative_ttl_seconds=(30.0, None, SHORT_TTL_SECONDS)[chance.below(3)],
            load_lease_seconds=(1.0, SHORT_TTL_SECONDS)[chance.below(2)],
            stale_seconds=(0.0, 0.5)[chance.below(2)],
            refresh_ahead_share=(0.0, 0.5)[chance.below(2)],
            call_entries_max=(500, 2)[chance.below(2)],
            retained_seconds=(30.0, 0.5)[chance.pick((3, 1))],
            retained_bytes_max=(64 * 1024 * 1024, 0, 2000)[1 if theme.forgets else chance.pick((6, 1, 1))],
            backlog_entries_max=(1_000_000, 1, 4)[chance.pick((3, 1, 1))],
            backlog_seconds_max=(None, 0.3)[chance.pick((4, 1))],
            backpressure=list(Backpressure)[chance.below(3)],
        )
        self.database = Database(
            self.loop,
            self.faults,
            self.trace,
            partitions=self.partitions,
            tables=TABLES,
            idle_seconds=0.8 * self.ttl_seconds,
            constraints=Constraints(asked_first=chance.happens(0.5), deferred=chance.happens(0.25))
            if self.refuses
            else None,
        )
        self.database.keeps = "sql rollback" in self.events
        self.levels = [Durability.ACCEPTED]
        if chance.happens(0.3):
            self.levels += [Durability.PERSISTED]
            if policy.appendfsync in {"always", "everysec"}:
                self.levels += [Durability.FSYNCED, Durability.REPLICATED]
        self.keys_each = chance.up_to(1, 3)
        self.operations = chance.up_to(1, 15)
        self.numbers = 0
        self.applications: list[Task] = []
        self.flushers: dict[Process, Event] = {}
        self.writers: list[Process] = []
        self.readers: list[Process] = []
        self.begun = 0
        self.ending = False
        self.keys = self._app(Process("nobody")).keys
        self.judge = Judge(self.loop, self.keys, self.service, self.database, self.trace)
        self.nemesis = Nemesis(
            self.loop,
            chance,
            self.trace,
            service=self.service,
            database=self.database,
            judge=self.judge,
            processes=lambda: [*self.flushers, *self.writers, *self.readers],
        )
        self.facts: dict[str, Any] = {
            "partitions": self.partitions,
            "redis": policy.appendfsync,
            "full at": policy.capacity,
            "refuses": self.database.constraints,
            "expires": SHORT_TTL_SECONDS
            in {self.engine_settings.record_ttl_seconds, self.engine_settings.negative_ttl_seconds},
            "faults": [fault.name for fault in kinds],
            "events": self.events if self.count else [],
            "flusher": self.flusher_settings,
            "backlog": (
                self.engine_settings.backlog_entries_max,
                self.engine_settings.backlog_seconds_max,
                self.engine_settings.backpressure.value,
            ),
        }

    def _app(self, process: Process) -> WriteBehind:
        target: Any = RedisTarget(self.service, Pool(self.service, process, self.engine_settings.redis_timeout_seconds))
        engine: Any = Engine(self.database, process)
        return WriteBehind(
            redis=target,
            database=engine,
            tables=[declared.table for declared in TABLES.values()],
            namespace="s",
            partitions=self.partitions,
            settings=self.engine_settings,
            on_data_loss=lambda loss: self.judge.told(process, loss),
            on_dead_letter=self.judge.told_letter if process.name != "nobody" else None,
        )

    def _number(self) -> int:
        self.numbers += 1
        return self.numbers

    # Processes

    def _begin_flusher(self, after: float = 0.0) -> None:
        self.begun += 1
        process = self._process(f"flusher-{self.begun}")
        stopping = self.flushers[process] = Event()

        def serve() -> None:
            self.loop.sleep(after)
            stop: Any = stopping
            flusher = Flusher(self._app(process), self.flusher_settings, stopping=stop)
            flusher.run()

        self._watched(self.loop.spawn(process, process.name, serve))

    def _begin_writer(self, operations: int, after: float = 0.0) -> None:
        self.begun += 1
        process = self._process(f"writer-{self.begun}")
        self.writers.append(process)

        def write() -> None:
            self.loop.sleep(after)
            self._application(process).run(operations)

        self.applications.append(self._watched(self.loop.spawn(process, process.name, write)))

    def _begin_reader(self, operations: int) -> None:
        """Begin one that only reads; when it is killed, others go on."""
        self.begun += 1
        process = Process(f"reader-{self.begun}")
        self.readers.append(process)
        application = self._application(process)
        task = self.loop.spawn(process, process.name, lambda: application.run_reading(operations))
        self.applications.append(self._watched(task))

    def _application(self, process: Process) -> Application:
        return Application(
            self._app(process),
            process,
            self.loop,
            self.chance,
            self.judge,
            keys=self.keys_each,
            levels=self.levels,
            numbers=self._number,
            refuses=self.refuses,
            reads_several=self.reads_several,
            trace=self.trace,
        )

    def _watched(self, task: Task) -> Task:
        task.failed = self._failed
        return task

    def _failed(self, task: Task, error: BaseException) -> None:
        self.judge.violated("errors", f"{task.name} ended with {type(error).__name__}: {error}")

    def _process(self, name: str) -> Process:
        """Make a process that a supervisor begins anew when it is killed."""
        process = Process(name)
        process.at_death.append(lambda: self._replace(process))
        return process

    def _replace(self, process: Process) -> None:
        if process in self.flushers:
            self._begin_flusher(BEGIN_SECONDS)
        elif not self.ending:
            self._begin_writer(2, BEGIN_SECONDS)

    # Life

    def live(self) -> None:
        """Let everything happen, then let it be quiet, then judge."""
        for _ in range(self.chance.up_to(1, 2)):
            self._begin_flusher()
        for _ in range(self.chance.up_to(1, 3)):
            self._begin_writer(self.operations)
        for _ in range(self.chance.up_to(1, 2) if self.reads else 0):
            self._begin_reader(self.operations)
        world = Process("world")
        nemesis = self.loop.spawn(world, "nemesis", lambda: self.nemesis.run(self.events, self.count))
        self._watched(nemesis)

        def over() -> bool:
            return nemesis.ended and all(task.ended for task in self.applications)

        if not self.loop.run(over, ACTIVE_SECONDS_MAX):
            raise self.judge.violated("liveness", f"writers do not come to an end: {self._waiting()}")
        self._quieten()
        self._read_everything()
        self.judge.conclude()

    def _quieten(self) -> None:
        self.trace("QUIET from now on")
        self.ending = True
        self.faults.end()
        self.nemesis.heal()
        for process in [*self.flushers, *self.writers, *self.readers]:
            process.frozen_until = min(process.frozen_until, self.loop.now + 0.5)
        self.loop.run(lambda: False, max(STALLS_SECONDS))  # what is late arrives
        self.nemesis.heal()

        self._drain()
        # What was left undone after the last commits.
        self.loop.run(lambda: False, self.ttl_seconds + 3.0)
        self._resolve_everything()
        self._write_once_more()
        self._drain()
        self._resolve_everything()
        for stopping in self.flushers.values():
            stopping.set()

        def stopped() -> bool:
            return not any(task.process in self.flushers and task.process.alive for task in self.loop.tasks)

        if not self.loop.run(stopped, 60.0):
            raise self.judge.violated("liveness", f"flushers do not stop: {self._waiting()}")

    def _drain(self) -> None:
        def drained() -> bool:
            return (
                self.service.primary is not None
                and self.database.up
                and not any(self.judge.waiting(number) for number in range(self.partitions))
            )

        if not self.loop.run(drained, QUIET_SECONDS_MAX):
            left = {number: self.judge.waiting(number) for number in range(self.partitions)}
            halted = [row.halted for row in self.database.state.partitions.values()]
            raise self.judge.violated("liveness", f"not in SQL in the end: {left}, halted {halted}")

    def _resolve_everything(self) -> None:
        """Let an operator resolve whatever SQL has refused; what waited then goes on by itself."""
        operator = Process("operator")
        application = self._application(operator)
        for attempt in range(RESOLVING_MAX):
            if not self.database.state.letters:
                return

            def resolve(*, given_up: bool = attempt > RESOLVING_MAX // 2) -> None:
                application.resolve_all(given_up=given_up)

            task = self._watched(self.loop.spawn(operator, "operator", resolve))
            if not self.loop.run(partial(_has_ended, task), 60.0):
                raise self.judge.violated("liveness", "resolving does not end")
            self._drain()
            self.loop.run(lambda: False, RESOLVED_SECONDS)
        raise self.judge.violated("stuck", f"letters cannot be resolved: {self.judge.unresolved()}")

    def _write_once_more(self) -> None:
        """Write to each partition: where SQL has everything nobody is held for a backlog."""
        writer = Process("last writer")
        application = self._application(writer)
        homes = {partition_of(str(key), self.partitions): key for key in range(1, self.keys_each + 1)}

        def write() -> None:
            for key in homes.values():
                if not application.increment("accounts", key):
                    raise self.judge.violated("held", f"account {key} cannot be written although SQL has everything")

        task = self._watched(self.loop.spawn(writer, "last writer", write))
        if not self.loop.run(lambda: task.ended, 60.0):
            raise self.judge.violated("liveness", "writing does not end")

    def _read_everything(self) -> None:
        reader = Process("reader")
        application = self._application(reader)

        def read() -> None:
            for table in ("accounts", "counters", "orders"):
                for key in range(1, self.keys_each + 1):
                    if not application.get(table, key):
                        raise self.judge.violated("reads", f"{table} {key} cannot be read although all is quiet")

        task = self._watched(self.loop.spawn(reader, "reader", read))
        if not self.loop.run(lambda: task.ended, 60.0):
            raise self.judge.violated("liveness", "reading does not end")

    def _waiting(self) -> list[str]:
        return [f"{task.name} until {task.wake_at:.1f}" for task in self.loop.tasks]


def _has_ended(task: Task) -> bool:
    return task.ended
