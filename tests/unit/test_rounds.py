"""Tasks that wait for the durability of their writes together."""

import asyncio
import inspect
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from writebehind.engine import AsyncReceipt, Durability, DurabilityTimeout, PoisonEntryError
from writebehind.engine.adapters.async_clients import LoopRows
from writebehind.engine.adapters.deadline import Waiting
from writebehind.engine.adapters.rows import Rows
from writebehind.engine.core.positions import EntryID
from writebehind.engine.following import Following
from writebehind.engine.rounds import Rounds

Answer = Callable[[EntryID], bool]

DEADLINE_SECONDS = 30.0


class Asked:
    """In place of ``WriteBehind.confirming``: notes what it is asked, and answers when it is told to."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.entries: list[EntryID] = []
        self.open = asyncio.Event()
        self.begun = asyncio.Event()

    def __call__(self, _partition: int, entry_id: EntryID, *_: Any, **__: Any) -> Waiting[bool]:
        """Ask for an entry."""
        self.entries.append(entry_id)
        self.begun.set()
        while not self.open.is_set():
            yield 0.001
        return self.answer(entry_id)


async def at_once(work: Callable[[], Any]) -> Any:
    """Run work here, in place of a thread."""
    await asyncio.sleep(0)
    return work()


def rounds_of(asked: Asked) -> Rounds:
    """Make rounds of those who wait for a disk; nobody follows an offset here."""
    nobody: Any = None
    following = Following(nobody, at_once)
    return Rounds(asked, lambda _, entry_id: entry_id, following, in_thread=at_once, held_up=at_once)


def receipts(count: int) -> list[AsyncReceipt]:
    """Return receipts of as many entries of one partition."""
    made = [AsyncReceipt(None, 0) for _ in range(count)]  # type: ignore[arg-type]
    for number, receipt in enumerate(made):
        receipt.accepted(b"256-%d" % number, b"primary", "m", in_doubt=False)
    return made


def entry(number: int) -> EntryID:
    """Return the ID of the n-th of them."""
    return EntryID(256, number)


def test_one_asks_for_all() -> None:
    """Those of one turn ask once, for the last of them; those who come meanwhile ask once more, for theirs."""

    async def main() -> None:
        asked = Asked(lambda _: True)
        together = rounds_of(asked)
        waits = [
            asyncio.ensure_future(together.confirm(each, Durability.FSYNCED, 30)) for each in receipts(10)[:6][::-1]
        ]
        await asked.begun.wait()
        waits += [asyncio.ensure_future(together.confirm(each, Durability.FSYNCED, 30)) for each in receipts(10)[6:]]
        await asyncio.sleep(0)
        asked.open.set()
        await asyncio.gather(*waits)
        assert asked.entries == [entry(5), entry(9)]
        await together.end()

    asyncio.run(main())


def test_where_one_does_not_answer_for_all() -> None:
    """Each asks for itself, and gets its own answer."""

    async def main() -> None:
        def answer(entry_id: EntryID) -> bool:
            if entry_id == entry(2):
                raise PoisonEntryError("refused by SQL")
            return False

        asked = Asked(answer)
        asked.open.set()
        together = rounds_of(asked)
        waits = [together.confirm(each, Durability.FSYNCED, 30) for each in receipts(3)]
        outcomes = await asyncio.gather(*waits, return_exceptions=True)
        assert outcomes[:2] == [None, None]
        assert isinstance(outcomes[2], PoisonEntryError)
        assert asked.entries[0] == entry(2)
        assert sorted(asked.entries[1:]) == [entry(0), entry(1), entry(2)]

    asyncio.run(main())


def test_one_in_doubt_asks_alone() -> None:
    """Nothing covers it, and it covers nothing."""

    async def main() -> None:
        asked = Asked(lambda _: True)
        asked.open.set()
        together = rounds_of(asked)
        (receipt,) = receipts(1)
        receipt.in_doubt = True
        await together.confirm(receipt, Durability.FSYNCED, 30)
        assert asked.entries == [entry(0)]
        assert not together._running

    asyncio.run(main())


def test_a_timeout_is_the_waiters_own() -> None:
    """Who gives up early gets the error; the others go on."""

    async def main() -> None:
        class Late(Asked):
            def __call__(self, *arguments: Any, **options: Any) -> Waiting[bool]:
                *_, until_seconds = arguments
                if until_seconds < time.monotonic() + 1:
                    raise DurabilityTimeout("not in time")
                return super().__call__(*arguments, **options)

        asked = Late(lambda _: True)
        together = rounds_of(asked)
        hasty, patient = receipts(2)
        waiting = asyncio.ensure_future(together.confirm(patient, Durability.FSYNCED, 30))
        with pytest.raises(DurabilityTimeout):
            await together.confirm(hasty, Durability.FSYNCED, 0.01)
        asked.open.set()
        await waiting

    asyncio.run(main())


def test_no_thread_to_ask_in() -> None:
    """Who waits for a thread in vain is told in time, too."""

    async def never(_: Callable[[], Any]) -> Any:
        await asyncio.Event().wait()

    async def main() -> None:
        nobody: Any = None
        confirming = Asked(lambda _: True)
        for level in (Durability.FSYNCED, Durability.PERSISTED):
            together = Rounds(confirming, lambda _, entry_id: entry_id, nobody, in_thread=never, held_up=never)
            (receipt,) = receipts(1)
            receipt.in_doubt = level is Durability.PERSISTED  # it asks for itself
            async with asyncio.timeout(DEADLINE_SECONDS):
                with pytest.raises(DurabilityTimeout, match=f"not {level.name} in time"):
                    await together.confirm(receipt, level, 0.01)

    asyncio.run(main())


def test_all_that_is_read_in_sql_can_be_read_in_a_loop() -> None:
    """Whatever ``Rows`` asks the database, ``LoopRows`` asks in the event loop."""
    asks = {
        name
        for name, method in inspect.getmembers(Rows, inspect.isfunction)
        if re.search(r"self\._(engine|limited)\.", inspect.getsource(method))
    }
    assert asks
    assert asks <= vars(LoopRows).keys()
