"""Writing in an event loop: from composed entries to receipts, and to SQL for what is written through."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from writebehind.engine.clearances import Clearances
from writebehind.engine.config import Backpressure
from writebehind.engine.core.composing import Draft, Entry
from writebehind.engine.core.durability import Durability
from writebehind.engine.errors import DurabilityTimeout, WriteBehindError, gravest
from writebehind.engine.lanes import Lanes
from writebehind.engine.parcels import Parcel, Series
from writebehind.engine.receipts import AsyncReceipt
from writebehind.engine.sending import failed

if TYPE_CHECKING:
    from writebehind.engine.async_core import AsyncCore

__all__ = ["AsyncWriter"]


class AsyncWriter:
    """Writes for one engine in one event loop.

    Args:
        core: the engine.
        lanes: append to logs.
        clearances: say when a write may be sent.
    """

    __slots__ = ("_clearances", "_core", "_lanes")

    def __init__(self, core: "AsyncCore", lanes: Lanes, clearances: Clearances) -> None:
        self._core = core
        self._lanes = lanes
        self._clearances = clearances

    async def append(
        self,
        entry: Entry,
        receipt: AsyncReceipt,
        pressure: Backpressure,
        durability: Durability | None,
        *,
        through: bool,
    ) -> None:
        """Append an entry with what else waits for its partition, and wait for its level; fill in its receipt.

        Args:
            entry: it.
            receipt: its own.
            pressure: what becomes of it where there is no room.
            durability: the level to wait for; the engine's where None.
            through: whether it is written through.

        Durability, Crash, Raises: as ``AsyncWriteBehind.put``.
        """
        level = self._core.durability if durability is None else Durability(durability)
        clearance, wait_seconds = self._clearances.of(level), self._core.settings.write_timeout_seconds
        with self._lanes.kept_open():
            parcel = Parcel(entry, [receipt], pressure, receipt.partition, wait_seconds, clearance=clearance)
            beyond = await self._lanes.send(parcel)
            if through:
                await self._persist([], [receipt])
                return
            if beyond:
                level = Durability.PERSISTED
            if level:
                await self._wait_all([receipt], level)

    async def append_many(
        self,
        drafts: Mapping[int, Sequence[Draft]],
        receipts: Mapping[int, Sequence[AsyncReceipt]],
        durability: Durability | None,
        through: Collection[AsyncReceipt] = (),
    ) -> None:
        """Append drafts by partition, each partition's in order, and fill in their receipts.

        Durability, Crash, Raises: as ``WriteBehind.append_many``.
        """
        level = self._core.durability if durability is None else Durability(durability)
        with self._lanes.kept_open():
            await self._append_many(drafts, receipts, level, through)

    async def _append_many(
        self,
        drafts: Mapping[int, Sequence[Draft]],
        receipts: Mapping[int, Sequence[AsyncReceipt]],
        level: Durability,
        through: Collection[AsyncReceipt],
    ) -> None:
        if not drafts:
            await self._clearances.wait(level)
            return
        clearance, wait_seconds = self._clearances.of(level), self._core.settings.write_timeout_seconds
        sent = []
        for partition, listed in drafts.items():
            pressures = [self._core.declarations.backpressure_of(draft.tables) for draft in listed]
            sent.append(Series(listed, pressures, receipts[partition], partition, wait_seconds, clearance=clearance))
        failures = await self._lanes.send_all(sent)
        beyond = [receipt for series in sent for receipt in series.beyond]
        everything = [receipt for listed in receipts.values() for receipt in listed]
        failure = None
        if failures:
            accepted = sum(receipt.durability is not None for receipt in everything)
            failure = failed(failures, accepted, len(everything))
        try:
            await self._persist(beyond, [receipt for receipt in through if receipt.durability is not None])
        except WriteBehindError as error:
            if failure is None:
                raise
            failure.add_note(f"what was written through: {error}")
        if failure is not None:
            raise failure
        if level:
            await self._wait_all(everything, level)

    async def _persist(self, beyond: Sequence[AsyncReceipt], chosen: Sequence[AsyncReceipt]) -> None:
        """Wait until SQL has what was accepted beyond a limit, and what is written through by choice."""
        waited = [*beyond, *chosen]
        with self._core.own_flusher.needed({receipt.partition for receipt in chosen}):
            try:
                await self._wait_all(waited, Durability.PERSISTED)
            except DurabilityTimeout as error:
                if not chosen:
                    raise
                raise self._core.own_flusher.late(error, waited) from error

    async def _wait_all(self, receipts: Sequence[AsyncReceipt], level: Durability) -> None:
        """Wait for all, then raise what ``gravest`` says."""
        timeout = self._core.settings.write_timeout_seconds
        try:
            waits = [receipt.wait(level, timeout) for receipt in receipts]
            outcomes = await asyncio.gather(*waits, return_exceptions=True)
        except asyncio.CancelledError as error:
            error.add_note(f"the write is accepted, and perhaps not {level.name} yet: {list(receipts)[-1:]}")
            raise
        failures: list[Exception] = []
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                failures.append(outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
        if failures:
            raise gravest(failures)
