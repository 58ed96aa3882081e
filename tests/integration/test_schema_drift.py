"""Writers and flushers of different releases: columns and wire versions that one of them does not know."""

import contextlib
import datetime as dt
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from writebehind.engine import ConfigurationError, UnknownColumns, WriteBehind
from writebehind.engine.adapters.control_tables import dead_letters
from writebehind.engine.core import payload
from writebehind.engine.core.composing import Composer
from writebehind.flushers import FlusherSettings, Status, drain, initialise
from writebehind.flushers.bulk import grouping
from writebehind.recovery import dead_letters as letters_of
from writebehind.recovery import replay

DEADLINE_SECONDS = 20.0
SETTINGS = FlusherSettings(linger_seconds=0, lease_ttl_seconds=1, halt_retry_seconds=0.2)


def people(*, new: bool, policy: str | UnknownColumns = UnknownColumns.HALT) -> sa.Table:
    """Return the table as the old or the new release declares it."""
    nickname = [sa.Column("nickname", sa.String(20))] if new else []
    stars = [sa.Column("stars", sa.Integer, nullable=False, server_default="0", default=0)] if new else []
    return sa.Table(
        "people",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(20), nullable=False),
        *nickname,
        sa.Column("points", sa.Integer, nullable=False, default=0),
        *stars,
        info={"writebehind": {"unknown_columns": policy}},
    )


class Releases:
    """Engines of the old and of the new release in one namespace; the database has the new column already."""

    def __init__(self, redis_url: str, database: str, namespace: str) -> None:
        self._where: dict[str, Any] = {"redis": redis_url, "database": database, "namespace": namespace}
        self._open = contextlib.ExitStack()
        self.table = people(new=True)
        self.new = self.engine(self.table)
        initialise(self.new, create_tables=True)

    def engine(self, table: sa.Table) -> WriteBehind:
        """Make an engine with a table."""
        app = WriteBehind(**self._where, tables=[table], partitions=1)
        return self._open.enter_context(app)

    def close(self) -> None:
        """Close the engines."""
        self._open.close()

    def rows(self) -> list[tuple[Any, ...]]:
        """What SQL has."""
        with self.new.database.connect() as connection:
            found = connection.execute(sa.select(self.table).order_by(self.table.c.id))
            return [(row.id, row.name, row.nickname, row.points) for row in found]

    def stars(self) -> dict[int, int]:
        """What SQL has of the other new column."""
        with self.new.database.connect() as connection:
            return {row.id: row.stars for row in connection.execute(sa.select(self.table))}

    def letters(self) -> int:
        """How many dead letters there are."""
        with self.new.database.connect() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(dead_letters)).scalar_one()


@pytest.fixture(autouse=True)
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process not have warned of anything yet."""
    monkeypatch.setattr(grouping, "_said", set())


@pytest.fixture
def releases(redis_url: str, database_url: str, namespace: str) -> Iterator[Releases]:
    """Two releases on each database."""
    found = Releases(redis_url, database_url, namespace)
    yield found
    found.close()


def flush(app: WriteBehind, seconds: float = DEADLINE_SECONDS) -> Status:
    """Flush with the tables of an engine."""
    return drain(app, seconds, SETTINGS)


def flush_until_halted(app: WriteBehind) -> Status:
    """Flush until a partition has stopped."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (last := flush(app, 1.0)).halted:
        assert time.monotonic() < deadline
    return last


def write_new(releases: Releases) -> None:
    """Write with the new release: a whole record, a patch of the new column, one of an old one."""
    table, app = releases.table, releases.new
    app.put(table, {"id": 1, "name": "Ada", "nickname": "A", "points": 1})
    app.put(table, {"id": 2, "name": "Grace", "nickname": "G", "points": 2})
    app.patch(table, 2, {"nickname": "Gr"})
    app.increment(table, 1, {"points": 5})


def test_an_old_flusher_halts_until_a_new_one_comes(releases: Releases) -> None:
    """Nothing of the new column is lost, and nothing overtakes; no dead letters."""
    old = releases.engine(people(new=False))
    write_new(releases)
    last = flush_until_halted(old)
    (halted,) = last.halted
    assert "nickname, stars of table people" in str(halted.halted)
    assert (releases.rows(), releases.letters()) == ([], 0)
    assert flush(releases.new).backlog == 0
    assert releases.rows() == [(1, "Ada", "A", 6), (2, "Grace", "Gr", 2)]


def test_an_old_flusher_may_ignore(releases: Releases, caplog: pytest.LogCaptureFixture) -> None:
    """What it knows is written, and that the rest is not is said."""
    old = releases.engine(people(new=False, policy="ignore"))
    write_new(releases)
    assert flush(old).backlog == 0
    assert releases.rows() == [(1, "Ada", None, 6), (2, "Grace", None, 2)]
    assert "their values are not written" in caplog.text
    assert releases.letters() == 0


def test_an_old_flusher_may_set_aside(releases: Releases) -> None:
    """Entries with the new column become dead letters, which a new flusher applies when they are replayed."""
    table = people(new=False, policy=UnknownColumns.DEAD_LETTER)
    old = releases.engine(table)
    old.put(table, {"id": 3, "name": "Cy", "points": 3})
    write_new(releases)
    assert flush(old).backlog == 0
    assert releases.rows() == [(3, "Cy", None, 3)]
    assert releases.letters() == 4
    replay(releases.new, [letter for letter in letters_of(releases.new) if letter.failure])
    assert flush(releases.new).backlog == 0
    assert releases.rows() == [(1, "Ada", "A", 6), (2, "Grace", "Gr", 2), (3, "Cy", None, 3)]
    assert releases.letters() == 0


def write_stars(releases: Releases) -> None:
    """Increment a column that only the new release has: of a row that is in SQL, of one in the batch."""
    table, app = releases.table, releases.new
    app.put(table, {"id": 1, "name": "Ada", "points": 1})
    assert flush(app).backlog == 0
    app.increment(table, 1, {"points": 1, "stars": 5})
    app.put(table, {"id": 2, "name": "Grace", "points": 2})
    app.increment(table, 2, {"stars": 5})


def test_an_increment_of_a_new_column_halts(releases: Releases) -> None:
    """Until a flusher comes that knows it."""
    write_stars(releases)
    (halted,) = flush_until_halted(releases.engine(people(new=False))).halted
    assert "stars of table people" in str(halted.halted)
    assert flush(releases.new).backlog == 0
    assert releases.stars() == {1: 5, 2: 5}


def test_an_increment_of_a_new_column_is_ignored(releases: Releases, caplog: pytest.LogCaptureFixture) -> None:
    """With one warning for the column, however often it is written; the others are incremented."""
    write_stars(releases)
    old = releases.engine(people(new=False, policy="ignore"))
    assert flush(old).backlog == 0
    for _ in range(3):
        releases.new.increment(releases.table, 1, {"points": 1, "stars": 5})
        assert flush(old).backlog == 0
    assert [row[3] for row in releases.rows()] == [5, 2]
    assert releases.stars() == {1: 0, 2: 0}
    assert caplog.text.count("writes to stars of table people") == 1


def test_an_increment_of_a_new_column_is_set_aside(releases: Releases) -> None:
    """And applied by a flusher that knows it."""
    write_stars(releases)
    assert flush(releases.engine(people(new=False, policy="dead-letter"))).backlog == 0
    assert releases.stars()[1] == 0
    assert releases.letters() == 3
    replay(releases.new, [letter for letter in letters_of(releases.new) if letter.failure])
    assert flush(releases.new).backlog == 0
    assert (releases.stars(), releases.letters()) == ({1: 5, 2: 5}, 0)


def test_a_new_flusher_takes_what_old_writers_write(releases: Releases) -> None:
    """A column that a writer does not know keeps the value that it has."""
    write_new(releases)
    table = people(new=False)
    old = releases.engine(table)
    old.put(table, {"id": 2, "name": "Hopper", "points": 20})
    old.put(table, {"id": 4, "name": "Dee", "points": 4})
    assert flush(releases.new).backlog == 0
    assert releases.rows() == [(1, "Ada", "A", 6), (2, "Hopper", "Gr", 20), (4, "Dee", None, 4)]


def test_a_policy_that_does_not_exist(redis_url: str, sqlite_url: str) -> None:
    """It is refused when the table is declared."""
    with pytest.raises(ConfigurationError, match="unknown_columns is 'guess'") as caught:
        WriteBehind(redis=redis_url, database=sqlite_url, namespace="n", tables=[people(new=False, policy="guess")])
    assert "'dead-letter'" in caught.value.hint


class NextVersion:
    """A release whose wire version is 2: its payloads say when they were made."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self._decode = payload.decode

    def encode(self, op: int, table: str, key_text: str, values: dict[str, Any]) -> bytes:
        """Encode as version 2."""
        made = dt.datetime(2026, 1, 1, tzinfo=dt.UTC).isoformat()
        return msgspec.msgpack.encode((2, made, payload.encode(op, table, key_text, values)))

    def decode(self, data: bytes) -> list[payload.Mutation]:
        """Decode both versions."""
        found = msgspec.msgpack.decode(data)
        return self._decode(found[2] if found[0] == 2 else data)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Let writers be of this release."""
        entry = Composer._entry
        encode: Callable[..., bytes] = self.encode
        with self._patch.context() as patch:
            patch.setattr("writebehind.engine.core.composing.encode", encode)
            yield
        assert Composer._entry is entry

    @contextlib.contextmanager
    def flushing(self) -> Iterator[None]:
        """Let flushers be of this release."""
        with self._patch.context() as patch:
            for module in ("merging", "suspect"):
                patch.setattr(f"writebehind.flushers.{module}.decode", self.decode)
            yield


def test_wire_versions_in_both_directions(releases: Releases, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old flusher stops at the first newer payload and loses nothing; a new one reads both, in their order."""
    table, app, upgraded = releases.table, releases.new, NextVersion(monkeypatch)
    app.put(table, {"id": 1, "name": "old", "points": 1})
    with upgraded.writing():
        app.increment(table, 1, {"points": 10})
    app.increment(table, 1, {"points": 100})
    last = flush_until_halted(app)
    (halted,) = last.halted
    assert "payload version 2, this release reads version 1" in str(halted.halted)
    assert last.backlog == 2
    assert releases.rows() == [(1, "old", None, 1)]
    with upgraded.flushing():
        assert flush(app).backlog == 0
    assert releases.rows() == [(1, "old", None, 111)]
    assert releases.letters() == 0
    app.increment(table, 1, {"points": 1000})
    with upgraded.flushing():
        assert flush(app).backlog == 0
    assert releases.rows() == [(1, "old", None, 1111)]
