"""Whatever is written, flushed and evicted while records are being loaded, reads say what a dict says.

``HYPOTHESIS_PROFILE=long`` runs many more and longer examples.
"""

import contextlib
import os
import secrets
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import redis
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from flights import Flight
from simulator.schema import counters
from writebehind.engine import EngineSettings, ReadTimeout, WriteBehind
from writebehind.engine.core.read_effects import AskSQL, Load
from writebehind.flushers import Flusher, FlusherSettings, drain, initialise, status

KEYS = (1, 2)
QUICK = FlusherSettings(linger_seconds=0, lease_ttl_seconds=2)
DEADLINE_SECONDS = 20.0
LANDING_STEPS_MAX = 100
STALE_SECONDS = 1000
COMMON: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}
BOUNDS = {
    "short": settings(max_examples=60, stateful_step_count=40, **COMMON),
    "long": settings(max_examples=2000, stateful_step_count=80, **COMMON),
}

SQL_EFFECTS = (Load, AskSQL)

Row = dict[str, Any]


class Reads(RuleBasedStateMachine):
    """A writer, readers that pause between any two effects or die there, a flusher, and a dict."""

    def __init__(self, redis_url: str, directory: Path) -> None:
        super().__init__()
        namespace = f"r{secrets.token_hex(6)}"
        database = sa.create_engine(f"sqlite:///{directory / namespace}.sqlite")
        sa.event.listen(database, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
        self.client = redis.Redis.from_url(redis_url)
        self.app = WriteBehind(
            redis=redis_url,
            database=database,
            tables=[counters],
            namespace=namespace,
            partitions=1,
            settings=EngineSettings(read_timeout_seconds=0.005, refresh_ahead_share=0.9, stale_seconds=STALE_SECONDS),
        )
        initialise(self.app, create_tables=True)
        self.rows: dict[int, Row] = {}
        self.flights: list[Flight] = []
        self.number = 0

    # Writing

    @rule(op=st.sampled_from(["put", "patch", "increment", "insert", "delete"]), key=st.sampled_from(KEYS))
    def write(self, op: str, key: int) -> None:
        """Write one record."""
        self.number += 1
        row = self.rows.get(key)
        if op == "delete":
            self.app.delete(counters, key)
            self.rows.pop(key, None)
        elif op == "put" or (op == "insert" and row is None):
            new = {"id": key, "hits": self.number, "note": "new"}
            getattr(self.app, op)(counters, new)
            self.rows[key] = new
        elif op == "patch":
            self.app.patch(counters, key, {"note": str(self.number)})
            if row is not None:
                row["note"] = str(self.number)
        elif op == "increment":
            self.app.increment(counters, key, {"hits": self.number})
            if row is None:
                row = self.rows[key] = {"id": key, "hits": 0, "note": None}
            row["hits"] += self.number
        for flight in self.flights:
            flight.note(self.rows.get(flight.key))

    @rule(settles=st.booleans())
    def flush(self, settles: bool) -> None:  # noqa: FBT001
        """Flush everything; sometimes the flusher dies before Redis hears of it, and the next one tells."""
        if settles:
            assert drain(self.app, DEADLINE_SECONDS, QUICK).backlog == 0
            return
        flusher = Flusher(self.app, QUICK)
        with mock.patch.object(flusher._log, "acknowledge", return_value=None):
            flusher.run(until=lambda: status(self.app).backlog == 0)

    @rule()
    def evict(self) -> None:
        """Remove what has a time to live, leases included."""
        for name in self.client.scan_iter(f"wb:{{{self.app.keys.namespace}:*", count=10_000):
            if self.client.ttl(name) >= 0:
                self.client.unlink(name)

    @rule(key=st.sampled_from(KEYS))
    def expire(self, key: int) -> None:
        """Have a record, or the lease for loading it, come to its end."""
        if self.client.ttl(self._name(key)) >= 0:
            self.client.unlink(self._name(key))

    @rule(key=st.sampled_from(KEYS), stale=st.booleans())
    def age(self, key: int, stale: bool) -> None:  # noqa: FBT001
        """Have a record grow so old that it is loaded again, or stale."""
        if self.client.hget(self._name(key), ":state") == b"full":
            self.client.pexpire(self._name(key), 1000 * STALE_SECONDS + (-500_000 if stale else 500_000), xx=True)

    def _name(self, key: int) -> str:
        return self.app.keys.record(0, counters.name, str(key))

    # Reading

    @rule(key=st.sampled_from(KEYS), steps=st.integers(0, 4))
    def take_off(self, key: int, steps: int) -> None:
        """Begin a read, and leave it somewhere."""
        flight = Flight(self.app, counters, key, self.rows.get(key))
        self.flights.append(flight)
        self._fly(flight, steps)

    @precondition(lambda self: self.flights)
    @rule(number=st.integers(0, 9), steps=st.integers(1, 4))
    def fly(self, number: int, steps: int) -> None:
        """Let a read go on."""
        self._fly(self.flights[number % len(self.flights)], steps)

    @precondition(lambda self: self.flights)
    @rule(number=st.integers(0, 9))
    def crash(self, number: int) -> None:
        """Kill a reader; its lease stays until it runs out."""
        self.flights.pop(number % len(self.flights))

    @precondition(lambda self: any(isinstance(flight.effect, SQL_EFFECTS) for flight in self.flights))
    @rule(number=st.integers(0, 9))
    def fail(self, number: int) -> None:
        """Have SQL away when a reader asks it."""
        asking = [flight for flight in self.flights if isinstance(flight.effect, SQL_EFFECTS)]
        flight = asking[number % len(asking)]
        if not flight.fail():
            self.flights.remove(flight)

    def _fly(self, flight: Flight, steps: int) -> None:
        for _ in range(steps):
            if flight in self.flights and not flight.step():
                self.flights.remove(flight)

    @rule(key=st.sampled_from(KEYS))
    def get(self, key: int) -> None:
        """Read at once; what waits for another reader or for a flusher is not read."""
        with contextlib.suppress(ReadTimeout):
            assert self.app.get(counters, key) == self.rows.get(key)

    @rule()
    def get_many(self) -> None:
        """Read all at once, likewise."""
        with contextlib.suppress(ReadTimeout):
            assert self.app.get_many(counters, KEYS) == {key: self.rows.get(key) for key in KEYS}

    def teardown(self) -> None:
        """Flush, end all reads, and compare."""
        try:
            # Something to flush, so that what a flusher that died has not told is told.
            self.app.put(counters, {"id": 0, "hits": 0, "note": None})
            self.flush(settles=True)
            for _ in range(LANDING_STEPS_MAX):
                # Leases of those who were killed run out.
                for key in KEYS:
                    self.expire(key)
                for flight in list(self.flights):
                    self._fly(flight, 1)
            assert self.flights == []
            for _ in range(2):
                assert self.app.get_many(counters, KEYS) == {key: self.rows.get(key) for key in KEYS}
                self.evict()
        finally:
            self.app.close()
            self.app.database.dispose()
            self.client.close()


@pytest.mark.timeout(3600)
def test_reads(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads equal a dict, whatever happens between two steps of another one."""
    monkeypatch.setattr("writebehind.flushers.flusher.IDLE_BLOCK_MS", 1)
    monkeypatch.setattr("writebehind.flushers.draining.LOOK_SECONDS", 0.001)
    machine: Any = lambda: Reads(redis_url, tmp_path)  # noqa: E731 - typed as a class, but only called
    bounds = BOUNDS["long" if os.environ.get("HYPOTHESIS_PROFILE") == "long" else "short"]
    run_state_machine_as_test(machine, settings=bounds)
