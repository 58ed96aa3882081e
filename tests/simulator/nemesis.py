"""Whatever happens to whole servers and processes, and when.

Survivable by promise: anything that a server's settings let survive. What a fault may take by them is taken, and the
judge is told.
"""

import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any

from simulator.chance import Chance
from simulator.database import Database
from simulator.judge import Judge
from simulator.loop import Loop, Process
from simulator.redis_keyspace import Refusal, Stream
from simulator.redis_service import Service
from simulator.trace import Trace

__all__ = ["EVENTS", "Nemesis"]

CLOCKS_SECONDS = (0.0, -5.0, 5.0)
ALONE_SECONDS_MAX = 5.0
"""How long a rollback of SQL waits for a commit of dead letters alone, which nothing but they themselves can tell."""
SOON_SECONDS = (0.0, 0.01, 0.3, 2.0)
TWO_PRIMARIES_SECONDS_MAX = 10.0
"""How long an old primary serves its old connections: until whoever has promoted the new one reaches it."""


class Nemesis:
    """Makes things happen.

    Args:
        loop: the world's time.
        chance: decides.
        trace: notes a line.
        service: Redis.
        database: SQL.
        judge: is told what is lost.
        processes: returns the processes that run, flushers and writers.

    Attributes:
        seen: how often each event happened.
    """

    def __init__(
        self,
        loop: Loop,
        chance: Chance,
        trace: Trace,
        *,
        service: Service,
        database: Database,
        judge: Judge,
        processes: Callable[[], list[Process]],
    ) -> None:
        self._loop = loop
        self._chance = chance
        self._service = service
        self._database = database
        self._judge = judge
        self._trace = trace
        self._processes = processes
        self.seen: Counter[str] = Counter()

    def run(self, events: list[str], count: int) -> None:
        """Let so many of these events happen."""
        for _ in range(count):
            self._loop.sleep(0.02 * 3 ** self._chance.below(5))
            event = events[self._chance.below(len(events))]
            self.seen[event] += 1
            EVENTS[event](self)

    def heal(self) -> None:
        """End whatever goes on."""
        service = self._service
        service.retire()
        if service.primary is not None:
            service.primary.forced_full = False
        service.policy.capacity = 1 << 30
        service.replica_cut_at = None

    # Redis

    def _down_for(self, start: Callable[[], None]) -> None:
        seconds = SOON_SECONDS[self._chance.below(len(SOON_SECONDS))]

        def come_back() -> None:
            self._loop.sleep(seconds)
            start()

        self._loop.spawn(Process("world"), "restart", come_back)

    def restart_redis(self) -> None:
        """SIGKILL: what the operating system has, it writes."""
        node = self._service.primary
        if node is None:
            return
        cut = 0 if node.policy.appendfsync == "none" else len(node.units)
        self._down_for(self._service.crash(cut, "killed"))

    def cut_power_of_redis(self) -> None:
        """Its file ends somewhere after its last fsync, perhaps inside a transaction."""
        node = self._service.primary
        if node is None:
            return
        cut = 0
        if node.policy.appendfsync != "none":
            safe = node.on_disk()
            gone = self._chance.below(len(node.units) - safe + 1)
            cut = len(node.units) - gone
        torn = 0
        if cut < len(node.units) and node.policy.appendfsync != "none":
            torn = self._chance.below(len(node.units[cut]))
        self._down_for(self._service.crash(cut, "power loss", torn))

    def cut_replica(self) -> None:
        """Let the replica get nothing more."""
        if self._service.replica_cut_at is None:
            self._service.replica_cut_at = self._loop.now
            self._trace("REDIS the replica is cut off")

    def fail_over(self) -> None:
        """Promote the replica, which may lag, and whose clock may be another."""
        node = self._service.primary
        if node is None:
            return
        cut = self._service.replicated(node)
        opened = [
            at
            for at, unit in enumerate(node.units)
            if any(change[0] == "hset" and b"epoch" in change[2] for change in unit)
        ]
        if opened and self._chance.happens(0.25):
            cut = max(node.confirmed, min(cut, opened[-1]))
        elif self._chance.happens(0.5):
            cut = max(node.confirmed, cut - self._chance.below(8))
        ahead = CLOCKS_SECONDS[self._chance.below(len(CLOCKS_SECONDS))]
        old_lives = self._chance.happens(0.3)
        self._service.fail_over(cut, ahead, old_lives=old_lives)
        if old_lives:
            self._loop.spawn(Process("world"), "retire", self._retire_in_the_end)

    def _retire_in_the_end(self) -> None:
        self._loop.sleep(TWO_PRIMARIES_SECONDS_MAX)
        self._service.retire()

    def retire_old_primaries(self) -> None:
        """Let the old primaries follow the new one."""
        self._service.retire()

    def fill_redis(self) -> None:
        """Let memory be full for a while."""
        node = self._service.primary
        if node is None:
            return
        node.forced_full = True
        seconds = SOON_SECONDS[self._chance.below(len(SOON_SECONDS))]
        self._trace(f"REDIS {node.name} is full for {seconds} s")

        def free() -> None:
            self._loop.sleep(seconds)
            node.forced_full = False

        self._loop.spawn(Process("world"), "free", free)

    def evict(self) -> None:
        """Remove whatever has a time to live."""
        node = self._service.primary
        if node is not None:
            self._trace(f"REDIS {node.name} evicts {list(node.keyspace.expires)}")
            for key in list(node.keyspace.expires):
                node.execute([b"DEL", key])

    def flush_scripts(self) -> None:
        """SCRIPT FLUSH."""
        node = self._service.primary
        if node is not None:
            node.forget_scripts()

    # Foreign hands

    def _groups(self) -> list[tuple[bytes, bytes]]:
        node = self._service.primary
        if node is None:
            return []
        return [
            (key, group)
            for key, value in node.keyspace.values.items()
            if isinstance(value, Stream)
            for group in value.groups
        ]

    def destroy_group(self) -> None:
        """XGROUP DESTROY."""
        self._on_group(lambda key, group: [b"XGROUP", b"DESTROY", key, group])

    def move_group(self) -> None:
        """XGROUP SETID to the end, or to the beginning."""
        where = (b"$", b"0")[self._chance.below(2)]
        self._on_group(lambda key, group: [b"XGROUP", b"SETID", key, group, where])

    def _on_group(self, command: Callable[[bytes, bytes], list[bytes]]) -> None:
        node, groups = self._service.primary, self._groups()
        if node is not None and groups:
            key, group = groups[self._chance.below(len(groups))]
            self._trace(f"BY HAND {command(key, group)!r}")
            with contextlib.suppress(Refusal):  # full
                node.execute(command(key, group))

    # SQL

    def restart_sql(self) -> None:
        """Crash: what is committed stays."""
        if self._database.up:
            self._trace("SQL crashes")
            self._database.stop()
            self._down_for(self._database.start)

    def roll_sql_back(self) -> None:
        """Restore an older backup, or promote a standby that lags."""
        commits = 1 + self._chance.below(12)
        if self._database.constraints is not None and self._chance.happens(0.5):
            self._loop.wait_for(lambda: self._database.commits_since_letters() > 0, ALONE_SECONDS_MAX)
            commits = self._database.commits_since_letters() or commits
        if self._database.up:
            commits = self._database.roll_back_to(commits)
            self._trace(f"SQL goes back by {commits} commits")
            self._judge.sql_rolled_back(commits)
            self._down_for(self._database.start)

    # Processes

    def _some(self) -> Process | None:
        processes = [process for process in self._processes() if process.alive]
        return processes[self._chance.below(len(processes))] if processes else None

    def kill(self) -> None:
        """SIGKILL."""
        process = self._some()
        if process is not None:
            self._trace(f"KILL {process.name}")
            self._loop.kill(process)

    def freeze(self) -> None:
        """SIGSTOP for longer than a lease, perhaps."""
        process = self._some()
        if process is not None:
            seconds = (0.5, 2.0, 6.0, 15.0)[self._chance.below(4)]
            process.frozen_until = self._loop.now + seconds
            self._trace(f"FREEZE {process.name} for {seconds} s")

    def set_clock(self) -> None:
        """Let a process's wall clock jump."""
        process = self._some()
        if process is not None:
            process.clock_ahead_seconds = CLOCKS_SECONDS[self._chance.below(3)] * 100
            self._trace(f"CLOCK {process.name} {process.clock_ahead_seconds:+g} s")


EVENTS: dict[str, Callable[[Nemesis], Any]] = {
    "kill": Nemesis.kill,
    "freeze": Nemesis.freeze,
    "restart redis": Nemesis.restart_redis,
    "power loss": Nemesis.cut_power_of_redis,
    "failover": Nemesis.fail_over,
    "replica cut": Nemesis.cut_replica,
    "old primary follows": Nemesis.retire_old_primaries,
    "redis full": Nemesis.fill_redis,
    "eviction": Nemesis.evict,
    "script flush": Nemesis.flush_scripts,
    "group destroyed": Nemesis.destroy_group,
    "group moved": Nemesis.move_group,
    "sql restart": Nemesis.restart_sql,
    "sql rollback": Nemesis.roll_sql_back,
    "clock": Nemesis.set_clock,
}
