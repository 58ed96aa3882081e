"""The service under load, its flusher killed and started again, and what SQL has afterwards.

Service, flusher, load generator and commands are processes of their own, started as an operator starts them.
"""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from writebehind.drills.processes import Child
from writebehind.engine.embedded.server import free_port
from writebehind.engine.errors import TransientError, WriteBehindError
from writebehind.examples.load.report import KILLS, Kill, Report

__all__ = ["rehearse"]

MODULE: Final = "writebehind.examples.services.fastapi_app"
CLI: Final = (sys.executable, "-m", "writebehind.flushers.cli", "--app", f"{MODULE}:wb")
LEASE_TTL_SECONDS = 1.0
LOOK_SECONDS = 0.2
PATIENCE_SECONDS = 60.0
"""How long anything may take beyond the time of the load."""

ARTICLES: Final = sa.table("articles", sa.column("id"), sa.column("likes"))


def rehearse(
    *,
    redis: str,
    database: str,
    directory: Path,
    seconds: float,
    connections: int,
    say: Callable[[str], None],
) -> Report:
    """Put the service under load, kill its flusher twice meanwhile, and compare SQL with what was acknowledged.

    Args:
        redis: URL of a server without a namespace ``blog``.
        database: SQLAlchemy URL of a database without a table ``articles``.
        directory: for logs.
        seconds: how long the load lasts; longer where a restarted flusher has not come to flush by then.
        connections: how many the load generator has.
        say: told what goes on.

    Raises:
        WriteBehindError: something could not be started, or does not go on; with the end of its log.
    """
    environment = {"REDIS_URL": redis, "DATABASE_URL": database}
    port, result = free_port(), directory / "result.json"
    serve = [sys.executable, "-m", "uvicorn", f"{MODULE}:app", "--port", str(port), "--no-access-log"]
    visit = [sys.executable, "-m", "writebehind.examples.load.client", str(port), str(connections), str(result)]
    flush = [*CLI, "run", "--supervised", "--lease-ttl-seconds", str(LEASE_TTL_SECONDS)]
    report = Report()
    with contextlib.ExitStack() as stack:

        def child(name: str, command: list[str]) -> Child:
            made = Child(name, command, environment, directory / f"{name}.log")
            stack.callback(made.discard)
            return made

        engine = sa.create_engine(database)
        stack.callback(engine.dispose)
        if _command(environment, "init", "--create-tables"):
            raise WriteBehindError("'writebehind init' failed", "see above")
        service, flusher, client = child("service", serve), child("flusher", flush), child("client", visit)
        service.start()
        flusher.start()
        _until(lambda: _health(port) is not None, service)
        client.start()
        _until(lambda: _flushed(engine) > 0, client)
        say(f"under load: {connections} connections, for {seconds:g} s")
        _strike(report, engine, port, seconds, flusher, watched=[service, client], say=say)
        if client.stop() != 0:
            raise WriteBehindError(f"the load generator did not end well\n{client.log_tail()}")
        known = json.loads(result.read_text())
        acknowledged = {int(article): likes for article, likes in known.pop("acknowledged").items()}
        for name, value in known.items():
            setattr(report, name, value)
        report.acknowledged = sum(acknowledged.values())
        say("draining and comparing")
        report.drained = _command(environment, "drain", "--timeout", str(PATIENCE_SECONDS)) == 0
        report.differing = _differing(engine, acknowledged)
        for each in (flusher, service):
            each.stop()
        report.verify_exit_code = _command(environment, "verify")
        report.ends = [end for each in (service, flusher, client) for end in each.unexpected]
    return report


def _strike(
    report: Report,
    engine: sa.Engine,
    port: int,
    seconds: float,
    flusher: Child,
    *,
    watched: list[Child],
    say: Callable[[str], None],
) -> None:
    """Kill the flusher when it is due and flushes, and start it again, until the time is over and it flushes again."""
    begun = time.monotonic()
    before = _flushed(engine)
    while (now := time.monotonic() - begun) < seconds + PATIENCE_SECONDS:
        for each in (flusher, *watched):
            each.look()
            if not each.running:
                raise WriteBehindError(f"{each.name} has ended\n{each.log_tail()}")
        health = _health(port)
        if health is not None:
            report.lag_seconds_max = max(report.lag_seconds_max, health["lag_seconds"])
        flushes = _flushed(engine) > before
        if flushes and len(report.kills) == KILLS and now >= seconds:
            return
        due = seconds * (len(report.kills) + 1) / (KILLS + 1)
        if flushes and len(report.kills) < KILLS and now >= due and health is not None:
            pid = flusher.pid
            flusher.kill()
            before = _flushed(engine)
            flusher.start()
            report.kills.append(Kill(seconds=round(now, 1), pid=pid, backlog=health["backlog"]))
            say(f"flusher {pid} killed and started again")
        time.sleep(LOOK_SECONDS)
    raise TransientError("the flusher does not come to flush", f"its log ends with:\n{flusher.log_tail()}")


def _flushed(engine: sa.Engine) -> int:
    """Return how many likes SQL has."""
    with engine.connect() as connection:
        return int(connection.execute(sa.select(sa.func.sum(ARTICLES.c.likes))).scalar_one() or 0)


def _differing(engine: sa.Engine, acknowledged: Mapping[int, int]) -> list[tuple[int, int, int]]:
    with engine.connect() as connection:
        found = {row.id: int(row.likes) for row in connection.execute(sa.select(ARTICLES))}
    articles = sorted(found.keys() | acknowledged.keys())
    pairs = ((each, acknowledged.get(each, 0), found.get(each, 0)) for each in articles)
    return [(each, least, there) for each, least, there in pairs if least != there]


def _health(port: int) -> dict[str, Any] | None:
    """Ask the service how it is; None where it does not say."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        body = answer.read()
    except OSError:
        return None
    finally:
        connection.close()
    return dict(json.loads(body)) if answer.status == http.HTTPStatus.OK else None


def _until(happened: Callable[[], bool], needed: Child) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        if not needed.running or time.monotonic() > deadline:
            raise TransientError(f"{needed.name} does not answer\n{needed.log_tail()}")
        time.sleep(LOOK_SECONDS)


def _command(environment: Mapping[str, str], *arguments: str) -> int:
    """Run ``writebehind`` to its end; return its exit code. What it says goes to standard error."""
    done = subprocess.run([*CLI, *arguments], env={**os.environ, **environment}, stdout=sys.stderr, check=False)
    return done.returncode
