"""Flusher daemons as processes of their own, and how to kill one.

A daemon ends by itself when its standard input does, so none outlives a replay that is itself killed.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from writebehind.engine.adapters.log import GROUP
from writebehind.engine.core.keys import Keys
from writebehind.engine.errors import RedisUnavailable, WriteBehindError
from writebehind.examples.flights.app import APP

__all__ = ["LEASE_TTL_SECONDS", "Fleet", "Pending"]

LEASE_TTL_SECONDS = 2.0
RETENTION_SECONDS = 10.0
LINGER_SECONDS = 0.02
STOP_SECONDS_MAX = 30.0
LOG_TAIL_BYTES = 3_000
SETTLE_SECONDS = 0.02


class Fleet:
    """A fixed number of daemons, each with a log file.

    Args:
        size: how many.
        environment: what they need beside this process's own environment.
        directory: where their logs go.
    """

    def __init__(self, size: int, environment: Mapping[str, str], directory: Path) -> None:
        self._environment = {**os.environ, **environment}
        self._directory = directory
        self._daemons: list[subprocess.Popen[bytes] | None] = [None] * size
        self.ends: list[int] = []
        """Exit codes of the daemons that were asked to end."""

    def __enter__(self) -> Self:
        try:
            for number in range(len(self._daemons)):
                self.start(number)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.stop()

    def start(self, number: int) -> None:
        """Start a daemon, also in place of one that was killed."""
        command = [
            *(sys.executable, "-m", "writebehind.flushers.cli", "--app", APP, "run", "--supervised"),
            *("--lease-ttl-seconds", str(LEASE_TTL_SECONDS), "--retention-seconds", str(RETENTION_SECONDS)),
            *("--linger-seconds", str(LINGER_SECONDS)),
        ]
        with self._log(number).open("ab") as log:
            # In a session of its own: a terminal's Ctrl-C reaches it through this process.
            self._daemons[number] = subprocess.Popen(
                command,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def pid(self, number: int) -> int:
        """Return a daemon's process ID."""
        return self._daemon(number).pid

    def kill(self, number: int) -> None:
        """Send SIGKILL to a daemon and wait until it is dead.

        Raises:
            WriteBehindError: it had ended by itself before.
        """
        daemon = self._daemon(number)
        self._daemons[number] = None  # no longer watched by check()
        daemon.kill()
        code = daemon.wait()
        _close_input(daemon)
        if code != -signal.SIGKILL:
            raise WriteBehindError(f"flusher {number} ended with {code}\n{self.log_tail(number)}")

    def check(self) -> None:
        """Make sure that every daemon lives.

        Raises:
            WriteBehindError: one has ended by itself; the message ends with the tail of its log.
        """
        for number, daemon in enumerate(self._daemons):
            if daemon is not None and daemon.poll() is not None:
                raise WriteBehindError(f"flusher {number} ended with {daemon.returncode}\n{self.log_tail(number)}")

    def stop(self) -> None:
        """End every daemon: SIGTERM, and SIGKILL where that is of no avail. Repeat: does nothing."""
        daemons = [daemon for daemon in self._daemons if daemon is not None]
        self._daemons = [None] * len(self._daemons)
        try:
            for daemon in daemons:
                daemon.terminate()
            deadline = time.monotonic() + STOP_SECONDS_MAX
            for daemon in daemons:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    daemon.wait(max(0.0, deadline - time.monotonic()))
        finally:
            for daemon in daemons:
                daemon.kill()
                self.ends.append(daemon.wait())
                _close_input(daemon)

    def log_tail(self, number: int) -> str:
        """Return the last lines that a daemon wrote."""
        path = self._log(number)
        return path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace") if path.exists() else "(no log)"

    def _log(self, number: int) -> Path:
        return self._directory / f"flusher-{number}.log"

    def _daemon(self, number: int) -> subprocess.Popen[bytes]:
        daemon = self._daemons[number]
        if daemon is None:
            raise WriteBehindError(f"flusher {number} is not running", "start it first")
        return daemon


def _close_input(daemon: subprocess.Popen[bytes]) -> None:
    if daemon.stdin is not None:
        daemon.stdin.close()


class Pending:
    """What was delivered to a flusher of this machine and is not acknowledged.

    Args:
        client: to the Redis of the logs.
        keys: the namespace's key names.
    """

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client = client
        self._logs: Sequence[str] = keys.logs
        self._host = socket.gethostname()[:80]

    def entries(self, pid: int) -> int:
        """Count the entries pending for a process, dead or alive, over all partitions.

        Raises:
            RedisUnavailable: Redis cannot be read.
        """
        mine = f"{self._host}:{pid}:".encode()
        pipeline = self._client.pipeline(transaction=False)
        for log in self._logs:
            pipeline.xpending(log, GROUP)
        try:
            replies: list[Any] = pipeline.execute(raise_on_error=False)
        except redis.RedisError as error:
            raise RedisUnavailable(f"Redis cannot be read: {type(error).__name__}", "check the server") from error
        return sum(
            consumer["pending"]
            for reply in replies
            if isinstance(reply, dict)  # no group yet: an error instead
            for consumer in reply["consumers"]
            if consumer["name"].startswith(mine)
        )

    def entries_of_dead(self, pid: int) -> int:
        """Count likewise once the last words of a killed process have arrived at Redis."""
        before, now = -1, self.entries(pid)
        while now != before:
            time.sleep(SETTLE_SECONDS)
            before, now = now, self.entries(pid)
        return now
