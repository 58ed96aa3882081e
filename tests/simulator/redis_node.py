"""One Redis server: its memory, its file and its clock."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

from simulator.redis_commands import COMMANDS
from simulator.redis_keyspace import Change, Keyspace, Refusal, Unmodelled
from simulator.redis_scripts import OOM, Scripts, grows
from simulator.standins import EPOCH_SECONDS

__all__ = ["Node", "Policy"]

Unit = list[Change]


class Policy:
    """How a server keeps its data.

    Attributes:
        appendfsync: ``always``, ``everysec``, ``no``; ``none`` for no file at all.
        capacity: stream entries that fit into memory.
    """

    def __init__(self, appendfsync: str, capacity: int) -> None:
        self.appendfsync = appendfsync
        self.capacity = capacity


class Node:
    """A running server process. A restart or a promotion makes another one.

    Args:
        name: for the trace.
        identity: its run ID and its replication ID.
        policy: how it keeps its data.
        scripts: runs scripts.
        now: returns the world's time.
        units: the transactions in its file, each whole, with their times.
        torn: the beginning of a transaction that the file also has, after so many whole ones: see ``restarted``.
        clock_ahead_seconds: how far its clock is ahead.

    Attributes:
        alive: whether the process runs.
        forced_full: memory is full whatever is stored.
        confirmed: so many units the replica has for certain: it begins with a copy, and WAIT says of more.
        inherited: so many units it has got from another server, and has perhaps not on its own disk.
        synced: so many units were said to be on disk.
        noted: called with each transaction.
        answered: called with each command and its reply, an error being a ``Refusal``.
    """

    def __init__(
        self,
        name: str,
        identity: tuple[str, str],
        policy: Policy,
        scripts: Scripts,
        now: Callable[[], float],
        *,
        units: Sequence[Unit] = (),
        times: Sequence[float] = (),
        torn: tuple[int, Unit] | None = None,
        clock_ahead_seconds: float = 0.0,
    ) -> None:
        self.name = name
        self.run_id, self.history_id = identity
        self.policy = policy
        self.keyspace = Keyspace(units)
        self.units = list(units)
        self.times = list(times)
        self.torn = torn
        self.clock_ahead_seconds = clock_ahead_seconds
        self.alive = True
        self.forced_full = False
        self.confirmed = len(self.units)
        self.inherited = 0
        self.synced = 0
        self.noted: Callable[[Node, Unit], None] = lambda _node, _unit: None
        self.answered: Callable[[Sequence[bytes], Any], None] = lambda _command, _reply: None
        self._scripts = scripts
        self._known: set[bytes] = set()
        self.now = now

    def milliseconds(self) -> int:
        """Return the server's clock."""
        return int((EPOCH_SECONDS + self.now() + self.clock_ahead_seconds) * 1000)

    def full(self) -> bool:
        """Tell whether memory is full."""
        return self.forced_full or self.keyspace.entries() >= self.policy.capacity

    def about(self) -> dict[str, str]:
        """Return what INFO says."""
        return {
            "redis_version": "7.2.0",
            "redis_mode": "standalone",
            "run_id": self.run_id,
            "role": "master",
            "master_replid": self.history_id,
            "master_repl_offset": "0",
            "connected_slaves": "1",
            "slave0": "ip=127.0.0.1,port=6379,state=online,offset=0,lag=0",
            "loading": "0",
            "aof_enabled": "0" if self.policy.appendfsync == "none" else "1",
            "maxmemory_policy": "noeviction",
        }

    def configuration(self) -> dict[str, str]:
        """Return what CONFIG GET says."""
        none = self.policy.appendfsync == "none"
        return {
            "appendonly": "no" if none else "yes",
            "appendfsync": "everysec" if none else self.policy.appendfsync,
            "no-appendfsync-on-rewrite": "no",
        }

    def on_disk(self) -> int:
        """Return how many units a power loss cannot take."""
        if self.policy.appendfsync == "always":
            return len(self.units)
        if self.policy.appendfsync == "everysec":
            # Once a second, on the second.
            return max(self.synced, bisect_right(self.times, float(int(self.now()))))
        return 0

    def execute(self, arguments: Sequence[bytes]) -> Any:
        """Execute one command.

        Raises:
            Refusal: the reply is an error.
        """
        try:
            reply = self._execute(arguments)
        except Refusal as refusal:
            self.answered(arguments, refusal)
            raise
        self.answered(arguments, reply)
        return reply

    def _execute(self, arguments: Sequence[bytes]) -> Any:
        name = arguments[0].upper()
        self.keyspace.expire(self.now())
        try:
            if name in {b"EVAL", b"EVALSHA"}:
                return self._evaluate(name, arguments)
            command = COMMANDS.get(name)
            if command is None:
                raise Unmodelled(name)
            if grows(name, arguments[1:]) and self.full():
                raise Refusal(OOM)
            return command.run(self, arguments[1:])
        finally:
            self._keep()

    def _evaluate(self, name: bytes, arguments: Sequence[bytes]) -> Any:
        text = arguments[1]
        if name == b"EVALSHA":
            if text not in self._known:
                raise Refusal("NOSCRIPT No matching script. Please use EVAL.")
            text = self._scripts.texts[text]
        else:
            self._known |= {sha for sha, known in self._scripts.texts.items() if known == text}
        count = int(arguments[2])
        return self._scripts.run(
            text, self, list(arguments[3 : 3 + count]), list(arguments[3 + count :]), full=self.full()
        )

    def forget_scripts(self) -> None:
        """SCRIPT FLUSH."""
        self._known.clear()

    def _keep(self) -> None:
        unit, self.keyspace.unit = self.keyspace.unit, []
        if unit:
            self.units.append(unit)
            self.times.append(self.now())
            self.noted(self, unit)

    def restarted(self, cut: int) -> tuple[list[Unit], tuple[int, Unit] | None]:
        """Return what the file gives at a start, when only its first units are left.

        A file that ends inside a transaction: its beginning stays in the file, whatever is written next completes it,
        and the start after that executes it. (*Measured* on Redis 8.2.3.)
        """
        units, torn = self.units[:cut], self.torn
        if torn is None or torn[0] > cut:
            return units, None
        at, beginning = torn
        if len(units) == at:
            return units, torn
        units[at] = [*beginning, *units[at]]
        return units, None
