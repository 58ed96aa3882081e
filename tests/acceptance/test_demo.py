"""The demo proves what it says, and would notice if it were not so."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from writebehind.examples.flights.comparison import Findings, compare
from writebehind.examples.flights.ground import masked
from writebehind.examples.flights.kills import KILLS_REQUIRED, Kill, Plan
from writebehind.examples.flights.report import EXACTLY_ONCE, Report
from writebehind.examples.flights.tables import Aircraft, Airport, Base, Delay, Flight
from writebehind.examples.flights.truth import truth

FLIGHTS = 5_000
SECONDS_MAX = 110


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would."""
    command = [sys.executable, "-m", "writebehind.flushers.cli", "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)


def shown(done: subprocess.CompletedProcess[str]) -> Any:
    """Give the report of a run that went well."""
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["verdict"] == EXACTLY_ONCE
    assert (report["lost"], report["doubled"], report["differing"]) == (0, 0, 0)
    assert len(report["kills"]) >= KILLS_REQUIRED
    assert all(kill["entries_in_flight"] > 0 for kill in report["kills"])
    assert report["tables"][0]["rows"] == FLIGHTS
    assert report["mutations"] > 2 * FLIGHTS
    assert report["row_operations"] > 0
    return report


@pytest.mark.slow
def test_the_demo_on_its_own_servers_ends_exactly_once() -> None:
    """SQLite, a Redis of its own, two flushers, three kills: nothing lost, nothing doubled."""
    report = shown(demo("--rows", str(FLIGHTS), "--json"))
    assert report["database"].startswith("sqlite:")


@pytest.mark.slow
def test_the_demo_on_given_servers_ends_exactly_once_and_leaves_nothing(redis_url: str, postgresql_url: str) -> None:
    """PostgreSQL and Redis by URL: the same, no table or key of it remains, and no password is shown."""
    done = demo("--rows", str(FLIGHTS), "--json", "--redis", redis_url, "--database", postgresql_url)
    shown(done)
    database = sa.create_engine(postgresql_url)
    password = database.url.password
    assert password
    assert password not in done.stdout + done.stderr
    present = set(sa.inspect(database).get_table_names())
    assert not present & set(Base.metadata.tables)
    with database.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM writebehind_namespaces").scalar_one() == 0
    database.dispose()
    with redis.Redis.from_url(redis_url) as client:
        assert list(client.scan_iter("wb:{flights-*", count=1000)) == []


def test_the_demo_does_not_touch_rows_that_are_there(sqlite_url: str) -> None:
    """Tables of its names that have rows: it refuses, says what would help, and leaves them alone."""
    database = sa.create_engine(sqlite_url)
    Base.metadata.create_all(database)
    with database.begin() as connection:
        connection.execute(sa.insert(Airport), {"code": "EWR"})
    done = demo("--rows", "1000", "--database", sqlite_url)
    assert done.returncode == 1
    assert "demo_airports" in done.stderr
    assert "--replace" in done.stderr
    with database.connect() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(Airport)).scalar_one() == 1
    database.dispose()


@pytest.fixture
def correct() -> Iterator[sa.Connection]:
    """A database in which everything is as it must be after 1,000 flights."""
    database = sa.create_engine("sqlite://")
    Base.metadata.create_all(database)
    with database.connect() as connection:
        for expected in truth(1_000):
            names = (*expected.key, *expected.columns)
            rows = [dict(zip(names, (*key, *values), strict=True)) for key, values in expected.rows.items()]
            connection.execute(sa.insert(expected.table), rows)
        yield connection
    database.dispose()


def found(connection: sa.Connection) -> list[tuple[int, int, int]]:
    """Give lost, doubled and differing of the four tables, after a look at the examples."""
    findings = compare(connection, truth(1_000))
    assert all(bool(each.examples) is not each.clean for each in findings)
    return [(each.lost, each.doubled, each.differing) for each in findings]


CLEAN = (0, 0, 0)


def test_the_comparison_passes_what_is_correct(correct: sa.Connection) -> None:
    """No finding where there is nothing to find."""
    assert found(correct) == [CLEAN] * 4


def test_the_comparison_detects_a_lost_row(correct: sa.Connection) -> None:
    """A flight that is missing is one lost."""
    correct.execute(sa.delete(Flight).where(Flight.day == 1, Flight.number == 1545))
    assert found(correct) == [(1, 0, 0), CLEAN, CLEAN, CLEAN]


def test_the_comparison_detects_a_doubled_counter(correct: sa.Connection) -> None:
    """A counter that grew twice is one doubled."""
    correct.execute(sa.update(Aircraft).where(Aircraft.tail == "N14228").values(flights=Aircraft.flights * 2))
    assert found(correct) == [CLEAN, (0, 1, 0), CLEAN, CLEAN]


def test_the_comparison_detects_a_lost_increment(correct: sa.Connection) -> None:
    """A counter that lacks one is one lost."""
    correct.execute(sa.update(Airport).where(Airport.code == "JFK").values(delayed=Airport.delayed - 1))
    assert found(correct) == [CLEAN, CLEAN, (1, 0, 0), CLEAN]


def test_the_comparison_detects_a_changed_value(correct: sa.Connection) -> None:
    """Another value, or NULL for one, is one differing each."""
    correct.execute(sa.update(Flight).where(Flight.day == 1, Flight.number == 1545).values(destination="XXX"))
    correct.execute(sa.update(Airport).where(Airport.code == "LGA").values(last_delay=None))
    assert found(correct) == [(0, 0, 1), CLEAN, (0, 0, 1), CLEAN]


def test_the_comparison_detects_an_event_inserted_twice(correct: sa.Connection) -> None:
    """The same event under another key of the database is one doubled, and so is one that never was."""
    columns = [column for column in Base.metadata.tables["demo_delays"].columns if column.name != "id"]
    once = sa.select(*columns).limit(1)
    correct.execute(sa.insert(Delay).from_select([column.name for column in columns], once))
    correct.execute(sa.insert(Airport), {"code": "XXX"})
    assert found(correct) == [CLEAN, CLEAN, (0, 1, 0), (0, 1, 0)]


def report(*, kills: int, lost: int = 0, troubles: tuple[str, ...] = ()) -> Report:
    """Make a report."""
    return Report(
        redis="",
        database="",
        flights=1,
        seed=1,
        mutations=1,
        writing_seconds=1,
        held_back_seconds=0,
        drained_seconds=1,
        row_operations=1,
        kills=[Kill(seconds=1, pid=1, entries_in_flight=1)] * kills,
        missed=0,
        findings=[Findings(table="t", lost=lost)],
        troubles=troubles,
    )


def test_a_verdict_needs_kills_and_no_trouble() -> None:
    """Too few kills, or any trouble, prove nothing; a loss disproves."""
    assert report(kills=KILLS_REQUIRED).proven
    assert report(kills=KILLS_REQUIRED - 1).verdict == "not proven: only 2 of 3 kills hit in mid-flush"
    assert report(kills=KILLS_REQUIRED, troubles=("5 entries were not flushed",)).verdict.startswith("not proven")
    assert report(kills=KILLS_REQUIRED, lost=2).verdict == "NOT exactly once: 2 lost"


@pytest.mark.parametrize("flights", [1_000, 5_000, 336_776])
@pytest.mark.parametrize("seed", range(20))
def test_a_plan_has_room_for_every_kill(flights: int, seed: int) -> None:
    """The same seed gives the same plan, and the flights do not run out while a kill is due."""
    plan = Plan(flights, seed, 1_000)
    assert plan.due == Plan(flights, seed, 1_000).due
    assert len(plan.due) == plan.kills > KILLS_REQUIRED
    assert sorted(set(plan.due)) == plan.due
    assert not plan.is_due(0, 0)
    assert plan.pace(0, 0, serving=True)[1] == 0
    for serving in (False, True):
        written, seconds = plan.due[-1], 0.0
        while written < flights:
            chunk, pause = plan.pace(written, plan.kills - 1, serving=serving)
            assert chunk >= 1
            written += chunk
            seconds += pause
        assert seconds >= 4


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("postgresql+psycopg://me:secret@host/db", "postgresql+psycopg://me:***@host/db"),
        ("postgresql://me:se/c@ret@host/db", "postgresql://me:***@host/db"),
        ("redis://:secret@127.0.0.1:6379/0", "redis://:***@127.0.0.1:6379/0"),
        ("redis://127.0.0.1:6379/0?password=secret&db=1", "redis://127.0.0.1:6379/0?password=***&db=1"),
        ("sqlite:////tmp/x.sqlite", "sqlite:////tmp/x.sqlite"),
    ],
)
def test_passwords_are_masked(url: str, safe: str) -> None:
    """Wherever a password stands in a URL, it is not shown."""
    assert masked(url) == safe
