"""What a caller in an event loop sends, and waits for."""

import asyncio
import time
from collections.abc import Sequence

from writebehind.engine.config import Backpressure
from writebehind.engine.core.composing import Draft, Entry
from writebehind.engine.receipts import AsyncReceipt

__all__ = ["Clearance", "Parcel", "Series"]

NOT_SENT = "the write was not sent: nothing was written"

Clearance = asyncio.Future[None]
"""Done when a write may be sent, or with why it may not."""


class Parcel:
    """A write on its way to its partition.

    Args:
        content: an entry, which may share a call with others, or a call's draft, which does not.
        receipts: of its entries.
        policy: what becomes of it where there is no room; those who share a call have the same.
        partition: where it goes.
        wait_seconds: how long it waits for room, or for whatever else may pass, once it may be sent.
        clearance: until this is done it keeps its place, and is not sent; None where it may be sent at once.

    Attributes:
        deadline_seconds: when to give up, on the monotonic clock.
        sent: whether it is in a call now.
        beyond: those of its receipts that were accepted beyond a limit: their writer has to wait until SQL has them.
        told: done when it is accepted; gets why it was not. Cancelled: its caller has gone.
        outside: while it has no place in its lane, what gives it up in the end.
    """

    __slots__ = (
        "beyond",
        "clearance",
        "content",
        "deadline_seconds",
        "outside",
        "partition",
        "policy",
        "receipts",
        "sent",
        "told",
        "wait_seconds",
    )

    def __init__(
        self,
        content: Entry | Draft,
        receipts: Sequence[AsyncReceipt],
        policy: Backpressure,
        partition: int,
        wait_seconds: float,
        *,
        clearance: Clearance | None = None,
    ) -> None:
        self.content = content
        self.receipts = receipts
        self.policy = policy
        self.partition = partition
        self.wait_seconds = wait_seconds
        self.clearance = clearance
        self.deadline_seconds = time.monotonic() + wait_seconds
        self.sent = False
        self.beyond: Sequence[AsyncReceipt] = ()
        self.told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.outside: asyncio.TimerHandle | None = None

    @property
    def payload_bytes(self) -> int:
        """How much it keeps in memory."""
        return _size(self.content)

    @property
    def unfilled(self) -> Sequence[AsyncReceipt]:
        """The receipts of the call that it is in."""
        return self.receipts

    def cleared(self) -> None:
        """Note that it may be sent: its time begins now."""
        self.clearance = None
        self.deadline_seconds = time.monotonic() + self.wait_seconds

    def accepted(self, *, beyond: bool) -> bool:
        """Note that its call is accepted; return whether it has another one to make."""
        if beyond:
            self.beyond = self.receipts
        return False

    def standing(self) -> str:
        """Say what is known of it, to a caller who is cancelled."""
        if all(receipt.durability is not None for receipt in self.receipts):
            return f"the write is accepted: {self.receipts[-1]!r}"
        if self.told.done() and not self.told.cancelled():
            return f"the write is not accepted: {self.told.exception()}"
        if self.sent:
            return "the write is under way and goes on without its caller: it will be in the log once, or not at all"
        return NOT_SENT


class Series(Parcel):
    """The calls of a batch in one partition: each is made when the one before is accepted, and nothing overtakes them.

    Where its caller has gone, the call that is under way is its last.

    Args:
        drafts: the calls to be.
        policies: what becomes of each where there is no room.
        receipts: of all their entries.
        partition: where it goes.
        wait_seconds: as ``Parcel``'s, for each call.
        clearance: as ``Parcel``'s.
    """

    __slots__ = ("_begin", "_drafts", "_policies", "_turn")

    def __init__(
        self,
        drafts: Sequence[Draft],
        policies: Sequence[Backpressure],
        receipts: Sequence[AsyncReceipt],
        partition: int,
        wait_seconds: float,
        *,
        clearance: Clearance | None = None,
    ) -> None:
        super().__init__(drafts[0], receipts, policies[0], partition, wait_seconds, clearance=clearance)
        self._drafts = drafts
        self._policies = policies
        self._turn = 0
        self._begin = 0

    @property
    def payload_bytes(self) -> int:
        """How much it keeps in memory."""
        return sum(map(_size, self._drafts))

    @property
    def unfilled(self) -> Sequence[AsyncReceipt]:
        """The receipts of the call that it is in."""
        return self.receipts[self._begin : self._begin + self._drafts[self._turn].entries]

    def accepted(self, *, beyond: bool) -> bool:
        """Note that its call is accepted; return whether it has another one to make."""
        if beyond:
            self.beyond = [*self.beyond, *self.unfilled]
        if self.told.done() or self._turn + 1 == len(self._drafts):
            return False
        self._begin += self._drafts[self._turn].entries
        self._turn += 1
        self.content, self.policy = self._drafts[self._turn], self._policies[self._turn]
        self.sent = False
        self.deadline_seconds = time.monotonic() + self.wait_seconds
        return True


def _size(content: Entry | Draft) -> int:
    return len(content.payload) if isinstance(content, Entry) else content.payload_bytes
