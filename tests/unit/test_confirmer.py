"""An entry is said to be lost only where SQL was asked after everybody who might have had it was done."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from writebehind.engine.adapters import confirmer
from writebehind.engine.adapters.confirmer import Confirmer
from writebehind.engine.adapters.deadline import wait_out
from writebehind.engine.adapters.looks import Looks
from writebehind.engine.adapters.rows import Applied
from writebehind.engine.confirmations import Confirmations
from writebehind.engine.core.durability import Durability
from writebehind.engine.core.keys import Keys
from writebehind.engine.core.positions import EntryID
from writebehind.engine.errors import DatabaseUnavailable, DataLossDetected, DurabilityTimeout
from writebehind.engine.receipts import Receipt

ENTRY = EntryID(500, 9)
CERTAIN_AFTER_SECONDS = 0.4
ASK_SQL_SECONDS = 0.1


@pytest.fixture(autouse=True)
def haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be certain sooner, and look at a Redis that has lost the entry."""
    monkeypatch.setattr(confirmer, "CERTAIN_AFTER_SECONDS", CERTAIN_AFTER_SECONDS)
    monkeypatch.setattr(confirmer, "ASK_SQL_SECONDS", ASK_SQL_SECONDS)
    monkeypatch.setattr(Confirmer, "_watermark", lambda *_: (None, True))
    monkeypatch.setattr(Confirmer, "_missing", lambda *_: True)


class Rows:
    """A database.

    Args:
        answer: says how far it is, given how long ago it was asked first, in seconds.
    """

    def __init__(self, answer: Callable[[float], int]) -> None:
        self._answer = answer
        self._begun = time.monotonic()

    def applied_of(self, _: str, numbers: Sequence[int]) -> dict[int, Applied]:
        """Answer, or fail."""
        reached = self._answer(time.monotonic() - self._begun)
        return {numbers[0]: Applied(offset=EntryID(ENTRY.epoch, reached), ended={})}

    def letter_of(self, *_: Any) -> None:
        """Know no dead letters."""


def wait(answer: Callable[[float], int], seconds: float) -> bool:
    """Wait for the entry."""
    made = Confirmer(None, Rows(answer), Looks(), Keys("shop", 1), 1)  # type: ignore[arg-type]
    return wait_out(made.confirm(0, ENTRY, b"a primary", Durability.PERSISTED, time.monotonic() + seconds))


def test_it_is_lost_where_sql_does_not_have_it() -> None:
    """Nobody commits it any more."""
    with pytest.raises(DataLossDetected, match="write it again if needed"):
        wait(lambda _: 3, 30.0)


def test_an_answer_from_before_is_none() -> None:
    """A flusher that had it in hand commits it while the answer of a slow database is on its way."""
    asked: list[float] = []

    def answer(at_seconds: float) -> int:
        asked.append(at_seconds)
        if len(asked) == 2:
            time.sleep(2 * CERTAIN_AFTER_SECONDS)
        return 3 if len(asked) <= 2 else ENTRY.sequence

    assert wait(answer, 30.0) is False


def test_no_answer_is_none() -> None:
    """A flusher may commit it when the database is back."""

    def answer(_: float) -> int:
        raise DatabaseUnavailable("SQL is away", "wait")

    with pytest.raises(DurabilityTimeout, match="the write is accepted"):
        wait(answer, 4 * CERTAIN_AFTER_SECONDS)


def test_not_one_look_after_the_other() -> None:
    """Where Redis answers nothing each look takes as long as it may; of many partitions few are looked at then."""
    looks: list[int] = []

    class Frozen:
        """What is asked takes long, and leads to nothing."""

        def confirm(self, partition: int, *_: Any, **__: Any) -> Iterator[float]:
            """Wait for ever."""
            while True:
                looks.append(partition)
                time.sleep(0.2)
                yield 0.0

    class Rewriter:
        """Has written nothing again."""

        def whereabouts(self, *_: Any) -> list[Any]:
            """Return where an entry stands now."""
            return []

    receipts = []
    for partition in range(40):
        receipt = Receipt(None, partition)  # type: ignore[arg-type]
        receipt.accepted(b"500-9", b"a primary", "m", in_doubt=False)
        receipts.append([receipt])
    with pytest.raises(DurabilityTimeout):
        Confirmations(Frozen(), Rewriter()).confirm_all(receipts, Durability.PERSISTED, 0.1)  # type: ignore[arg-type]
    assert 2 <= len(looks) < 10
