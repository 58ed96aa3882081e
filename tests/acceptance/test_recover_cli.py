"""``writebehind recover``: what an operator reads at 3 a.m., and what it does."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import redis
import sqlalchemy as sa

import servers
from writebehind.engine import EngineSettings, WriteBehind
from writebehind.engine.embedded import EmbeddedRedis
from writebehind.flushers import drain, initialise

if TYPE_CHECKING:
    from conftest import OwnRedisFactory

DEADLINE_SECONDS = 15.0

metadata = sa.MetaData()
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("balance", sa.Integer, nullable=False, default=0),
)

SECONDS_MAX = 60.0

Result = subprocess.CompletedProcess[str]
Run = Callable[..., Result]


@pytest.fixture
def server(own_redis: "OwnRedisFactory") -> EmbeddedRedis:
    """A Redis whose file can be cut."""
    started = own_redis({"appendfsync": "no"}, binary=servers.newest_redis_binary())
    assert isinstance(started, EmbeddedRedis)
    return started


@pytest.fixture
def app(server: EmbeddedRedis, sqlite_url: str, namespace: str) -> Any:
    """An engine that keeps nothing, as after the end of its process."""
    with WriteBehind(
        redis=server.url,
        database=sqlite_url,
        tables=[accounts],
        namespace=namespace,
        partitions=1,
        settings=EngineSettings(retained_bytes_max=0),
    ) as made:
        initialise(made, create_tables=True)
        yield made


@pytest.fixture
def run(app: WriteBehind, server: EmbeddedRedis, sqlite_url: str, namespace: str) -> Run:
    """Run the command on the engine's namespace."""

    def recover(*arguments: str) -> Result:
        target = ["--redis", server.url, "--database", sqlite_url, "--table", "accounts", "--namespace", namespace]
        command = [sys.executable, "-m", "writebehind.flushers.cli", *target, "--partitions", "1", "recover"]
        result = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=SECONDS_MAX, check=False
        )
        app.links.drop_idle()
        return result

    return recover


def lose(server: EmbeddedRedis, size: int) -> None:
    """Kill the server, cut its file, start it again."""
    server.kill()
    (newest,) = server.directory.glob("data/appendonlydir/*.incr.aof")
    with newest.open("r+b") as file:
        file.truncate(size)
    server.start()


def size_of(server: EmbeddedRedis) -> int:
    """How long its file is."""
    (newest,) = server.directory.glob("data/appendonlydir/*.incr.aof")
    return newest.stat().st_size


def stored(app: WriteBehind) -> dict[int, int]:
    """What SQL has."""
    with app.database.connect() as connection:
        return {row.id: row.balance for row in connection.execute(sa.select(accounts))}


def test_nothing_is_wrong(app: WriteBehind, run: Run) -> None:
    """A backlog is nothing wrong."""
    app.put(accounts, {"id": 1, "balance": 1})
    result = run()
    assert (result.returncode, "nothing is wrong" in result.stdout) == (0, True)


def test_redis_behind_sql(app: WriteBehind, server: EmbeddedRedis, run: Run) -> None:
    """The dry run says what happens and changes nothing; with --yes it happens."""
    app.put(accounts, {"id": 1, "balance": 1})
    drain(app, DEADLINE_SECONDS)
    size = size_of(server)
    app.increment(accounts, 1, {"balance": 1})
    drain(app, DEADLINE_SECONDS)
    lose(server, size)
    for arguments in ((), ("--dry-run",)):
        result = run(*arguments)
        assert result.returncode == 3
        assert "Redis was rolled back" in result.stdout
        assert "Nothing was changed" in result.stdout
    codes = {concern["code"] for concern in json.loads(run("--json").stdout)["concerns"]}
    assert codes == {"new-history", "redis-behind"}
    assert run("--yes").returncode == 0
    assert "nothing is wrong" in run().stdout
    assert app.get(accounts, 1) == {"id": 1, "balance": 2}


@pytest.mark.parametrize("damage", ["group", "trimmed", "emptied"])
def test_damage_by_hand(app: WriteBehind, server: EmbeddedRedis, run: Run, damage: str) -> None:
    """Each damage is named; what can be brought back is."""
    app.put(accounts, {"id": 1, "balance": 1})
    drain(app, DEADLINE_SECONDS)
    app.put(accounts, {"id": 2, "balance": 2})
    with redis.Redis.from_url(server.url) as plain:
        client: Any = plain
        if damage == "group":
            client.xgroup_destroy(app.keys.logs[0], "flushers")
        elif damage == "trimmed":
            client.xtrim(app.keys.logs[0], maxlen=0)
        else:
            client.delete(app.keys.logs[0], app.keys.metas[0])
    code = {"group": "group-missing", "trimmed": "entries-missing", "emptied": "log-emptied"}[damage]
    report = json.loads(run("--json").stdout)
    assert code in {concern["code"] for concern in report["concerns"]}
    result = run("--from-cache", "--yes")
    assert result.returncode == (3 if damage == "trimmed" else 0), result.stdout
    assert stored(app) == {1: 1, 2: 2}
    assert "nothing is wrong" in run().stdout


def test_contradicting_options(run: Run) -> None:
    """--yes and --dry-run are wrong usage."""
    assert run("--yes", "--dry-run").returncode == 2
