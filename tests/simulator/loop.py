"""Tasks and processes on a virtual clock, one at a time.

A task is a greenlet: the product's blocking code, which stops at every effect (a request to a server, a sleep, a lock)
and may find there that its process was killed. Which task goes on is a decision of ``chance``. Time passes a little
with every effect, and jumps where everybody waits.
"""

import math
from collections.abc import Callable

from greenlet import getcurrent, greenlet  # type: ignore[import-untyped,unused-ignore]

from simulator.chance import Chance

__all__ = ["EFFECT_SECONDS", "Killed", "Loop", "Process", "Stop", "Task"]

EFFECT_SECONDS = 0.001
"""How long an effect takes."""


class Killed(BaseException):
    """The task's process is no more."""


class Stop(BaseException):
    """The history ends here: something that must not be was seen. Nothing in the product catches it for good."""


class Process:
    """Something that can be killed or frozen as a whole.

    Attributes:
        name: for the trace.
        alive: whether it was not killed.
        frozen_until: nothing of it runs before this time.
        clock_ahead_seconds: how far its wall clock is ahead of the world's.
        at_death: called when it is killed, as the operating system closes its connections.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.frozen_until = 0.0
        self.clock_ahead_seconds = 0.0
        self.at_death: list[Callable[[], None]] = []


class Task:
    """A thread of a process.

    Attributes:
        process: whose it is.
        name: for the trace.
        wake_at: when it goes on.
        condition: goes on earlier when this is true.
        failed: called with what ended it, if not its end.
        ended: whether it is over.
        notes: whatever belongs to the task; a thread-local.
    """

    __slots__ = ("condition", "ended", "failed", "greenlet", "name", "notes", "process", "since", "wake_at")

    def __init__(self, process: Process, name: str, now: float) -> None:
        self.process = process
        self.name = name
        self.wake_at = now
        self.since = now
        self.condition: Callable[[], bool] | None = None
        self.failed: Callable[[Task, BaseException], None] = _ignored
        self.ended = False
        self.notes: dict[str, list[str]] = {}
        self.greenlet: greenlet


class Loop:
    """Runs tasks.

    Args:
        chance: decides which.
        switch_share: how often another task goes on although the current one could.
        effects_max: after so many effects the history counts as stuck.

    Attributes:
        now: the time in seconds since the beginning.
        effects: how many there were.
        current: the running task.
    """

    def __init__(self, chance: Chance, switch_share: float, effects_max: int) -> None:
        self.chance = chance
        self.switch_share = switch_share
        self.effects_max = effects_max
        self.now = 0.0
        self.effects = 0
        self.current: Task | None = None
        self.tasks: list[Task] = []
        self._main = getcurrent()
        self._stopped: BaseException | None = None
        self._broken: BaseException | None = None

    # For tasks

    def effect(self) -> None:
        """Stand before an effect: others may go on first, and the task may be dead when it is its turn again."""
        task = self.running()
        if not task.process.alive:
            raise Killed
        self.effects += 1
        self.now += EFFECT_SECONDS
        if (
            self.effects > self.effects_max
            or task.process.frozen_until > self.now
            or self.chance.happens(self.switch_share)
        ):
            self._wait(self.now, None)

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self._wait(self.now + max(0.0, seconds), None)

    def wait_for(self, condition: Callable[[], bool], seconds: float = math.inf) -> bool:
        """Wait until something is true; tell whether it is."""
        if not condition():
            self._wait(self.now + seconds, condition)
        return condition()

    def running(self) -> Task:
        """Return the task that runs."""
        if self.current is None:
            raise RuntimeError("no task is running")
        return self.current

    def _wait(self, until: float, condition: Callable[[], bool] | None) -> None:
        task = self.running()
        if not task.process.alive:
            raise Killed
        task.wake_at, task.condition, task.since = until, condition, self.now
        self._main.switch()
        task.condition = None
        if not task.process.alive:
            raise Killed

    # For the world

    def spawn(self, process: Process, name: str, run: Callable[[], object]) -> Task:
        """Begin a task."""
        task = Task(process, name, self.now)

        def body() -> None:
            try:
                if process.alive:
                    run()
            except Killed:
                pass
            except Stop as stop:
                self.stop(stop)
            except Exception as error:  # noqa: BLE001 - whoever wants to know is told
                task.failed(task, error)
            except BaseException as error:  # noqa: BLE001 - of the simulator itself
                self._broken = self._broken or error
            task.ended = True

        task.greenlet = greenlet(body, self._main)
        self.tasks.append(task)
        return task

    def stop(self, reason: BaseException) -> None:
        """End the history; the first reason counts."""
        self._stopped = self._stopped or reason

    def kill(self, process: Process) -> None:
        """Kill a process: its tasks find out at their next effect, and have none any more."""
        if not process.alive:
            return
        process.alive = False
        for close in process.at_death:
            close()
        for task in self.tasks:
            if task.process is process:
                task.wake_at = self.now
                task.condition = None
        if self.current is not None and self.current.process is process:
            raise Killed

    def run(self, until: Callable[[], bool], seconds: float) -> bool:
        """Run until something is true, or for so long; tell whether it is.

        Raises:
            Stop: the history ends.
        """
        end = self.now + seconds
        while not until():
            if self.effects > self.effects_max or self.now > end:
                return False
            task = self._next()
            if task is None:
                return False
            self.current = task
            task.greenlet.switch()
            self.current = None
            if task.ended:
                self.tasks.remove(task)
            if self._broken is not None:
                raise self._broken
            if self._stopped is not None:
                raise self._stopped
        return True

    def close(self) -> None:
        """End all tasks, as by SIGKILL."""
        for task in self.tasks:
            task.process.alive = False
        for task in list(self.tasks):
            for _ in range(100):
                if task.ended:
                    break
                self.current = task
                task.greenlet.switch()
        self.current = None
        self.tasks.clear()

    def _next(self) -> Task | None:
        while True:
            now = self.now
            ready = []
            soonest = math.inf
            for task in self.tasks:
                process = task.process
                due = task.wake_at
                if process.frozen_until > now and process.alive:
                    due = process.frozen_until if task.condition is not None else max(process.frozen_until, due)
                elif due > now and task.condition is not None and task.condition():
                    due = now
                if due <= now:
                    ready.append(task)
                elif due < soonest:
                    soonest = due
            if ready:
                ready.sort(key=_waiting_since)
                return ready[self.chance.below(len(ready))]
            if soonest == math.inf:
                return None
            self.now = soonest


def _ignored(_task: Task, _error: BaseException) -> None:
    """Leave it."""


def _waiting_since(task: Task) -> float:
    return task.since
