"""Every drill in its short form, and the command as a user runs it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import psutil
import pytest
import redis
import sqlalchemy as sa

import servers
from writebehind.drills.catalogue import DRILLS, Options, plan_of
from writebehind.drills.checkers import Halt
from writebehind.drills.fault import Fault
from writebehind.drills.plan import Plan
from writebehind.drills.result import Result, Verdict
from writebehind.drills.runner import play
from writebehind.drills.sql_servers import SQL_KINDS
from writebehind.drills.stage import Stage
from writebehind.drills.tables import counters, metadata, sets, wards
from writebehind.engine.errors import ConfigurationError

SECONDS_MAX = 110
COMMAND = (sys.executable, "-m", "writebehind.flushers.cli", "drill")


def explained(result: Result) -> str:
    """Say what went wrong, for the message of a failed test."""
    broken = [f"{check.code} {check.title}: {check.detail}" for check in result.checks if not check.passed]
    return "\n".join([result.reason, *broken, *result.loss_reports, result.replay, result.trouble])


def kept(name: str, options: Options) -> Result:
    """Play a drill; its promise is kept, and everything was looked at."""
    try:
        plan = plan_of(DRILLS[name], options)
    except ConfigurationError as error:
        servers.refuse(str(error))
    result = play(plan)
    if result.verdict == Verdict.REFUSED:
        servers.refuse(result.reason)
    assert result.verdict == Verdict.PASSED, explained(result)
    assert len(result.incidents) == len(plan.faults)
    assert all(incident.notes and incident.recovered_seconds is not None for incident in result.incidents)
    assert result.acknowledged > 200
    assert {check.code for check in result.checks} == {f"K{number}" for number in range(1, 13)}
    assert len(result.points) > 5
    return result


@pytest.mark.drill
@pytest.mark.slow
@pytest.mark.parametrize("name", DRILLS)
def test_the_promise_is_kept(name: str) -> None:
    """Under load, on real servers: the fault happens, nothing acknowledged is lost, nothing is doubled."""
    kept(name, Options(short=True))


@pytest.mark.drill
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mariadb", "sqlite"])
@pytest.mark.parametrize(("name", "words"), [("poison", "125 set aside"), ("schema-drift", "4 halted: ")])
def test_what_sql_does_not_take(name: str, kind: str, words: str) -> None:
    """Each database refuses in its own way, beside the usual one too; that it did is seen."""
    result = kept(name, Options(short=True, sql_kind=kind, seed=SQL_KINDS.index(kind)))
    assert any(words in check.detail for check in result.checks)


def tampering(stage: Stage) -> None:
    """Do by hand what the product must never do: lose rows, double one, change a sum."""
    stage.hit("rows are tampered with")
    stage.recover()
    with stage.app.database.begin() as connection:
        first, second, third = connection.execute(sa.select(sets.c.op).order_by(sets.c.id).limit(3)).scalars()
        connection.execute(sa.delete(sets).where(sets.c.op.in_([first, second])))
        connection.execute(sa.insert(sets), {"op": third})
        connection.execute(sa.update(counters).where(counters.c.id == 3).values(n=counters.c.n - 1000))


def refusing(stage: Stage) -> None:
    """Leave a write behind that SQL refuses, and say that a partition has to halt."""
    stage.hit("nobody decides about a dead letter")
    stage.app.put(wards, {"id": 1, "code": 1, "level": -1, "guardian": None, "version": 1, "steps": 0})
    stage.halts.append(Halt(0, "op", None))
    stage.recover()


def crashing(stage: Stage) -> None:
    """Let a flusher end by itself."""
    stage.hit("a flusher is given nonsense")
    stage.flushers[0].stop()
    stage.flushers[0].start([sys.executable, "-c", "raise SystemExit(7)"])
    stage.recover()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strike", "codes"),
    [(tampering, {"K1", "K2", "K7", "K10"}), (crashing, {"K8", "K9"}), (refusing, {"K11", "K12"})],
    ids=["tampering", "crashing", "refusing"],
)
def test_a_broken_promise_is_noticed(strike: Any, codes: set[str]) -> None:
    """The drill itself is tested: what is planted is found, counted and told."""
    plan = Plan(
        name="planted",
        summary="a violation is planted",
        promise="none",
        faults=[Fault(name="planted", summary="a violation", strike=strike)],
        seed=1,
        replay="",
        load_seconds=0.3,
    )
    result = play(plan)
    assert result.verdict == Verdict.FAILED
    # Whether a deleted row stood for a group (K4), chance decides.
    assert codes <= {check.code for check in result.checks if not check.passed} <= codes | {"K4"}
    if strike is tampering:
        assert result.doubled == 1
        assert result.lost > 2
        assert result.lost_operations
        assert "flusher-0" in result.trouble


def drill(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run the command as a user would."""
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=SECONDS_MAX, check=False, **options
    )


def test_the_list_names_every_drill() -> None:
    """As text and as JSON."""
    assert all(name in drill("list").stdout for name in DRILLS)
    assert [each["name"] for each in json.loads(drill("list", "--json").stdout)] == list(DRILLS)


def test_an_unknown_drill_is_wrong_usage() -> None:
    """It says where the names are."""
    done = drill("run", "nonsense")
    assert done.returncode == 2
    assert "drill list" in done.stderr


@pytest.mark.slow
def test_a_run_writes_every_kind_of_report(tmp_path: Path) -> None:
    """Text on standard output; JSON, page and XML in files, from which they can be made again."""
    done = drill("run", "flusher-sigkill", "--short", "--sql", "sqlite", "--report", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED  flusher-sigkill" in done.stdout
    assert "1 fault, " in done.stdout
    found = json.loads((tmp_path / "drills.json").read_text())
    assert found["results"][0]["verdict"] == "passed"
    assert (tmp_path / "drills.html").read_text().startswith("<!doctype html>")
    assert ET.parse(tmp_path / "drills.xml").getroot().get("failures") == "0"  # noqa: S314 - made by ourselves
    again = drill("report", str(tmp_path / "drills.json"), "--html", str(tmp_path / "again.html"))
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again.html").read_text() == (tmp_path / "drills.html").read_text()
    assert drill("report", str(tmp_path / "drills.json")).stdout.strip() == done.stdout.strip()
    assert drill("report", str(tmp_path / "drills.html")).returncode == 1


@pytest.mark.slow
def test_on_given_servers_nothing_is_left_behind(redis_url: str, postgresql_url: str, tmp_path: Path) -> None:
    """Scratch only; what would harm others is refused; no password is shown; no key, table or row remains."""
    before = keys(redis_url)
    done = drill(
        *("run", "flusher-sigkill", "poison", "redis-cut", "flushall", "--short", "--report", str(tmp_path)),
        *("--redis", redis_url, "--database", postgresql_url),
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "flushall ... refused" in done.stderr
    assert "needs embedded servers" in done.stdout
    assert "3 drills, 0 failed, 1 refused" in done.stdout
    password = sa.make_url(postgresql_url).password
    assert password
    for text in (done.stdout, done.stderr, *(path.read_text() for path in tmp_path.iterdir())):
        assert password not in text
    assert {key for key in keys(redis_url) if "drill_" in key} <= before
    engine = sa.create_engine(postgresql_url, poolclass=sa.NullPool)
    assert sa.inspect(engine).get_table_names() == []


def keys(url: str) -> set[str]:
    """Return the keys of a Redis."""
    with redis.Redis.from_url(url) as client:
        return {key.decode(errors="replace") for key in client.scan_iter(count=1000)}


def test_tables_with_rows_are_left_alone(redis_url: str, sqlite_url: str, tmp_path: Path) -> None:
    """It refuses, and says what would help."""
    engine = sa.create_engine(sqlite_url, poolclass=sa.NullPool)
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(sa.insert(sets), {"op": 1})
    done = drill("run", "zombie", "--short", "--report", str(tmp_path), "--redis", redis_url, "--database", sqlite_url)
    assert done.returncode == 1
    assert "wb_drill_sets" in done.stdout
    assert "--i-know-what-i-do" in done.stdout
    with engine.connect() as connection:
        assert connection.execute(sa.select(sets.c.op)).scalars().all() == [1]


@contextlib.contextmanager
def running(*arguments: str, cwd: Path) -> Iterator["subprocess.Popen[str]"]:
    """Run the command, and make sure that it has ended."""
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd,
        env={**os.environ, "TMPDIR": str(cwd)},
        # A shell without job control has what it starts in the background ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,  # noqa: PLW1509 - no threads here
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_drill_cleans_up(number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C in the middle: no process and no directory remains."""
    with running("run", "zombie", "--sql", "sqlite", "--report", str(tmp_path / "report"), cwd=tmp_path) as process:
        started = psutil.Process(process.pid)
        deadline = time.monotonic() + 60
        while len(children := started.children(recursive=True)) < 4:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode not in {0, -number}
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert [child.cmdline() for child in alive] == []
    assert gone
    assert list(tmp_path.glob("writebehind-*")) == []


@pytest.mark.slow
def test_a_campaign_counts_its_faults(tmp_path: Path) -> None:
    """Random faults on whatever servers are here; the summary says how many of each."""
    done = drill("campaign", "--faults", "3", "--seconds", "90", "--seed", "2", "--report", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["faults"] == sum(each["times"] for each in summary["by_fault"]) == 3
    assert summary["violations"] == []
    assert "seed 2" in done.stderr
    assert (tmp_path / "summary.txt").read_text().strip() == done.stdout.strip()
    assert (tmp_path / "campaign.html").read_text().startswith("<!doctype html>")
