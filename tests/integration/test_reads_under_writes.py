"""Reads end although others write all the while: they wait for what was accepted before they began, and no longer."""

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import redis
import sqlalchemy as sa

from writebehind.engine import WriteBehind
from writebehind.engine.core.read_effects import Load, Look, Wait
from writebehind.flushers import Flusher, FlusherSettings, drain, initialise, status

DEADLINE_SECONDS = 20.0
LOOKS_MAX = 2
QUICK = FlusherSettings(linger_seconds=0, lease_ttl_seconds=2)
UNENDED = object()

metadata = sa.MetaData()
counters = sa.Table(
    "counters",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("hits", sa.Integer, nullable=False, default=0),
    sa.Column("note", sa.String(20)),
)
before_note = sa.Table(
    "counters",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("hits", sa.Integer, nullable=False, default=0),
)
Row = dict[str, Any]


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let flushers look again soon when there is nothing to do."""
    monkeypatch.setattr("writebehind.flushers.flusher.IDLE_BLOCK_MS", 10)
    monkeypatch.setattr("writebehind.flushers.draining.LOOK_SECONDS", 0.01)


@pytest.fixture
def engine(redis_url: str, namespace: str, sqlite_url: str) -> Iterator[WriteBehind]:
    """An engine whose table exists, with one partition."""
    made = WriteBehind(redis=redis_url, database=sqlite_url, tables=[counters], namespace=namespace, partitions=1)
    initialise(made, create_tables=True)
    made.start()
    yield made
    made.close()


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    """A plain client of the shared Redis."""
    with redis.Redis.from_url(redis_url) as plain:
        yield plain


class SlowRead:
    """A read of one record whose pauses are the test's.

    Attributes:
        loads: how often it has asked SQL for the row.
        looks: how often it has looked.
        during_load: called whenever SQL was asked, before the answer is used.
    """

    def __init__(self, engine: WriteBehind, key: int) -> None:
        self._reader = engine._reader
        self._declared = engine.declared(counters)
        self._steps = self._reader._steps(self._declared, [key])
        self._key = key
        self._effect: Any = next(self._steps)
        self.loads = self.looks = 0
        self.during_load: Callable[[], Any] = lambda: None

    def go_on(self, elapsed_seconds: float = 0.0) -> Any:
        """Go on until it waits, and return ``UNENDED``; or until it ends, and return what it has found."""
        answer: Any = None
        try:
            if isinstance(self._effect, Wait):
                self._effect = self._steps.send(elapsed_seconds)
            while not isinstance(self._effect, Wait):
                self.looks += isinstance(self._effect, Look)
                answer = self._reader._perform(self._declared, self._effect)
                if isinstance(self._effect, Load):
                    self.loads += 1
                    self.during_load()
                self._effect = self._steps.send(answer)
        except StopIteration as done:
            return done.value[self._key]
        return UNENDED


def flush(engine: WriteBehind) -> None:
    """Have SQL get everything, and Redis be told."""
    assert drain(engine, DEADLINE_SECONDS, QUICK).backlog == 0


def flush_untold(engine: WriteBehind) -> None:
    """Have SQL get everything; Redis is not told."""
    flusher = Flusher(engine, QUICK)
    with mock.patch.object(flusher._log, "acknowledge", return_value=None):
        flusher.run(until=lambda: status(engine).backlog == 0)


def store(engine: WriteBehind, *rows: Row) -> None:
    """Have rows in SQL that Redis has never heard of."""
    with engine.database.begin() as connection:
        connection.execute(sa.insert(counters), rows)


def name(engine: WriteBehind, key: int) -> str:
    """Return the name of a record's hash."""
    return engine.keys.record(0, "counters", str(key))


@pytest.mark.parametrize("told", [True, False], ids=["watermark", "SQL is asked"])
def test_a_hot_counter(*, engine: WriteBehind, told: bool) -> None:
    """A record that is always ahead of SQL is read as SQL has it once that has all from before the read."""
    for _ in range(3):
        engine.increment(counters, 1, {"hits": 1})
    read = SlowRead(engine, 1)
    found = read.go_on(0.0 if told else 1.0)
    assert found is UNENDED
    for _ in range(LOOKS_MAX):
        (flush if told else flush_untold)(engine)
        engine.increment(counters, 1, {"hits": 1})
        found = read.go_on(0.0 if told else 1.0)
        if found is not UNENDED:
            break
    assert found == {"id": 1, "hits": 3, "note": None}
    assert read.looks <= LOOKS_MAX
    flush(engine)
    assert engine.get(counters, 1) == {"id": 1, "hits": 4, "note": None}


def test_what_was_accepted_before_is_awaited(engine: WriteBehind) -> None:
    """While SQL has not all that was accepted before the read began, the read does not end."""
    engine.increment(counters, 1, {"hits": 1})
    flush(engine)
    store(engine, {"id": 2, "hits": 0})
    for key in (1, 2):
        engine.increment(counters, key, {"hits": 1})
    read = SlowRead(engine, 2)
    for _ in range(5):
        assert read.go_on() is UNENDED
        engine.increment(counters, 2, {"hits": 1})
        assert read.go_on(1.0) is UNENDED
    assert read.loads == 0
    flush(engine)
    assert read.go_on() == {"id": 2, "hits": 6, "note": None}


@pytest.mark.parametrize("exists", [True, False], ids=["row", "no row"])
def test_a_table_with_inserts_all_the_while(*, engine: WriteBehind, exists: bool) -> None:
    """A cold record is loaded once SQL has the inserts from before the read; and kept, as far as it may be."""
    if exists:
        store(engine, {"id": 1, "hits": 7})
    engine.insert(counters, {"id": 100})
    reads = [SlowRead(engine, 1) for _ in range(2)]
    assert [read.go_on() for read in reads] == [UNENDED] * 2
    flush(engine)
    expected = {"id": 1, "hits": 7, "note": None} if exists else None
    for number, read in enumerate(reads):
        engine.insert(counters, {"id": 101 + number})
        assert read.go_on() == expected
    assert [read.loads for read in reads] == [1, 0]  # the second one finds what the first one has kept
    if not exists:
        engine.insert(counters, {"id": 1, "hits": 8})
        flush(engine)
        assert engine.get(counters, 1) == {"id": 1, "hits": 8, "note": None}


def test_patches_all_the_while(engine: WriteBehind) -> None:
    """A partial record that is patched during each load is what SQL has, where that has all from before the read."""
    store(engine, {"id": 1, "hits": 7})
    engine.patch(counters, 1, {"note": "0"})
    read = SlowRead(engine, 1)
    patches = iter(range(1, 9))
    read.during_load = lambda: engine.patch(counters, 1, {"note": str(next(patches))})
    assert read.go_on() is UNENDED  # SQL has not the first patch yet
    flush(engine)
    engine.patch(counters, 1, {"note": "x"})
    assert read.go_on() == {"id": 1, "hits": 7, "note": "1"}
    assert read.looks == LOOKS_MAX


def test_another_history(engine: WriteBehind) -> None:
    """What was required of the history before says nothing in a new one: there the first look counts anew."""
    store(engine, {"id": 1, "hits": 0})
    engine.increment(counters, 1, {"hits": 1})
    read = SlowRead(engine, 1)
    assert read.go_on() is UNENDED
    flush(engine)
    engine.increment(counters, 1, {"hits": 1})
    look = engine._reader._look

    def elsewhere(*arguments: Any) -> Any:
        sights = look(*arguments)
        marks = {number: (*marks[:2], b"another", marks[3]) for number, marks in sights.marks.items()}
        return type(sights)(b"another", sights.hashes, sights.left_ms, marks)

    with mock.patch.object(engine._reader, "_look", elsewhere):
        assert read.go_on() is UNENDED
        flush(engine)
        assert read.go_on() == {"id": 1, "hits": 2, "note": None}


# A column that is newer than the record


@pytest.mark.parametrize("kind", ["put", "loaded", "dirty"])
def test_a_record_from_before_a_column(
    *, engine: WriteBehind, client: Any, redis_url: str, namespace: str, kind: str
) -> None:
    """The row is laid under it once, and the record is whole from then on; its end is what it was."""
    with WriteBehind(
        redis=redis_url, database=engine.database, tables=[before_note], namespace=namespace, partitions=1
    ) as old:
        if kind == "loaded":
            store(engine, {"id": 1, "hits": 7})
            assert old.get(before_note, 1) == {"id": 1, "hits": 7}
        else:
            old.put(before_note, {"id": 1, "hits": 7})
            flush(old)
        with engine.database.begin() as connection:
            connection.execute(sa.update(counters).values(note="old"))
        if kind == "dirty":
            old.patch(before_note, 1, {"hits": 8})
            read = SlowRead(engine, 1)
            assert read.go_on() is UNENDED
            flush_untold(old)
            assert read.go_on(1.0) == {"id": 1, "hits": 8, "note": "old"}
            assert client.hget(name(engine, 1), "note") is None  # Redis was not told what SQL has
            old.patch(before_note, 1, {"hits": 7})
            flush(old)
        life = client.pttl(name(engine, 1))
        for number in range(5):
            read = SlowRead(engine, 1)
            assert read.go_on() == {"id": 1, "hits": 7, "note": "old"}
            assert read.loads == (number == 0)
        assert 0 < client.pttl(name(engine, 1)) <= life


def test_a_record_from_before_a_column_is_written_meanwhile(
    engine: WriteBehind, redis_url: str, namespace: str
) -> None:
    """A row is not laid under what was written since it was asked for; the read has what SQL had."""
    with WriteBehind(
        redis=redis_url, database=engine.database, tables=[before_note], namespace=namespace, partitions=1
    ) as old:
        old.put(before_note, {"id": 1, "hits": 1})
        flush(old)
        read = SlowRead(engine, 1)

        def replace() -> None:
            engine.patch(counters, 1, {"note": "new"})
            engine.increment(counters, 1, {"hits": 1})

        read.during_load = replace
        assert read.go_on() == {"id": 1, "hits": 1, "note": None}
        assert engine.get(counters, 1) == {"id": 1, "hits": 2, "note": "new"}
        flush(engine)
        assert engine.get(counters, 1) == {"id": 1, "hits": 2, "note": "new"}
