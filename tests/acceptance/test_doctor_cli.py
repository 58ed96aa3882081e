"""``writebehind doctor`` as an operator and a script use it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from servers import Databases
from writebehind.engine.core.prediction import Fault

if TYPE_CHECKING:
    from conftest import OwnRedisFactory

SECONDS_MAX = 60
SECRET = "open-sesame"

SHOP = """
import os

import sqlalchemy as sa

from writebehind.engine import Durability, WriteBehind

accounts = sa.Table("accounts", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))
wb = WriteBehind(
    redis=os.environ["SHOP_REDIS"], database=os.environ["SHOP_DATABASE"], tables=[accounts], namespace="shop",
    partitions=2, durability=Durability[os.environ["SHOP_LEVEL"]],
)
"""


class Shop:
    """An application as the command line sees it."""

    def __init__(self, directory: Path, database: str) -> None:
        (directory / "shop.py").write_text(SHOP)
        self.directory = directory
        self.environment = {**os.environ, "SHOP_DATABASE": database, "COLUMNS": "100"}

    def call(self, redis_url: str, *arguments: str, level: str = "ACCEPTED") -> subprocess.CompletedProcess[str]:
        """Run a command of the installed command line."""
        return subprocess.run(
            [str(Path(sys.executable).parent / "writebehind"), "--app", "shop:wb", *arguments],
            cwd=self.directory,
            env={**self.environment, "SHOP_REDIS": redis_url, "SHOP_LEVEL": level},
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            check=False,
        )

    def examine(self, redis_url: str, level: str = "ACCEPTED") -> dict[str, Any]:
        """Register the namespace and return the diagnosis as JSON."""
        self.call(redis_url, "init", "--create-tables")
        done = self.call(redis_url, "doctor", "--json", level=level)
        found: dict[str, Any] = json.loads(done.stdout)
        assert found["exit_code"] == done.returncode, done.stderr
        return found


@pytest.fixture
def shop(tmp_path: Path, sqlite_url: str) -> Shop:
    """An application with an SQLite file."""
    return Shop(tmp_path, sqlite_url)


def bad(found: dict[str, Any]) -> dict[str, str]:
    """Return the severities that call for action."""
    return {
        finding["code"]: finding["severity"]
        for finding in found["findings"]
        if finding["severity"] in {"failure", "warning", "unknown"}
    }


def loss(found: dict[str, Any], fault: Fault, level: str = "ACCEPTED") -> str:
    """Return how much a fault would take."""
    (row,) = [row for row in found["predictions"] if row["fault"] == fault and row["level"] == level]
    return str(row["loss"])


def test_four_servers_get_four_answers(own_redis: "OwnRedisFactory", shop: Shop) -> None:
    """Everysec is fine and says its price, always has none, eviction and pauses of fsync end with 3."""
    found = shop.examine(own_redis().url)
    assert (found["exit_code"], found["severity"], bad(found)) == (0, "note", {})
    assert "fsync-policy" in {row["code"] for row in found["findings"] if row["severity"] == "note"}
    assert (loss(found, Fault.REDIS_CRASH), loss(found, Fault.REDIS_POWER_LOSS)) == ("window", "window")

    found = shop.examine(own_redis({"appendfsync": "always"}).url)
    assert (found["exit_code"], bad(found)) == (0, {})
    assert "fsync-policy" in {row["code"] for row in found["findings"] if row["severity"] == "ok"}
    assert (loss(found, Fault.REDIS_CRASH), loss(found, Fault.REDIS_POWER_LOSS)) == ("none", "none")

    found = shop.examine(own_redis({"maxmemory-policy": "allkeys-lru"}).url)
    assert (found["exit_code"], bad(found)) == (3, {"eviction-policy": "failure"})
    assert loss(found, Fault.REDIS_FULL) == "unflushed"

    for policy in ("everysec", "always"):
        found = shop.examine(own_redis({"no-appendfsync-on-rewrite": "yes", "appendfsync": policy}).url)
        assert (found["exit_code"], bad(found)) == (3, {"fsync-on-rewrite": "failure"})
        assert loss(found, Fault.REDIS_POWER_LOSS) == "unflushed"


def test_the_report_for_a_person(own_redis: "OwnRedisFactory", shop: Shop) -> None:
    """It begins with what is wrong and what to do, says what each fault costs at each level, and fits the terminal."""
    url = own_redis({"appendonly": "no"}).url
    shop.call(url, "init", "--create-tables")
    done = shop.call(url, "doctor", level="FSYNCED")
    assert done.returncode == 3, done.stderr
    lines = done.stdout.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(("FAILURE", "WARNING", "NOTE")))
    assert lines[0] == "namespace shop, level FSYNCED"
    assert lines[first] == "FAILURE  append-only-file"
    assert any(line.strip().startswith("-> CONFIG SET appendonly yes") for line in lines)
    # But for the database's file, which is as long as its name.
    assert max(len(line) for line in lines if "sqlite" not in line) <= 100
    for heading in ("What a fault would cost now, of accepted writes:", "... of writes at FSYNCED:"):
        assert any(line.endswith(heading.removeprefix("...")) for line in lines)
    for fault in Fault:
        assert sum(line.startswith(f"  {fault.value} ") for line in lines) == 2
    assert any("redis-crash" in line and "ALL that SQL does not have" in line for line in lines)
    refused = shop.call(url, "run", level="FSYNCED")
    assert refused.returncode == 1
    assert "Redis keeps no append-only file" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_only_doubts_end_with_4(own_redis: "OwnRedisFactory", shop: Shop) -> None:
    """Where CONFIG is hidden, nothing failed and nothing is fine."""
    found = shop.examine(own_redis({"rename-command": 'CONFIG ""', "appendfsync": "always"}).url)
    assert (found["exit_code"], found["severity"]) == (4, "unknown")
    assert set(bad(found).values()) == {"unknown"}
    assert found["redis"]["hidden"] == ["CONFIG"]
    assert loss(found, Fault.REDIS_POWER_LOSS) == "unknown"


def test_servers_that_are_away_and_passwords(own_redis: "OwnRedisFactory", shop: Shop) -> None:
    """A server that is away is a failure with exit code 3; no password is printed."""
    for url in (f"redis://:{SECRET}@127.0.0.1:1/0", own_redis({"requirepass": SECRET}).url):
        done = shop.call(url, "doctor")
        assert done.returncode == 3
        assert SECRET not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    wrong = shop.call(own_redis({"requirepass": SECRET}).url.replace(SECRET, "guess"), "doctor", "--json")
    assert bad(json.loads(wrong.stdout))["redis"] == "failure"


def test_a_daemon_refuses_tables_without_transactions(
    own_redis: "OwnRedisFactory", tmp_path: Path, mariadb_server: Databases
) -> None:
    """It ends with 1 and the remedy, and the doctor with 3."""
    server = own_redis()
    with mariadb_server.fresh() as url:
        shop = Shop(tmp_path, url)
        assert shop.call(server.url, "init", "--create-tables").returncode == 0
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE accounts ENGINE=MyISAM")
        engine.dispose()
        for command in ("run", "doctor"):
            done = shop.call(server.url, command)
            assert done.returncode == {"run": 1, "doctor": 3}[command]
            assert "ALTER TABLE accounts ENGINE=InnoDB" in done.stdout + done.stderr
