"""The daemon: one flusher, or a parent that keeps several running."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

import redis

from writebehind.engine import TransientError, WriteBehind
from writebehind.flushers.config import FlusherSettings
from writebehind.flushers.flusher import Flusher

__all__ = ["serve", "supervise"]

logger = logging.getLogger(__name__)

RESTART_PAUSE_SECONDS = 1.0
REFUSED = 1
"""Exit code of a flusher that ended with an error that it named."""


def serve(app: WriteBehind, settings: FlusherSettings, *, supervised: bool = False) -> None:
    """Flush until SIGTERM or SIGINT.

    Args:
        app: the engine whose namespace to flush.
        settings: how to do it.
        supervised: also end when standard input does, because then the parent is gone.

    Durability, Repeat, Crash: as ``Flusher``.

    Raises:
        WriteBehindError: it cannot serve; a server that is merely away is waited for.
    """
    stopping = threading.Event()

    def stop(number: int, _: FrameType | None) -> None:
        logger.info("%s: finishing", signal.Signals(number).name)
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if supervised:
        threading.Thread(target=_until_orphaned, args=(stopping,), daemon=True, name="writebehind-parent").start()
    if not _started(app, stopping):
        return
    flusher = Flusher(app, settings, stopping=stopping)
    logger.info("flushing namespace %s as %s", app.keys.namespace, flusher.holder)
    flusher.run()
    tally = flusher.tally
    logger.info(
        "ended after %d entries, %d SQL operations, %d batches, %d takeovers",
        tally.entries, tally.rows, tally.batches, tally.takeovers,
    )  # fmt: skip


def _started(app: WriteBehind, stopping: threading.Event) -> bool:
    """Start the engine, however long its servers are away; return False where this process was to end before."""
    while not stopping.is_set():
        try:
            app.start()
        except TransientError as error:
            if isinstance(error.__cause__, redis.exceptions.AuthenticationError):
                raise  # a wrong password does not become right by waiting
            logger.warning("%s; trying again", error)
            stopping.wait(RESTART_PAUSE_SECONDS)
        else:
            return True
    return False


def _until_orphaned(stopping: threading.Event) -> None:
    # Not through sys.stdin: a thread that waits inside its buffer's lock makes the interpreter abort at exit.
    while os.read(0, 1):
        pass
    stopping.set()


def supervise(arguments: Sequence[str], processes: int) -> int:
    """Keep several flushers running until SIGTERM or SIGINT; return the exit code.

    Args:
        arguments: the command line of this process, without the program.
        processes: how many.

    Crash: children end by themselves when this process is gone.
    """
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    command = [sys.executable, "-m", "writebehind.flushers.cli", *arguments, "--processes", "1", "--supervised"]
    children: dict[int, subprocess.Popen[bytes]] = {}
    started: dict[int, float] = {}
    failed = False
    while not stopping.is_set():
        for number in range(processes):
            child = children.get(number)
            if child is not None and child.poll() == REFUSED and not stopping.is_set():
                # It said why; another would say the same.
                logger.error("flusher process %d cannot serve; ending", child.pid)
                failed = True
                stopping.set()
                break
            if child is not None and child.poll() is not None:
                logger.error("flusher process %d ended with %d; starting another", child.pid, child.returncode)
                del children[number]
            if (
                number not in children
                and time.monotonic() - started.get(number, float("-inf")) >= RESTART_PAUSE_SECONDS
            ):
                started[number] = time.monotonic()
                # In a session of its own: a terminal's Ctrl-C reaches it through this process, once.
                children[number] = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        stopping.wait(0.2)
    for child in children.values():
        child.terminate()
    codes = [child.wait() for child in children.values()]
    for child in children.values():
        if child.stdin is not None:
            child.stdin.close()
    # A child that was still starting dies of the signal; it held nothing yet.
    return 0 if not failed and all(code in {0, -signal.SIGTERM} for code in codes) else 1
