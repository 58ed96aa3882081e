"""Redis as its clients see it: connections to whichever server is the primary, and what becomes of the primary."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import redis
from hiredis import Reader
from redis._parsers.base import BaseParser

from simulator.faults import Fault, Faults
from simulator.loop import Loop, Process
from simulator.redis_keyspace import Change, Refusal
from simulator.redis_node import Node, Policy, Unit
from simulator.redis_scripts import Scripts
from simulator.standins import VirtualSecrets
from simulator.trace import Trace
from writebehind.engine.adapters import scripts as product_scripts
from writebehind.engine.core.payload import Op, PayloadError, decode

__all__ = ["Connection", "Pool", "Service"]

FAULTS = (
    Fault.UNANSWERED,
    Fault.UNSENT,
    Fault.LATE,
    Fault.SPLIT,
    Fault.STALL,
    Fault.KILL_BEFORE,
    Fault.KILL_AFTER,
    Fault.FREEZE_BEFORE,
    Fault.FREEZE_AFTER,
)
LATE_SECONDS = 3.0
SCRIPT_NAMES = {
    text: script.name
    for script in vars(product_scripts).values()
    if isinstance(script, product_scripts.Script)
    for text in (script.sha, script.text)
}


class Service:
    """A primary, with a replica behind it.

    Args:
        loop: the world's time.
        faults: what goes wrong at effects.
        policy: how the servers keep their data.
        scripts: runs scripts.
        trace: notes a line.

    Attributes:
        primary: the server that new connections reach; None while there is none.
        others: servers that were the primary and still run: their old connections go on.
        replica_lag_seconds: how far behind the replica is.
        replica_cut_at: since when it gets nothing; None where it does.
        noted: called with each server and transaction.
        answered: called with each command and its reply.
        rolled_back: called with a server and the transactions that its successor does not have.
    """

    def __init__(self, loop: Loop, faults: Faults, policy: Policy, scripts: Scripts, trace: Trace) -> None:
        self.loop = loop
        self.faults = faults
        self.policy = policy
        self.trace = trace
        self.replica_lag_seconds = 0.0
        self.replica_cut_at: float | None = None
        self.noted: Callable[[Node, Unit], None] = lambda _node, _unit: None
        self.answered: Callable[[Sequence[bytes], Any], None] = lambda _command, _reply: None
        self.rolled_back: Callable[[Node, Sequence[Unit], str], None] = lambda _node, _units, _how: None
        self.others: list[Node] = []
        self._scripts = scripts
        self._secrets = VirtualSecrets()
        self._count = 0
        self.primary: Node | None = self._node((), (), None, 0.0)

    def _node(
        self,
        units: Sequence[Unit],
        times: Sequence[float],
        torn: tuple[int, Unit] | None,
        ahead: float,
    ) -> Node:
        self._count += 1
        node = Node(
            f"redis-{self._count}",
            (self._secrets.token_hex(20), self._secrets.token_hex(20)),
            self.policy,
            self._scripts,
            lambda: self.loop.now,
            units=units,
            times=times,
            torn=torn,
            clock_ahead_seconds=ahead,
        )
        node.noted = self._note
        node.answered = self._answer
        return node

    def _note(self, node: Node, unit: Unit) -> None:
        self.noted(node, unit)

    def _answer(self, command: Sequence[bytes], reply: Any) -> None:
        self.answered(command, reply)

    def replicated(self, node: Node) -> int:
        """Return how many of a server's units the replica has; one that is promoted gets no more."""
        if node is not self.primary:
            return node.confirmed
        at = self.loop.now if self.replica_cut_at is None else min(self.replica_cut_at, self.loop.now)
        return max(node.confirmed, sum(each <= at - self.replica_lag_seconds for each in node.times))

    def crash(self, cut: int, how: str, torn: int = 0) -> Callable[[], None]:
        """End the primary's process; return what starts it again with the first units of its file.

        Args:
            cut: how many units its file has left.
            how: for the trace, and for whoever judges the loss.
            torn: how many changes of the next unit the file has besides.
        """
        node = self.primary
        if node is None:
            return lambda: None
        node.alive = False
        self.primary = None
        self.trace(f"REDIS {node.name} {how}: {len(node.units) - cut} of {len(node.units)} transactions are gone")
        # Where those that another server has fsynced were never fsynced here, it is the failover that has lost them.
        self.rolled_back(node, node.units[cut : node.inherited], "failover")
        self.rolled_back(node, node.units[max(cut, node.inherited) :], how)
        units, left = node.restarted(cut)
        if torn and cut < len(node.units) and left is None:
            left = (cut, node.units[cut][:torn])
        comes_back = _appeared(node.units[:cut], units)
        times = node.times[:cut]

        def start() -> None:
            self.primary = self._node(units, times, left, node.clock_ahead_seconds)
            self.replica_cut_at = None
            self.trace(f"REDIS {self.primary.name} starts on the data of {node.name}; ghosts: {comes_back}")

        return start

    def fail_over(self, cut: int, ahead: float, *, old_lives: bool) -> None:
        """Promote the replica, which has so many of the primary's units, and whose clock is so far ahead."""
        node = self.primary
        if node is None:
            return
        lost = node.units[cut:]
        promoted = self._node(node.units[:cut], node.times[:cut], None, node.clock_ahead_seconds + ahead)
        promoted.inherited = cut
        self.trace(
            f"REDIS {promoted.name} is promoted without {len(lost)} of {len(node.units)} transactions of {node.name}, "
            f"clock {ahead:+g} s{', which goes on for its old connections' if old_lives else ''}"
        )
        node.alive = old_lives
        if old_lives:
            self.others.append(node)
        self.primary = promoted
        self.replica_cut_at = None
        self.rolled_back(node, lost, "failover")

    def retire(self) -> None:
        """End what old primaries still run: they follow the new one, and what they took meanwhile is gone."""
        for node in self.others:
            node.alive = False
            self.trace(f"REDIS {node.name} follows")
            # What it alone had was lost when the other one was promoted; reads may have asked it until now.
            self.rolled_back(node, (), "follows")
        self.others.clear()


def _appeared(before: Sequence[Unit], after: Sequence[Unit]) -> list[Change]:
    return [change for old, new in zip(before, after, strict=True) for change in new[: len(new) - len(old)]]


class Connection:
    """What the product takes for redis-py's connection.

    Args:
        service: where it leads.
        process: whose it is.
        timeout_seconds: how long it waits for a reply.
    """

    def __init__(self, service: Service, process: Process, timeout_seconds: float) -> None:
        self._service = service
        self._process = process
        self._timeout_seconds = timeout_seconds
        self._reader = Reader()
        self._sent: deque[list[bytes]] = deque()
        self._replies: deque[Any] = deque()
        self._node: Node | None = None

    def connect(self) -> None:
        """Connect to the primary."""
        self._service.loop.effect()
        if self._service.primary is None:
            raise redis.ConnectionError("connection refused")
        self._node = self._service.primary

    def disconnect(self, *_: Any) -> None:
        """Close."""
        self._node = None
        self._sent.clear()
        self._replies.clear()

    def can_read(self, timeout: float = 0) -> bool:
        """Tell whether there is something to read, the end included."""
        del timeout
        return bool(self._replies) or self._node is None or not self._node.alive

    def send_packed_command(self, packed: Sequence[bytes], *, check_health: bool = True) -> None:
        """Send commands; the server has them when the first reply is read."""
        del check_health
        if not self._process.alive:
            return
        if self._node is None:
            raise redis.ConnectionError("not connected")
        for part in packed:
            self._reader.feed(part)
        while (command := self._reader.gets()) is not False:
            self._sent.append(command)

    def read_response(self, *, disable_decoding: bool = False, timeout: float | None = None) -> Any:
        """Return the next reply, or raise it."""
        del disable_decoding
        if not self._replies:
            self._serve(self._timeout_seconds if timeout is None else timeout)
        reply = self._replies.popleft()
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _serve(self, timeout: float) -> None:
        loop, faults = self._service.loop, self._service.faults
        loop.effect()
        fault = faults.at(FAULTS)
        if fault is not Fault.NONE:
            self._service.trace(f"FAULT {self._process.name}: {_told(self._sent[0])}: {fault.value}")
        self._before(fault, timeout)
        count = len(self._sent) if fault is not Fault.SPLIT else max(1, len(self._sent) // 2)
        for _ in range(count):
            self._replies.append(self._execute(self._sent.popleft(), timeout))
        if fault is Fault.UNANSWERED:
            raise self._broken("connection reset by peer")
        if fault is Fault.KILL_AFTER:
            loop.kill(self._process)
        elif fault is Fault.FREEZE_AFTER:
            self._freeze()

    def _before(self, fault: Fault, timeout: float) -> None:
        loop, faults = self._service.loop, self._service.faults
        if fault is Fault.UNSENT:
            raise self._broken("connection reset")
        if fault is Fault.LATE:
            self._execute_later()
            loop.sleep(timeout)
            raise self._broken("timed out", redis.TimeoutError)
        if fault is Fault.STALL:
            loop.sleep(min(faults.seconds(), 0.9 * timeout))
        elif fault is Fault.KILL_BEFORE:
            loop.kill(self._process)
        elif fault is Fault.FREEZE_BEFORE:
            self._freeze()

    def _freeze(self) -> None:
        self._process.frozen_until = self._service.loop.now + self._service.faults.seconds()
        self._service.loop.effect()

    def _broken(self, text: str, kind: type[redis.RedisError] = redis.ConnectionError) -> redis.RedisError:
        self.disconnect()
        return kind(text)

    def _execute(self, command: list[bytes], timeout: float) -> Any:
        node = self._node
        if node is None or not node.alive:
            raise self._broken("the server closed the connection")
        name = command[0].upper()
        if name in {b"WAIT", b"WAITAOF"}:
            return self._wait(node, name, command)
        reply = _answer(node, command)
        if name == b"XREADGROUP" and reply is None and b"BLOCK" in command:
            reply = self._block(node, command, timeout)
        if self._service.trace.on:
            note = self._service.trace.routine if _is_routine(command, reply) else self._service.trace
            note(f"{self._process.name} -> {node.name}: {_told(command)} => {_shown(reply)}")
        return reply

    def _block(self, node: Node, command: list[bytes], timeout: float) -> Any:
        seconds = int(command[command.index(b"BLOCK") + 1]) / 1000
        known = len(node.units)
        loop = self._service.loop
        loop.wait_for(lambda: len(node.units) != known or not node.alive, min(seconds, timeout))
        if not node.alive:
            raise self._broken("the server closed the connection")
        return _answer(node, command)

    def _wait(self, node: Node, name: bytes, command: list[bytes]) -> Any:
        """WAIT and WAITAOF, for all that the server has by now."""
        service, loop = self._service, self._service.loop
        have = len(node.units)
        until = loop.now + int(command[-1]) / 1000
        on_replica = False
        while node.alive:
            on_disk = node.on_disk() >= have
            on_replica = service.replicated(node) >= have
            if (on_disk if name == b"WAITAOF" else on_replica) or loop.now >= until:
                break
            loop.sleep(min(0.1, until - loop.now))
        if not node.alive:
            raise self._broken("the server closed the connection")
        if node.on_disk() >= have:
            node.synced = max(node.synced, have)
        if name == b"WAITAOF":
            return [int(node.on_disk() >= have), 0]
        if on_replica:
            node.confirmed = max(node.confirmed, have)
        return int(on_replica)

    def _execute_later(self) -> None:
        node, commands = self._node, [command for command in self._sent if command[0] not in {b"WAIT", b"WAITAOF"}]
        loop = self._service.loop
        seconds = LATE_SECONDS * (1 + self._service.faults.left % 3)

        def arrive() -> None:
            loop.sleep(seconds)
            for command in commands:
                if node is not None and node.alive:
                    self._service.trace(f"{self._process.name} -> {node.name}, late: {_told(command)}")
                    _answer(node, command)

        loop.spawn(Process("network"), "late", arrive)


def _answer(node: Node, command: list[bytes]) -> Any:
    try:
        return node.execute(command)
    except Refusal as refusal:
        return BaseParser.parse_error(str(refusal))  # type: ignore[no-untyped-call]


def _told(command: list[bytes]) -> str:
    """Return a command as one short line."""
    words = [_word(word) for word in command]
    if words[0] in {"EVALSHA", "EVAL"}:
        words[:2] = [SCRIPT_NAMES.get(command[1], "a script").upper()]
    return " ".join(words)


def _word(word: bytes) -> str:
    if word[:1] in {b"\x93", b"\x95"}:
        try:
            return f"<{'; '.join(f'{Op(op).name} {table} {values}' for op, table, _, values in decode(word))}>"
        except PayloadError:
            pass
    text = ascii(word.decode("latin-1"))[1:-1]
    return text if len(text) <= 60 else text[:60] + "..."


def _is_routine(command: list[bytes], reply: Any) -> bool:
    return (
        command[0] in {b"INFO", b"XINFO"}
        or (command[0] == b"HGETALL" and command[1].endswith(b":meta"))
        or (command[0] == b"XREADGROUP" and reply is None)
        or isinstance(reply, redis.exceptions.NoScriptError)
    )


def _shown(reply: Any) -> str:
    text = f"error {reply}" if isinstance(reply, Exception) else repr(reply)
    return text if len(text) <= 200 else text[:200] + "..."


class Pool:
    """Makes connections, as redis-py's pool does.

    Args:
        service: where they lead.
        process: whose they are.
        timeout_seconds: how long they wait.
    """

    def __init__(self, service: Service, process: Process, timeout_seconds: float) -> None:
        self._service = service
        self._process = process
        self._timeout_seconds = timeout_seconds

    def make_connection(self) -> Connection:
        """Make one."""
        return Connection(self._service, self._process, self._timeout_seconds)

    def reset(self) -> None:
        """Forget them all."""
