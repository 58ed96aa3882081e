"""A server's life: its process, its port, its directory, its log."""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from writebehind.engine.errors import ConfigurationError, TransientError

HOST = "127.0.0.1"
FIRST_PORT, PORTS = 20_000, 12_000  # below 32768, where Linux begins with outgoing connections
POLL_SECONDS = 0.02
STOP_SECONDS_MAX = 20.0
LOG_TAIL_BYTES = 4_000
START_ATTEMPTS_MAX = 50
# What a server says when it meets remains of a killed one that are about to go away.
PASSING_TROUBLE = ("pre-existing shared memory block", "Address already in use", "Unable to lock ./ibdata1")


class EmbeddedServer(ABC):
    """What the servers of this module have in common.

    Args:
        binary: path of the server's binary; found by itself when None.
        directory: where data and log live; kept at stop. None: a temporary one, removed at stop.
        port: TCP port; None: a free one, the same after each restart.
        settings: the server's own settings, by their own names.
        start_seconds_max: how long a start may take.
    """

    NAME: str
    STOP_SIGNAL = signal.SIGTERM
    UNPRIVILEGED_USERS: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        binary: str | os.PathLike[str] | None = None,
        directory: str | os.PathLike[str] | None = None,
        port: int | None = None,
        settings: Mapping[str, str | int] | None = None,
        start_seconds_max: float = 60.0,
    ) -> None:
        self._binary = self._find_binary(binary)
        self._given_directory = None if directory is None else Path(directory).absolute()
        self._directory: Path | None = None
        self._port = port
        self._settings = dict(settings or {})
        self._start_seconds_max = start_seconds_max
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[..., EmbeddedServer] | None = None
        self._user = self._unprivileged_user()
        self._group = None if self._user is None else pwd.getpwnam(self._user).pw_gid

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL under which a client reaches the server."""

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1."""
        if self._port is None:
            raise ConfigurationError(f"{self.NAME} has no port yet", "call start() first")
        return self._port

    @property
    def pid(self) -> int:
        """The process ID of the server that was started last."""
        if self._process is None:
            raise ConfigurationError(f"{self.NAME} has no process yet", "call start() first")
        return self._process.pid

    @property
    def directory(self) -> Path:
        """The directory with the server's data and log."""
        if self._directory is None:
            raise ConfigurationError(f"{self.NAME} has no directory yet", "call start() first")
        return self._directory

    @property
    def log(self) -> Path:
        """The file with everything that the server printed."""
        return self.directory / "server.log"

    @property
    def running(self) -> bool:
        """Whether the server's process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start the server, on the data and the port that it had before, and wait until it answers.

        Repeat: a running server stays as it is.
        Crash: a process killed in here may leave a server running and a directory behind.

        Raises:
            ConfigurationError: the server does not start; the message ends with the tail of its log.
            TransientError: it runs, but does not answer within ``start_seconds_max``.
        """
        if self.running:
            return self
        if self._directory is None:
            self._make_directory()
        deadline = time.monotonic() + self._start_seconds_max
        port_is_fixed = self._port is not None
        for _ in range(START_ATTEMPTS_MAX):
            if self._port is None:
                self._port = free_port()
            if self._start_once(deadline):
                return self
            if not port_is_fixed:
                self._port = None
            time.sleep(10 * POLL_SECONDS)
        raise TransientError(f"{self.NAME} did not start in {START_ATTEMPTS_MAX} attempts\n{self._log_tail()}")

    def stop(self) -> None:
        """End the server gracefully, and remove its directory if it is a temporary one.

        Repeat: does nothing.
        """
        if self._finalizer is not None:
            self._finalizer()
        if self._given_directory is None:
            self._directory = None

    def kill(self) -> None:
        """Send SIGKILL to the server's process, by its ID, and wait for its end.

        Durability: what the server had not yet handed to the kernel is lost; directory and port stay.
        Repeat: does nothing.
        """
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self) -> Self:
        """End the server gracefully and start it again, on the same data and port."""
        if self._process is not None:
            _end(self._process, self.STOP_SIGNAL)
        return self.start()

    @abstractmethod
    def _find_binary(self, given: str | os.PathLike[str] | None) -> Path: ...

    @abstractmethod
    def _prepare(self) -> None:
        """Make the data directory, unless it is there."""

    @abstractmethod
    def _command(self) -> Sequence[str]: ...

    @abstractmethod
    def _answers(self) -> bool: ...

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _unprivileged_user(self) -> str | None:
        """Give the user to run as: PostgreSQL and MariaDB refuse to run as root."""
        if os.geteuid() != 0 or not self.UNPRIVILEGED_USERS:
            return None
        known = {entry.pw_name for entry in pwd.getpwall()}
        return next((user for user in self.UNPRIVILEGED_USERS if user in known), None)

    def _make_directory(self) -> None:
        if self._given_directory is None:
            directory = Path(tempfile.mkdtemp(prefix=f"writebehind-{self.NAME.lower()}-"))
        else:
            directory = self._given_directory
            directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._finish_with(None)
        if self._user is not None:
            shutil.chown(directory, self._user)

    def _finish_with(self, process: subprocess.Popen[bytes] | None) -> None:
        """Renew the finalizer: at most one process, and the directory if it is a temporary one."""
        if self._finalizer is not None:
            self._finalizer.detach()
        temporary = self._directory if self._given_directory is None else None
        self._finalizer = weakref.finalize(self, _finish, process, self.STOP_SIGNAL, temporary, os.getpid())

    def _run(self, command: Sequence[str | os.PathLike[str]]) -> None:
        """Run a preparing command to its end, its output in the log."""
        with self.log.open("ab") as log:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                check=False,
                user=self._user,
                group=self._group,
                extra_groups=None if self._user is None else [],
            )
        if done.returncode != 0:
            raise ConfigurationError(f"{os.fspath(command[0])} ended with {done.returncode}\n{self._log_tail()}")

    def _start_once(self, deadline: float) -> bool:
        """Start the process and wait; give False where another attempt is worth it."""
        self._prepare()
        with self.log.open("ab") as log:
            begin = log.tell()
            # A session of its own: Ctrl-C in the terminal is for the parent, which then stops the server.
            process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,
                user=self._user,
                group=self._group,
                extra_groups=None if self._user is None else [],
            )
        self._process = process
        self._finish_with(process)
        while not self._answers():
            if process.poll() is not None:
                said = self.log.read_bytes()[begin:].decode(errors="replace")
                if any(trouble in said for trouble in PASSING_TROUBLE) and time.monotonic() < deadline:
                    return False
                raise ConfigurationError(f"{self.NAME} ended with {process.returncode}\n{self._log_tail()}")
            if time.monotonic() >= deadline:
                _end(process, self.STOP_SIGNAL)
                raise TransientError(f"{self.NAME} did not answer in time\n{self._log_tail()}")
            time.sleep(POLL_SECONDS)
        return True

    def _log_tail(self) -> str:
        if not self.log.exists():
            return "(no log)"
        return self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")


def free_port() -> int:
    """Find a TCP port on 127.0.0.1 that is free now, below those of outgoing connections."""
    while True:
        port = FIRST_PORT + secrets.randbelow(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return port


def _end(process: subprocess.Popen[bytes], stop_signal: signal.Signals) -> None:
    """End a process gracefully, and by SIGKILL if it takes too long."""
    if process.poll() is not None:
        return
    process.send_signal(stop_signal)
    process.send_signal(signal.SIGCONT)  # a drill may have left it stopped
    try:
        process.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _finish(
    process: subprocess.Popen[bytes] | None, stop_signal: signal.Signals, directory: Path | None, owner_pid: int
) -> None:
    """End a server and remove its temporary directory, but never from a forked child."""
    if os.getpid() != owner_pid:
        return
    if process is not None:
        _end(process, stop_signal)
    if directory is not None:
        shutil.rmtree(directory, ignore_errors=True)
