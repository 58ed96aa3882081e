"""Asking SQL what it has applied, on the way of writes, without a database."""

import threading
from collections.abc import Sequence

import pytest

from writebehind.engine import DatabaseUnavailable
from writebehind.engine.adapters.asking import Asking
from writebehind.engine.adapters.looks import Looks
from writebehind.engine.adapters.rows import Applied
from writebehind.engine.core.positions import ORIGIN

DEADLINE_SECONDS = 30.0


class SlowOnce:
    """A database that answers its first question when it is told to, or fails then, and all others at once."""

    def __init__(self, *, fails: bool) -> None:
        self._fails = fails
        self.asked: list[int] = []
        self.go_on = threading.Event()

    def applied_of(self, _: str, numbers: Sequence[int]) -> dict[int, Applied]:
        """Answer that nothing has been applied."""
        self.asked += numbers
        if self.asked == [0]:
            assert self.go_on.wait(DEADLINE_SECONDS)
            if self._fails:
                raise DatabaseUnavailable("it is away", "wait")
        return {number: Applied(offset=ORIGIN, ended={}) for number in numbers}


@pytest.mark.parametrize("fails", [False, True])
def test_silence_ends_with_the_answer(monkeypatch: pytest.MonkeyPatch, *, fails: bool) -> None:
    """While a question is open none is added for other partitions; after its answer they are asked for at once.

    A failure is no answer: a database that is away would be waited for again and again.
    """
    monkeypatch.setattr("writebehind.engine.adapters.asking.ASK_SECONDS_MAX", 0.05)
    monkeypatch.setattr("writebehind.engine.adapters.asking.SILENT_SECONDS", 3600.0)
    database = SlowOnce(fails=fails)
    asking = Asking(database, Looks(), "shop")  # type: ignore[arg-type]
    for partition in (0, 1, 2):
        with pytest.raises(DatabaseUnavailable, match="does not answer in time"):
            asking.applied(partition)
    assert database.asked == [0]
    database.go_on.set()
    unanswered = asking._unanswered
    assert unanswered is not None
    assert unanswered.answered(DEADLINE_SECONDS)
    monkeypatch.setattr("writebehind.engine.adapters.asking.ASK_SECONDS_MAX", DEADLINE_SECONDS)
    assert asking.answers(1) is not fails
    assert database.asked == ([0] if fails else [0, 1])


def test_only_the_last_unanswered_question_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that hangs for hours is not asked all that was wanted meanwhile when it is back."""
    monkeypatch.setattr("writebehind.engine.adapters.asking.ASK_SECONDS_MAX", 0.01)
    monkeypatch.setattr("writebehind.engine.adapters.asking.SILENT_SECONDS", 0.0)
    database = SlowOnce(fails=False)
    looks = Looks()
    monkeypatch.setattr(database, "applied_of", lambda *_: database.go_on.wait(DEADLINE_SECONDS))
    asking = Asking(database, looks, "shop")  # type: ignore[arg-type]
    for _ in range(20):
        assert not asking.answers(0)
    assert sum(not look.given_up for look in looks._queue) == 1
    database.go_on.set()
