"""The replay: write the flights, kill a flusher now and then, wait for the backlog, compare.

The writer is this thread; the hunter has one of its own.
"""

import signal
import time
from itertools import islice

import redis
import sqlalchemy as sa

from writebehind.engine import WriteBehind
from writebehind.engine.errors import WriteBehindError
from writebehind.examples.flights.app import environment
from writebehind.examples.flights.comparison import Findings, compare
from writebehind.examples.flights.display import Display
from writebehind.examples.flights.fleet import Fleet, Pending
from writebehind.examples.flights.ground import Ground, masked
from writebehind.examples.flights.hunter import Hunter
from writebehind.examples.flights.kills import Plan
from writebehind.examples.flights.report import Report
from writebehind.examples.flights.source import scheduled_flights
from writebehind.examples.flights.traffic import open_airports, record
from writebehind.examples.flights.truth import truth
from writebehind.flushers.inspection import Status, status

__all__ = ["replay"]

FLUSHERS = 2
VICTIM = 0
CHUNK_FLIGHTS = 1_000
LOOK_SECONDS = 0.05
STATUS_SECONDS = 0.5
READY_SECONDS_MAX = 60.0
STALL_SECONDS_MAX = 60.0
GRACEFUL = (0, -signal.SIGTERM)
"""How a flusher may end; by the signal itself where it was restarted so late that it did not serve yet."""


def replay(ground: Ground, flights: int, seed: int, display: Display) -> Report:
    """Replay the first so many flights of the year.

    Args:
        ground: where.
        flights: how many.
        seed: decides when to kill.
        display: shows progress.

    Repeat: needs another ground. Crash: the flushers end by themselves.

    Raises:
        WriteBehindError: a flusher does not work, or a server cannot be reached.
    """
    where = environment(ground.redis, ground.database, ground.namespace)
    with redis.Redis.from_url(ground.redis) as client:
        with Fleet(FLUSHERS, where, ground.directory) as fleet:
            display.say(f"{flights:,} flights, seed {seed}, namespace {ground.namespace}")
            display.say(f"{masked(ground.redis)}, {masked(ground.database)}")
            run = _Run(ground.app, fleet, display)
            run.await_flushers()
            plan = Plan(flights, seed, CHUNK_FLIGHTS)
            with Hunter(fleet, VICTIM, Pending(client, ground.app.keys), plan, seed) as hunter:
                run.write(flights, plan, hunter)
            last = run.drain(flights)
        row_operations = sum(int(client.hget(meta, "flushed:rows") or 0) for meta in ground.app.keys.metas)
    display.say("comparing SQL with the file")
    return Report(
        redis=masked(ground.redis),
        database=masked(ground.database),
        flights=flights,
        seed=seed,
        mutations=run.mutations,
        writing_seconds=run.written_at - run.began_at,
        held_back_seconds=run.held_back_seconds,
        drained_seconds=run.drained_at - run.written_at,
        row_operations=row_operations,
        kills=hunter.kills,
        missed=hunter.missed,
        findings=_compare(ground.app, flights),
        troubles=_troubles(last, fleet),
    )


class _Run:
    """What happens while the flushers are at work."""

    def __init__(self, app: WriteBehind, fleet: Fleet, display: Display) -> None:
        self._app = app
        self._fleet = fleet
        self._display = display
        self._looked_at = float("-inf")
        self._said = 0
        self.mutations = 0
        self.began_at = self.written_at = self.drained_at = 0.0
        self.held_back_seconds = 0.0

    def await_flushers(self) -> None:
        """Wait until every flusher is alive and every partition is held."""
        deadline = time.monotonic() + READY_SECONDS_MAX
        while True:
            found = status(self._app)
            if found.flushers == FLUSHERS and all(each.holder for each in found.partitions):
                return
            self._fleet.check()
            if time.monotonic() > deadline:
                raise WriteBehindError("the flushers are not ready", f"their logs say:\n{self._logs()}")
            time.sleep(LOOK_SECONDS)

    def write(self, flights: int, plan: Plan, hunter: Hunter) -> None:
        """Write the flights, more slowly while a kill is due."""
        source = scheduled_flights(flights)
        written = 0
        self.began_at = time.monotonic()
        with self._app.batch() as batch:
            open_airports(batch)
            self.mutations += len(batch)
        while written < flights:
            flights_next, pause = plan.pace(written, len(hunter.kills), serving=hunter.serving)
            with self._app.batch() as batch:
                for flight in islice(source, flights_next):
                    record(batch, flight)
                    written += 1
                self.mutations += len(batch)
            time.sleep(pause)
            self.held_back_seconds += pause
            hunter.written = written
            self._look(hunter)
        self.written_at = time.monotonic()

    def drain(self, flights: int) -> Status:
        """Wait until SQL has everything, or until nothing happens any more; return the last look."""
        found = status(self._app)
        least, moved_at = found.backlog, time.monotonic()
        while found.backlog and time.monotonic() - moved_at < STALL_SECONDS_MAX:
            self._display.update(flights, found.backlog)
            self._fleet.check()
            time.sleep(LOOK_SECONDS)
            found = status(self._app)
            if found.backlog < least:
                least, moved_at = found.backlog, time.monotonic()
        self.drained_at = time.monotonic()
        self._display.update(flights, found.backlog)
        return found

    def _look(self, hunter: Hunter) -> None:
        hunter.check()
        for kill in hunter.kills[self._said :]:
            self._said += 1
            self._display.say(
                f"SIGKILL {self._said}: flusher {kill.pid} died with {kill.entries_in_flight:,} in flight"
            )
        now = time.monotonic()
        if now - self._looked_at >= STATUS_SECONDS:
            self._looked_at = now
            self._fleet.check()
            self._display.update(hunter.written, status(self._app).backlog)

    def _logs(self) -> str:
        return "\n".join(self._fleet.log_tail(number) for number in range(FLUSHERS))


def _compare(app: WriteBehind, flights: int) -> list[Findings]:
    try:
        with app.database.connect() as connection:
            return compare(connection, truth(flights))
    except sa.exc.SQLAlchemyError as error:
        raise WriteBehindError(f"SQL cannot be compared: {type(error).__name__}", "check the database") from error


def _troubles(last: Status, fleet: Fleet) -> list[str]:
    troubles = [f"partition {each.partition} is halted: {each.halted}" for each in last.halted]
    if last.backlog:
        troubles.append(f"{last.backlog} entries were not flushed")
    if last.lost_entries:
        troubles.append(f"{last.lost_entries} entries were lost from the log")
    missing = sum(each.missing_rows for each in last.partitions)
    if missing:
        troubles.append(f"{missing} patches found no row")
    return troubles + [f"a flusher ended with {code} when asked to stop" for code in fleet.ends if code not in GRACEFUL]
