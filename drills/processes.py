"""The processes of a drill: flushers and the service. Each is watched, can be killed or frozen, and is ended for sure.

Each ends by itself when its standard input does, so that none outlives a drill that is itself killed.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from writebehind.drills.app import APP, LEASE_TTL_SECONDS, LINGER_SECONDS, RETENTION_SECONDS
from writebehind.engine.errors import TransientError

__all__ = ["Child", "LogLine", "flusher_command", "mortal_command", "service_command"]

STOP_SECONDS_MAX = 20.0
LOG_TAIL_BYTES = 3_000
POLL_SECONDS = 0.005
LINE = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) (\w+) [\w.]+: (.*)$")


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line that a flusher logged: when (seconds since 1970), how grave, what."""

    at: float
    level: str
    text: str


@dataclass
class Child:
    """One process, and all that ran under its name before it.

    Args:
        name: for messages.
        command: how to start it.
        environment: what it needs beside this process's own environment.
        log: where its output goes.

    Attributes:
        unexpected: ends that nobody asked for.
        pids: all processes that ever ran under this name.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    unexpected: list[str] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process ID.

        Raises:
            TransientError: it does not run.
        """
        if self._process is None:
            raise TransientError(f"{self.name} is not running", "start it first")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it lives."""
        return self._process is not None and self._process.poll() is None

    def start(self, command: Sequence[str] | None = None) -> None:
        """Start it. Repeat: leaves a running one as it is.

        Args:
            command: another program, this time only.
        """
        if self.running:
            return
        self.look()
        self.discard()
        with self.log.open("ab") as log:
            # In a session of its own: a terminal's Ctrl-C reaches it through this process.
            self._process = subprocess.Popen(
                command or self.command,
                env={**os.environ, **self.environment},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pids.append(self._process.pid)

    def kill(self) -> None:
        """Send SIGKILL and wait until it is dead. Repeat: does nothing."""
        self.look()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self.discard()

    def await_death(self, seconds: float) -> None:
        """Wait until it has killed itself.

        Raises:
            TransientError: it lives on, or ended in another way; the message ends with the tail of its log.
        """
        process = self._process
        if process is None:
            raise TransientError(f"{self.name} is not running", "start it first")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        if process.returncode != -signal.SIGKILL:
            raise TransientError(f"{self.name} did not die where it should\n{self.log_tail()}")
        self.discard()

    def freeze(self) -> None:
        """Send SIGSTOP, and wait until it stands."""
        os.kill(self.pid, signal.SIGSTOP)
        self.await_freeze(STOP_SECONDS_MAX)

    def await_freeze(self, seconds: float) -> None:
        """Wait until it stands still.

        Raises:
            TransientError: it goes on, or ended; the message ends with the tail of its log.
        """
        deadline = time.monotonic() + seconds
        while os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT | os.WNOHANG | os.WEXITED) is None:
            if time.monotonic() > deadline:
                raise TransientError(f"{self.name} does not stand still\n{self.log_tail()}")
            time.sleep(POLL_SECONDS)
        if not self.running:
            raise TransientError(f"{self.name} ended instead of standing still\n{self.log_tail()}")

    def thaw(self) -> None:
        """Send SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> int | None:
        """End it: SIGTERM, and SIGKILL where that is of no avail; return the exit code. Repeat: does nothing."""
        process = self._process
        if process is None:
            return None
        if process.poll() is None:
            process.terminate()
            process.send_signal(signal.SIGCONT)
        try:
            code = process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code not in {0, -signal.SIGTERM}:  # one that was still starting dies of the signal; it held nothing yet
            self.unexpected.append(f"{self.name} ended with {code}")
        self.discard()
        return code

    def look(self) -> None:
        """Note an end that nobody asked for."""
        if self._process is not None and self._process.poll() is not None:
            self.unexpected.append(f"{self.name} ended by itself with {self._process.returncode}: {self._last_line()}")
            self.discard()

    def discard(self) -> None:
        """Forget the process; a living one is killed."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()

    def lines(self) -> Iterator[LogLine]:
        """Read what it has logged."""
        if not self.log.exists():
            return
        for text in self.log.read_text(errors="replace").splitlines():
            found = LINE.match(text)
            if found is not None:
                second, milliseconds, level, message = found.groups()
                at = time.mktime(time.strptime(second, "%Y-%m-%d %H:%M:%S")) + int(milliseconds) / 1000
                yield LogLine(at, level, message)

    def log_tail(self) -> str:
        """Return the last lines that it wrote."""
        return self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace") if self.log.exists() else "(no log)"

    def _last_line(self) -> str:
        lines = self.log_tail().strip().splitlines()
        return lines[-1] if lines else "(nothing said)"


def flusher_command() -> list[str]:
    """Return how to start a flusher as an operator does."""
    return [
        *(sys.executable, "-m", "writebehind.flushers.cli", "--app", APP, "run", "--supervised"),
        *("--lease-ttl-seconds", str(LEASE_TTL_SECONDS), "--retention-seconds", str(RETENTION_SECONDS)),
        *("--linger-seconds", str(LINGER_SECONDS)),
    ]


def mortal_command(deed: str, effect: str, side: str, skip: int) -> list[str]:
    """Return how to start a flusher that kills or freezes itself; see ``mortal``."""
    return [sys.executable, "-m", "writebehind.drills.mortal", deed, effect, side, str(skip)]


def service_command(arguments: Sequence[str]) -> list[str]:
    """Return how to start the service."""
    return [sys.executable, "-m", "writebehind.drills.service", *arguments]
