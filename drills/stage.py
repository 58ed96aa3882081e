"""The stage of a drill: servers, flushers, service, observer; all of it is gone in the end, however the drill ends."""

import contextlib
import random
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from writebehind.drills.app import PARTITIONS, environment, make
from writebehind.drills.audit import Audit
from writebehind.drills.checkers import Halt, Look
from writebehind.drills.fault import Need
from writebehind.drills.incident import Incident
from writebehind.drills.journal import Acknowledged, Intent, Tail
from writebehind.drills.lines import FLUSHERS, PROBE, ROLES, SERVICE, Lines, plain_redis_url
from writebehind.drills.observer import Observer
from writebehind.drills.plan import Plan
from writebehind.drills.probe import Probe
from writebehind.drills.processes import Child, flusher_command, service_command
from writebehind.drills.redis_servers import GivenRedis, OwnRedis, find_redis
from writebehind.drills.scratch import forget_keys, forget_rows, make_room
from writebehind.drills.service import arguments
from writebehind.drills.sql_servers import SqlServer, given_sql, own_sql
from writebehind.drills.stories import Story
from writebehind.drills.tables import accounts, counters
from writebehind.drills.workload import ACCOUNTS, BANKS, COUNTERS, OPENING_BALANCE
from writebehind.engine import WriteBehind
from writebehind.engine.errors import ConfigurationError, TransientError
from writebehind.flushers import drain, initialise, status

__all__ = ["RECOVERY_SECONDS_MAX", "Stage", "on_stage"]

RECOVERY_SECONDS_MAX = 30.0
SETUP_SECONDS_MAX = 20.0
SERVICE_SECONDS_MAX = 20.0
POLL_SECONDS = 0.02


@dataclass
class Stage:
    """Where a drill plays.

    Attributes:
        plan: what is played.
        namespace: one that nobody else has.
        directory: for logs and journals.
        chance: decides what the seed decides.
        redis: the primary.
        replica: the server that follows it, where the drill has one.
        link: the replica's way to the primary.
        sql: the database.
        redis_lines, sql_lines: everybody's way to the servers, where these are proxies.
        app: the engine of the drill itself.
        probe: whether writes come through.
        flushers: the daemons.
        service: the process that writes.
        journals: what all writers have written down.
        journals_of_service: those of the service, in all its lives.
        incidents: what has been done so far.
        stories: rows of which SQL refuses something, in all strikes.
        looks: what was set aside at some moments, and what should have been.
        halts: partitions that had to halt, and what they said.
    """

    plan: Plan
    namespace: str
    directory: Path
    chance: random.Random
    redis: OwnRedis | GivenRedis
    sql: SqlServer
    app: WriteBehind
    probe: Probe
    redis_lines: Lines | None
    sql_lines: Lines | None
    replica: OwnRedis | None = None
    link: Lines | None = None
    flushers: list[Child] = field(default_factory=list)
    service: Child | None = None
    observer: Observer | None = None
    audit: Audit | None = None
    journals: list[Path] = field(default_factory=list)
    journals_of_service: list[Path] = field(default_factory=list)
    incidents: list[Incident] = field(default_factory=list)
    stories: list[Story] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    halts: list[Halt] = field(default_factory=list)

    # What faults do

    def hit(self, what: str) -> None:
        """Note that something happens right now; the first time it is what everything is measured from."""
        self.incidents[-1].note(what)

    def recover(self) -> None:
        """Wait until writes to every partition come through to SQL again, the service's too, and note how long it took.

        Raises:
            TransientError: they do not in time.
        """
        self.probe.beat(RECOVERY_SECONDS_MAX)
        self.await_service()
        self.incidents[-1].recover()

    def load(self, seconds: float) -> None:
        """Let the service write for a while; not at all where the time is over already."""
        time.sleep(max(0.0, seconds))

    def victim(self) -> Child:
        """Return one of the flushers that hold a partition, by chance.

        Raises:
            TransientError: none does in time.
        """
        deadline = time.monotonic() + SERVICE_SECONDS_MAX
        while True:
            holders = self._holders()
            serving = [each for each in self.flushers if any(f":{each.pid}:" in holder for holder in holders)]
            if serving:
                return self.chance.choice(serving)
            if time.monotonic() > deadline:
                raise TransientError("no flusher holds a partition", "look at the flushers' logs")
            time.sleep(POLL_SECONDS)

    def _holders(self) -> set[str]:
        try:
            return {row.holder for row in status(self.app).partitions if row.holder}
        except TransientError:
            return set()  # a server that was restarted closes the connections that were idle

    def mend(self) -> None:
        """Make everything as it should be: servers and processes run, connections flow, nothing is full.

        Repeat: harmless. A process that had ended by itself is noted as trouble, and started again like any service.
        """
        for lines in filter(None, (self.redis_lines, self.sql_lines, self.link)):
            for line in lines:
                line.withdraw()
                line.latency_seconds = 0.0
                line.break_half_open()
                line.accept()
        for redis in (self.redis, self.replica):
            if isinstance(redis, OwnRedis):
                redis.mend()
        if self.sql.has_process:
            self.sql.start()
        for child in self.children():
            if child.running:
                child.thaw()
        self.keep_running()

    def keep_running(self) -> None:
        """Start again what has ended by itself, as any supervisor does; that it ended stays noted."""
        for flusher in self.flushers:
            flusher.start()
        if self.service is not None and not self.service.running:
            self.start_service()

    def own_redis(self) -> OwnRedis:
        """Return the primary as a server that may be killed.

        Raises:
            ConfigurationError: it is the user's.
        """
        if not isinstance(self.redis, OwnRedis):
            raise ConfigurationError(Need.OWN_REDIS.value, "leave --redis out")
        return self.redis

    # The service

    def start_service(self) -> None:
        """Start the service, with a journal of its own."""
        run = len(self.journals) + 1
        journal = self.directory / f"service-{run}.jsonl"
        self.journals.append(journal)
        self.journals_of_service.append(journal)
        plan = self.plan
        given = arguments(journal, run, plan.seed, plan.level, plan.rate)
        if self.service is None:
            self.service = Child("service", (), self._environment(SERVICE), self.directory / "service.log")
        journal.touch()
        self.service.start(service_command(given))

    def await_service(self) -> None:
        """Wait until writes that the service begins from now on are acknowledged on every partition.

        Raises:
            TransientError: they are not in time; the message ends with the tail of its log.
        """
        begun = time.monotonic()
        tail = Tail(self.journals_of_service[-1])
        mine: set[int] = set()
        missing = set(range(PARTITIONS))
        while missing:
            for line in tail.new():
                if isinstance(line, Intent):
                    mine.add(line.op)
                elif isinstance(line, Acknowledged) and line.op in mine:
                    missing.discard(line.partition)
            if time.monotonic() - begun > RECOVERY_SECONDS_MAX:
                log = self.service.log_tail() if self.service else ""
                raise TransientError(f"the service's writes to partitions {sorted(missing)} are not acknowledged", log)
            time.sleep(POLL_SECONDS)

    def kill_service(self) -> None:
        """Send SIGKILL to the service."""
        if self.service is not None:
            self.service.kill()

    # Building and ending

    def set_up(self) -> None:
        """Make the tables and what they begin with."""
        initialise(self.app, create_tables=True)
        with self.app.batch() as batch:
            for bank in range(BANKS):
                for account in range(ACCOUNTS):
                    batch.put(accounts, {"bank": bank, "account": account, "balance": OPENING_BALANCE})
            for counter in range(COUNTERS):
                batch.put(counters, {"id": counter, "n": 0})
        left = drain(self.app, SETUP_SECONDS_MAX)
        if left.backlog:
            raise ConfigurationError(f"{left.backlog} of the first entries do not reach SQL", "look at the database")

    def start_flushers(self) -> None:
        """Start the daemons."""
        for role in FLUSHERS:
            child = Child(role, flusher_command(), self._environment(role), self.directory / f"{role}.log")
            self.flushers.append(child)
            child.start()

    def stop(self) -> None:
        """End all processes, service first. Repeat: does nothing."""
        for child in self.children():
            child.stop()

    def children(self) -> list[Child]:
        """Return the processes."""
        return [*([self.service] if self.service else []), *self.flushers]

    def redis_url(self, role: str) -> str:
        """Return the URL by which a role reaches Redis."""
        return plain_redis_url(self.redis.url, self.redis_lines[role].port) if self.redis_lines else self.redis.url

    def sql_url(self, role: str) -> str:
        """Return the URL by which a role reaches the database."""
        return self.sql.url_through(self.sql_lines[role].port) if self.sql_lines and role in FLUSHERS else self.sql.url

    def _environment(self, role: str) -> dict[str, str]:
        return environment(self.redis_url(role), self.sql_url(role), self.namespace)


@contextlib.contextmanager
def on_stage(plan: Plan, sql: SqlServer | None = None) -> Iterator[Stage]:
    """Build the stage of a drill, and take it down again.

    Args:
        plan: what is to be played.
        sql: an empty database to play on instead of a new one.

    Raises:
        ConfigurationError: a server is missing or not usable, or tables of the drill's names have rows.
        TransientError: a server does not start.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="writebehind-drill-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        namespace = plan.namespace or f"drill_{secrets.token_hex(4)}"
        redis, replica, link = _redis(stack, plan, directory)
        database = sql or _sql(stack, plan, directory)
        needs = plan.needs
        redis_lines = Lines(stack, redis.host, redis.port, ROLES) if Need.REDIS_LINE in needs else None
        sql_lines = (
            Lines(stack, database.host, database.port, FLUSHERS)
            if Need.SQL_LINE in needs and database.kind != "sqlite"
            else None
        )
        probe_url = plain_redis_url(redis.url, redis_lines[PROBE].port) if redis_lines else redis.url
        app = make(probe_url, database.url, namespace)
        stack.callback(app.close)
        make_room(app.database, replace=plan.replace)
        if not redis.own:
            stack.callback(forget_keys, redis.url, namespace)
            stack.callback(app.close)  # before that: it tells what its reads have met with
        if not database.own:
            stack.callback(forget_rows, app.database, namespace, had_control=_has_control(app.database))
        stage = Stage(
            plan=plan,
            namespace=namespace,
            directory=directory,
            chance=random.Random(plan.seed),  # noqa: S311 - decides about faults, not about secrets
            redis=redis,
            sql=database,
            app=app,
            probe=Probe(app),
            redis_lines=redis_lines,
            sql_lines=sql_lines,
            replica=replica,
            link=link,
        )
        stack.callback(_end, stage)
        stage.set_up()
        stage.audit = Audit(app.database, intrusive=database.own)
        stage.observer = Observer(database.url, namespace)
        stack.callback(stage.observer.close)
        stage.start_flushers()
        yield stage


def _redis(
    stack: contextlib.ExitStack, plan: Plan, directory: Path
) -> tuple[OwnRedis | GivenRedis, OwnRedis | None, Lines | None]:
    if plan.redis_url is not None:
        return GivenRedis(plan.redis_url), None, None
    _, binary = find_redis(plan.redis_kind)
    primary = OwnRedis(binary, directory, plan.redis_settings)
    stack.enter_context(primary.server)
    if Need.REPLICA not in plan.needs:
        return primary, None, None
    replica = OwnRedis(binary, directory, plan.redis_settings)
    stack.enter_context(replica.server)
    link = Lines(stack, "127.0.0.1", primary.port, ("link",))
    replica.follow("127.0.0.1", link["link"].port)
    return primary, replica, link


def _sql(stack: contextlib.ExitStack, plan: Plan, directory: Path) -> SqlServer:
    if plan.database_url is not None:
        return given_sql(plan.database_url)
    return stack.enter_context(own_sql(plan.sql_kind, directory))


def _has_control(database: sa.Engine) -> bool:
    return bool(sa.inspect(database).has_table("writebehind_namespaces"))


def _end(stage: Stage) -> None:
    """End what may still run; not gracefully, the drill has asked for that before."""
    for child in stage.children():
        child.discard()
