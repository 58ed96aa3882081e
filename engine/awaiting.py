"""Work that waits now and then, for event loops: its steps are done in threads, its waiting holds none."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from writebehind.engine.adapters.deadline import Waiting

__all__ = ["Done", "RunInThread", "await_out", "step_of"]

Result = TypeVar("Result")

RunInThread = Callable[[Callable[[], Any]], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Done(Generic[Result]):
    """The end of work, and what came of it."""

    value: Result


async def step_of(work: Waiting[Result], in_thread: RunInThread) -> float | Done[Result]:
    """Do work up to its next wait; return how long that is in seconds, or what came of the work.

    Cancelled, the step goes on to its end in its thread, and nothing follows.
    """

    def step() -> float | Done[Result]:
        try:
            return next(work)
        except StopIteration as stop:
            return Done(stop.value)

    found: float | Done[Result] = await in_thread(step)
    return found


async def await_out(work: Waiting[Result], in_thread: RunInThread) -> Result:
    """Do all of some work; see ``step_of``."""
    step = await step_of(work, in_thread)
    while not isinstance(step, Done):
        await asyncio.sleep(step)
        step = await step_of(work, in_thread)
    return step.value
