"""Looks at SQL for those who have a deadline, without a database."""

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from writebehind.engine import DatabaseUnavailable
from writebehind.engine.adapters.databases import belongs_to_threads
from writebehind.engine.adapters.deadline import wait_out
from writebehind.engine.adapters.looks import QUEUED_MIN, STUCK_THREADS_MAX, THREADS_MAX, Look, Looks

DEADLINE_SECONDS = 30.0


class Stuck:
    """A database that answers when it is told to.

    Attributes:
        asked: what it was asked, in order.
        go_on: lets it answer.
    """

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.go_on = threading.Event()

    def ask(self, number: int) -> int:
        """Answer with the number."""
        self.asked.append(number)
        assert self.go_on.wait(DEADLINE_SECONDS)
        return number


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    """A database that does not answer; it does at the end."""
    database = Stuck()
    yield database
    database.go_on.set()


def until(happened: Callable[[], object]) -> None:
    """Wait for an event, with a deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.001)


def looking() -> int:
    """Count the threads that ask."""
    return sum(thread.name == "writebehind-look" for thread in threading.enumerate())


def test_what_comes_of_it() -> None:
    """An answer is there at once where the database is well; a failure is raised; no thread stays."""
    looks = Looks()
    assert looks.begin(sum, [1, 2]).result(DEADLINE_SECONDS) == 3
    assert wait_out(looks.asking(time.monotonic() + DEADLINE_SECONDS, sum, [1, 2])) == 3
    with pytest.raises(ZeroDivisionError):
        looks.begin(divmod, 1, 0).result(DEADLINE_SECONDS)
    until(lambda: looking() == 0)


def test_a_database_that_belongs_to_threads() -> None:
    """It is asked in the thread of who wants to know: no other has the same."""
    for url, here in (("sqlite://", True), ("sqlite:///file.sqlite", False)):
        looks = Looks(in_callers_thread=belongs_to_threads(sa.create_engine(url)))
        asked_in = looks.begin(threading.get_ident).result(DEADLINE_SECONDS)
        assert (asked_in == threading.get_ident()) is here
    until(lambda: looking() == 0)


def test_who_waits_goes_in_time(stuck: Stuck) -> None:
    """However long the answer takes; what was asked is answered to nobody."""
    looks = Looks()
    with pytest.raises(DatabaseUnavailable, match="does not answer in time"):
        wait_out(looks.asking(time.monotonic() + 0.05, stuck.ask, 1))
    with pytest.raises(DatabaseUnavailable, match="does not answer in time"):
        looks.begin(stuck.ask, 2).result(0.05)
    until(lambda: sorted(stuck.asked) == [1, 2])


def test_few_threads_are_stuck(stuck: Stuck) -> None:
    """Others wait for their turn; who goes before it is not asked for any more."""
    looks = Looks()
    held = [looks.begin(stuck.ask, number) for number in range(THREADS_MAX)]
    patient, gone, late = [looks.begin(stuck.ask, number) for number in (10, 11, 12)]
    gone.give_up()
    asking = looks.asking(time.monotonic() + DEADLINE_SECONDS, stuck.ask, 13)
    next(asking)
    asking.close()
    until(lambda: sorted(stuck.asked) == list(range(THREADS_MAX)))
    assert looking() == THREADS_MAX
    stuck.go_on.set()
    assert [look.result(DEADLINE_SECONDS) for look in (*held, patient, late)] == [*range(THREADS_MAX), 10, 12]
    until(lambda: looking() == 0)
    assert sorted(stuck.asked) == [*range(THREADS_MAX), 10, 12]


def test_threads_that_are_lost_are_replaced(stuck: Stuck, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that are dead keep nobody from asking over another one, up to a limit; none stays in the end."""
    looks = Looks()
    held = [looks.begin(stuck.ask, number) for number in range(THREADS_MAX)]
    until(lambda: len(stuck.asked) == THREADS_MAX)
    waiting = looks.begin(sum, [1, 2])
    looks.attend()
    assert looking() == THREADS_MAX
    with monkeypatch.context() as patch:
        patch.setattr("writebehind.engine.adapters.looks.STUCK_SECONDS", 0.0)
        looks.attend()
        assert waiting.result(DEADLINE_SECONDS) == 3
        assert looks.begin(sum, [3, 4]).result(DEADLINE_SECONDS) == 7
        held += [looks.begin(stuck.ask, number) for number in range(THREADS_MAX, 2 * STUCK_THREADS_MAX)]
        until(lambda: len(stuck.asked) == STUCK_THREADS_MAX)
        assert looking() == STUCK_THREADS_MAX
    stuck.go_on.set()
    assert [look.result(DEADLINE_SECONDS) for look in held] == list(range(2 * STUCK_THREADS_MAX))
    until(lambda: looking() == 0)


def test_who_waits_alone_is_asked_for_when_threads_are_lost(stuck: Stuck, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other question has to come for that."""
    looks = Looks()
    for number in range(THREADS_MAX):
        looks.begin(stuck.ask, number)
    until(lambda: len(stuck.asked) == THREADS_MAX)
    waiting = looks.asking(time.monotonic() + DEADLINE_SECONDS / 3, sum, [1, 2])
    next(waiting)
    monkeypatch.setattr("writebehind.engine.adapters.looks.STUCK_SECONDS", 0.0)
    assert wait_out(waiting) == 3


def test_what_was_given_up_does_not_pile_up(stuck: Stuck, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also behind one who is patient."""
    monkeypatch.setattr("writebehind.engine.adapters.looks.SOON_SECONDS", 0.0)
    looks = Looks()
    for number in range(THREADS_MAX):
        looks.begin(stuck.ask, number)
    until(lambda: len(stuck.asked) == THREADS_MAX)
    patient = looks.begin(sum, [1, 2])
    for _ in range(20 * QUEUED_MIN):
        looks.begin(sum, [1]).give_up()
        assert len(looks._queue) <= QUEUED_MIN
    stuck.go_on.set()
    assert patient.result(DEADLINE_SECONDS) == 3


def test_no_thread_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is a failure of this look, and of none that comes later."""
    looks = Looks()

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        look: Look[int] = looks.begin(sum, [1])
        with pytest.raises(DatabaseUnavailable, match="no thread can be had"):
            look.result(DEADLINE_SECONDS)
    assert looks.begin(sum, [1]).result(DEADLINE_SECONDS) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_a_fork(stuck: Stuck) -> None:
    """A child asks although all threads of its parent are stuck."""
    looks = Looks()
    for number in range(THREADS_MAX + 1):
        looks.begin(stuck.ask, number)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            looks.renew()
            code = 0 if looks.begin(sum, [1]).result(DEADLINE_SECONDS) == 1 else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
