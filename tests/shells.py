"""The engine's two shells behind one face, so that the same test runs against both; and asyncio for tests."""

import asyncio
import contextlib
import threading
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from typing import Any, Protocol, TypeVar

from writebehind.engine import AsyncReceipt, AsyncWriteBehind, Durability, Receipt, WriteBehind

__all__ = ["Awaited", "Blocking", "Shell", "cancelled_at", "during"]

Result = TypeVar("Result")
AnyReceipt = Receipt | AsyncReceipt
Writes = Callable[[Any], object]


class Shell(Protocol):
    """What both can do, as a blocking call."""

    core: Any

    def __call__(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of the engine by name, and wait for it."""

    def batch(self, writes: Writes, **options: Any) -> None:
        """Do writes in a batch."""

    def atomic(self, table: Any, key: Any, writes: Writes, **options: Any) -> AnyReceipt:
        """Do writes in a group; give its receipt."""

    def wait(self, receipt: AnyReceipt, durability: Durability, timeout: float = 30.0) -> AnyReceipt:
        """Wait for a receipt."""

    def close(self) -> None:
        """Close the engine."""


class Blocking:
    """The shell for threads."""

    def __init__(self, **settings: Any) -> None:
        self.core = WriteBehind(**settings)

    def __call__(self, name: str, *arguments: Any, **options: Any) -> Any:
        """See ``Shell``."""
        return getattr(self.core, name)(*arguments, **options)

    def batch(self, writes: Writes, **options: Any) -> None:
        """See ``Shell``."""
        with self.core.batch(**options) as batch:
            writes(batch)

    def atomic(self, table: Any, key: Any, writes: Writes, **options: Any) -> AnyReceipt:
        """See ``Shell``."""
        with self.core.atomic(table, key, **options) as group:
            writes(group)
        return group.receipt

    def wait(self, receipt: Any, durability: Durability, timeout: float = 30.0) -> AnyReceipt:
        """See ``Shell``."""
        waited: Receipt = receipt.wait(durability, timeout)
        return waited

    def close(self) -> None:
        """See ``Shell``."""
        self.core.close()


class Awaited:
    """The shell for event loops, in a loop of its own that runs in a thread."""

    def __init__(self, **settings: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loop of a test")
        self._thread.start()
        try:
            self.engine = AsyncWriteBehind(**settings)
        except BaseException:
            self._end()
            raise
        self.core = self.engine.blocking

    def do(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Await something in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def __call__(self, name: str, *arguments: Any, **options: Any) -> Any:
        """See ``Shell``."""
        return self.do(getattr(self.engine, name)(*arguments, **options))

    def batch(self, writes: Writes, **options: Any) -> None:
        """See ``Shell``."""

        async def all_of_it() -> None:
            async with self.engine.batch(**options) as batch:
                writes(batch)

        self.do(all_of_it())

    def atomic(self, table: Any, key: Any, writes: Writes, **options: Any) -> AnyReceipt:
        """See ``Shell``."""

        async def all_of_it() -> AsyncReceipt:
            async with self.engine.atomic(table, key, **options) as group:
                writes(group)
            return group.receipt

        return self.do(all_of_it())

    def wait(self, receipt: Any, durability: Durability, timeout: float = 30.0) -> AnyReceipt:
        """See ``Shell``."""
        waited: AsyncReceipt = self.do(receipt.wait(durability, timeout))
        return waited

    def close(self) -> None:
        """See ``Shell``."""
        if self._loop.is_closed():
            return
        try:
            self.do(self.engine.close())
        finally:
            self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextlib.asynccontextmanager
async def during(work: Awaitable[Any]) -> AsyncIterator["asyncio.Future[Any]"]:
    """Have something done beside the block, and awaited at its end."""
    doing = asyncio.ensure_future(work)
    try:
        yield doing
    finally:
        await asyncio.wait([doing])


@types.coroutine
def cancelled_at(number: int, work: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Do work, and have its task cancelled where it suspends for the n-th time, from 1."""
    task = asyncio.current_task()
    assert task is not None
    suspended = 0
    send: Callable[[], Any] = lambda: work.send(None)  # noqa: E731 - it changes
    while True:
        try:
            waited_for = send()
        except StopIteration as stop:
            return stop.value
        suspended += 1
        if suspended == number:
            task.cancel()
        try:
            yield waited_for
        except BaseException as error:  # noqa: BLE001 - thrown into the work
            thrown = error
            send = lambda: work.throw(thrown)  # noqa: B023, E731 - called at once
        else:
            send = lambda: work.send(None)  # noqa: E731 - it changes
