"""Tasks that wait together until SQL has their writes."""

import asyncio
from collections.abc import Callable, Generator
from typing import Any

import pytest

from writebehind.engine import AsyncReceipt, DataLossDetected, Durability, DurabilityTimeout, RedisUnavailable
from writebehind.engine.adapters.confirmer import Passed
from writebehind.engine.adapters.deadline import Waiting
from writebehind.engine.core.positions import EntryID
from writebehind.engine.following import Following
from writebehind.engine.rounds import Rounds

EPOCH = 256
DEADLINE_SECONDS = 30.0


async def at_once(work: Callable[[], Any]) -> Any:
    """Run work here, in place of a thread."""
    await asyncio.sleep(0)
    return work()


def receipts(count: int, epoch: int = EPOCH) -> list[AsyncReceipt]:
    """Return receipts of as many entries of one partition."""
    made = [AsyncReceipt(None, 0) for _ in range(count)]  # type: ignore[arg-type]
    for number, receipt in enumerate(made):
        receipt.accepted(b"%d-%d" % (epoch, number), b"primary", "m", in_doubt=False)
    return made


class Partition:
    """In place of Redis and SQL: a partition whose offset the test moves.

    Attributes:
        offset: how far it has come; looked at by ``progress``, as ``Confirmer.progress`` does.
        letters: whether it has dead letters.
        fails: raised by the next look.
        looks: how often it was looked at.
        looked: set by each look.
        asked: who has asked for itself.
        moved: where entries were written again.
    """

    def __init__(self) -> None:
        self.offset = EntryID(EPOCH, -1)
        self.letters = False
        self.fails: Exception | None = None
        self.looks = 0
        self.looked = asyncio.Event()
        self.asked: list[EntryID] = []
        self.moved: dict[EntryID, EntryID] = {}
        following = Following(self.progress, at_once)
        self.together = Rounds(self.confirming, self.place_of, following, in_thread=at_once, held_up=at_once)

    def progress(self, _partition: int, entry_id: EntryID) -> Generator[float, EntryID | None, Passed]:
        """Wait until the offset has passed an entry."""
        while True:
            self.looks += 1
            self.looked.set()
            if self.fails is not None:
                error, self.fails = self.fails, None
                raise error
            if self.offset.epoch == entry_id.epoch and self.offset >= entry_id:
                return Passed(self.offset, self.letters)
            entry_id = (yield 0.001) or entry_id

    def place_of(self, _partition: int, entry_id: EntryID) -> EntryID:
        """Tell where an entry stands."""
        return self.moved.get(entry_id, entry_id)

    def confirming(self, _partition: int, entry_id: EntryID, *_: Any, **__: Any) -> Waiting[bool]:
        """Note who asks for itself; the answer comes at once."""
        self.asked.append(entry_id)
        yield from ()
        return False

    async def looked_at(self, times: int) -> None:
        """Wait until it was looked at so many times more."""
        until = self.looks + times
        async with asyncio.timeout(DEADLINE_SECONDS):
            while self.looks < until:
                self.looked.clear()
                await self.looked.wait()

    def wait(self, receipt: AsyncReceipt, timeout: float = DEADLINE_SECONDS) -> "asyncio.Task[None]":
        """Have somebody wait for SQL."""
        return asyncio.ensure_future(self.together.confirm(receipt, Durability.PERSISTED, timeout))


def test_one_looks_for_all_however_long() -> None:
    """Nobody else asks; each is answered once the offset has passed it, in whatever order they came."""

    async def main() -> None:
        partition = Partition()
        waits = [partition.wait(receipt) for receipt in reversed(receipts(300))][::-1]
        await partition.looked_at(50)
        assert partition.looks < 60
        for upto in (99, 100, 250):
            partition.offset = EntryID(EPOCH, upto)
            await asyncio.wait(waits[: upto + 1], timeout=DEADLINE_SECONDS)
            await partition.looked_at(3)
            assert [wait.done() for wait in waits] == [number <= upto for number in range(300)]
        partition.offset = EntryID(EPOCH, 299)
        await asyncio.gather(*waits)
        assert partition.asked == []
        await partition.together.end()

    asyncio.run(main())


def test_where_there_are_dead_letters() -> None:
    """Those whom the offset has passed ask for themselves, and the others wait on together."""

    async def main() -> None:
        partition = Partition()
        partition.letters = True
        waits = [partition.wait(receipt) for receipt in receipts(4)]
        partition.offset = EntryID(EPOCH, 1)
        await asyncio.gather(*waits[:2])
        await partition.looked_at(3)
        assert sorted(partition.asked) == [EntryID(EPOCH, 0), EntryID(EPOCH, 1)]
        partition.letters = False
        partition.offset = EntryID(EPOCH, 3)
        await asyncio.gather(*waits)
        assert len(partition.asked) == 2

    asyncio.run(main())


def test_what_was_written_again() -> None:
    """It is waited for together in its new place; what was not written again asks what became of it."""

    async def main() -> None:
        partition = Partition()
        listed = receipts(3)
        waits = [partition.wait(receipt) for receipt in listed]
        await partition.looked_at(1)
        partition.moved = {listed[number].entry_id: EntryID(EPOCH + 1, number) for number in (0, 2)}
        partition.fails = DataLossDetected("lost by Redis")
        await waits[1]
        assert partition.asked == [listed[1].entry_id]
        await partition.looked_at(5)
        assert not waits[0].done()
        partition.offset = EntryID(EPOCH + 1, 2)
        await asyncio.gather(*waits)
        assert len(partition.asked) == 1

    asyncio.run(main())


def test_while_redis_refuses() -> None:
    """It is asked again, by one for all."""

    async def main() -> None:
        partition = Partition()
        partition.fails = RedisUnavailable("Redis refuses")
        waits = [partition.wait(receipt) for receipt in receipts(3)]
        await partition.looked_at(2)
        partition.offset = EntryID(EPOCH, 2)
        await asyncio.gather(*waits)
        assert partition.asked == []

    asyncio.run(main())


def test_a_timeout_is_the_waiters_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was looked for in time is told that it is late without asking again; the others wait on."""
    monkeypatch.setattr("writebehind.engine.following.ASK_SQL_SECONDS", 0.01)

    async def main() -> None:
        partition = Partition()
        hasty, *patient = receipts(3)
        late = partition.wait(hasty, 0.1)
        waits = [partition.wait(receipt) for receipt in patient]
        with pytest.raises(DurabilityTimeout, match="not PERSISTED in time"):
            await late
        assert partition.asked == []
        # One who does not wait asks once.
        await partition.wait(hasty, 0)
        assert partition.asked == [hasty.entry_id]
        waits[0].cancel()
        partition.offset = EntryID(EPOCH, 2)
        await waits[1]

    asyncio.run(main())


def test_nobody_looks_for_those_who_have_gone() -> None:
    """The last one to give up ends it, and who comes later begins anew."""

    async def main() -> None:
        partition = Partition()
        first, second = receipts(2)
        waits = [partition.wait(receipt) for receipt in (first, second)]
        await partition.looked_at(1)
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)
        await asyncio.gather(*partition.together._following._tasks)
        partition.offset = EntryID(EPOCH, 1)
        await partition.wait(second)
        assert partition.asked == []

    asyncio.run(main())
