"""Stand-ins for what the product takes from Python: time, chance, threads and locks.

They have the names of the modules and classes that they stand for, as far as the product uses them, and work on the
loop of the history that is running.
"""

import math
import random
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from simulator.loop import Killed, Loop, Process, Task

__all__ = [
    "EPOCH_SECONDS",
    "Event",
    "Future",
    "Lock",
    "Thread",
    "ThreadPoolExecutor",
    "VirtualSecrets",
    "VirtualThreading",
    "VirtualTime",
    "bind",
    "current_process",
    "current_thread",
    "note",
]

EPOCH_SECONDS = 1_800_000_000.0
"""What the wall clocks show at the beginning."""


class _Bound:
    loop: Loop
    numbers: random.Random
    threads: dict[Task, Any]


def bind(loop: Loop, seed: int) -> None:
    """Have the stand-ins work for a history. Its tokens and pauses follow from the seed alone."""
    _Bound.loop = loop
    _Bound.numbers = random.Random(seed)
    _Bound.threads = {}
    random.seed(seed)  # tenacity's jitter


def current_process() -> Process:
    """Return the process that runs."""
    return _Bound.loop.running().process


def note(kind: str, text: str) -> None:
    """Add to the notes of the task that runs."""
    _Bound.loop.running().notes.setdefault(kind, []).append(text)


class VirtualTime:
    """Stands for ``time``."""

    def time(self) -> float:
        """Return the process's wall clock."""
        loop = _Bound.loop
        ahead = loop.current.process.clock_ahead_seconds if loop.current else 0.0
        return EPOCH_SECONDS + loop.now + ahead

    def monotonic(self) -> float:
        """Return the world's time."""
        return _Bound.loop.now

    perf_counter = monotonic

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        _Bound.loop.sleep(seconds)


class VirtualSecrets:
    """Stands for ``secrets`` and ``random``."""

    def token_hex(self, count: int) -> str:
        """Return random hexadecimal digits."""
        return _Bound.numbers.randbytes(count).hex()

    def randbelow(self, count: int) -> int:
        """Return a random number."""
        return _Bound.numbers.randrange(count)

    def uniform(self, low: float, high: float) -> float:
        """Return a random number."""
        return _Bound.numbers.uniform(low, high)

    def random(self) -> float:
        """Return a random number."""
        return _Bound.numbers.random()


class Lock:
    """Stands for ``threading.Lock`` and ``threading.RLock``."""

    def __init__(self) -> None:
        self._owner: Task | None = None
        self._depth = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002 - as in threading
        """Take the lock."""
        loop = _Bound.loop
        if self._owner is not None and self._owner is not loop.current:
            free = loop.wait_for(self._free, timeout if timeout >= 0 else math.inf) if blocking else False
            if not free:
                return False
        self._owner = loop.current
        self._depth += 1
        return True

    def release(self) -> None:
        """Give the lock back."""
        self._depth -= 1
        if self._depth == 0:
            self._owner = None

    def locked(self) -> bool:
        """Tell whether somebody has it."""
        return self._owner is not None

    def _free(self) -> bool:
        return self._owner is None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.release()


class Event:
    """Stands for ``threading.Event``."""

    def __init__(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        """Tell whether it is set."""
        return self._set

    def set(self) -> None:
        """Set it."""
        self._set = True

    def clear(self) -> None:
        """Reset it."""
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set."""
        return _Bound.loop.wait_for(self.is_set, math.inf if timeout is None else timeout)


class Thread:
    """Stands for ``threading.Thread``."""

    def __init__(
        self,
        target: Callable[..., object],
        name: str = "thread",
        args: tuple[Any, ...] = (),
        *,
        daemon: bool | None = None,
    ) -> None:
        self.name, self.daemon = name, daemon
        self._run: Callable[[], object] = lambda: target(*args)
        self._task: Task | None = None

    def start(self) -> None:
        """Begin."""
        loop = _Bound.loop
        self._task = loop.spawn(loop.running().process, self.name, self._run)
        _Bound.threads[self._task] = self

    def is_alive(self) -> bool:
        """Tell whether it runs."""
        return self._task is not None and not self._task.ended

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        _Bound.loop.wait_for(lambda: not self.is_alive(), math.inf if timeout is None else timeout)


def current_thread() -> Thread | None:
    """Stand for ``threading.current_thread``, as far as a thread that was made here is meant."""
    return _Bound.threads.get(_Bound.loop.running())


class VirtualThreading:
    """Stands for ``threading``."""

    Lock = Lock
    RLock = Lock
    Event = Event
    Thread = Thread
    current_thread = staticmethod(current_thread)


class Future:
    """Stands for ``concurrent.futures.Future``."""

    def __init__(self) -> None:
        self._done = False
        self._result: Any = None
        self._error: BaseException | None = None

    def done(self) -> bool:
        """Tell whether it is done."""
        return self._done

    def result(self) -> Any:
        """Wait for the result."""
        error = self.exception()
        if error is not None:
            raise error
        return self._result

    def exception(self) -> BaseException | None:
        """Wait for the end, and return the error."""
        _Bound.loop.wait_for(self.done)
        return self._error

    def run(self, work: Callable[[], Any]) -> None:
        """Do the work."""
        try:
            self._result = work()
        except Killed:
            raise
        except Exception as error:  # noqa: BLE001 - handed to whoever waits
            self._error = error
        self._done = True


class ThreadPoolExecutor:
    """Stands for ``concurrent.futures.ThreadPoolExecutor`` with one thread."""

    def __init__(self, max_workers: int = 1, thread_name_prefix: str = "") -> None:
        if max_workers != 1:
            raise NotImplementedError("one thread only")
        self._name = thread_name_prefix.rpartition("-")[2] or "pool"
        self._queue: deque[tuple[Future, Callable[[], Any]]] = deque()
        self._task: Task | None = None

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future:
        """Have something done."""
        future = Future()
        self._queue.append((future, lambda: work(*arguments)))
        if self._task is None or self._task.ended:
            loop = _Bound.loop
            self._task = loop.spawn(loop.running().process, self._name, self._work)
        return future

    def _work(self) -> None:
        while self._queue:
            future, work = self._queue.popleft()
            future.run(work)

    def shutdown(self, wait: bool = True) -> None:  # noqa: FBT001, FBT002 - as in concurrent.futures
        """End the thread when it has done everything."""
        if wait and self._task is not None:
            task = self._task
            _Bound.loop.wait_for(lambda: task.ended)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.shutdown()
