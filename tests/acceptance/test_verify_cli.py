"""``writebehind verify``, as an operator and a script use it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from writebehind.engine import WriteBehind
from writebehind.engine.core.partitioning import partition_of
from writebehind.flushers import FlusherSettings, drain, initialise

SECONDS_MAX = 60.0
PARTITIONS = 4
SECRET = "open-sesame"

MODULE = """
import os

import sqlalchemy as sa

from writebehind.engine import WriteBehind

metadata = sa.MetaData()
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("balance", sa.BigInteger, nullable=False),
    sa.Column("note", sa.String(40)),
)
others = sa.Table(
    "others", metadata, sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False)
)


def make():
    return WriteBehind(
        redis=os.environ["SHOP_REDIS"],
        database=os.environ["SHOP_DATABASE"],
        tables=[accounts, others],
        namespace=os.environ["SHOP_NAMESPACE"],
        partitions=4,
    )
"""


class Shop:
    """An application as the command line sees it."""

    def __init__(self, redis_url: str, database: str, namespace: str, directory: Path) -> None:
        (directory / "shop.py").write_text(MODULE)
        self.directory = directory
        self.environment = {
            **os.environ,
            "SHOP_REDIS": redis_url,
            "SHOP_DATABASE": database,
            "SHOP_NAMESPACE": namespace,
        }
        self.urls = [
            *("--redis", redis_url, "--database", database, "--namespace", namespace),
            *("--partitions", str(PARTITIONS)),
        ]
        made: dict[str, Any] = {"sa": sa}
        exec(compile(MODULE, "shop.py", "exec"), made)  # noqa: S102 - the very module that the command loads
        self.accounts, self.others = made["accounts"], made["others"]
        self.app = WriteBehind(
            redis=redis_url, database=database, tables=[self.accounts, self.others], namespace=namespace,
            partitions=PARTITIONS,
        )  # fmt: skip
        self.client: Any = redis.Redis.from_url(redis_url)

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run the command line; check its exit code."""
        done = subprocess.run(
            [sys.executable, "-m", "writebehind.flushers.cli", *arguments],
            env=self.environment, cwd=self.directory, capture_output=True, text=True, timeout=SECONDS_MAX, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def verify(self, *arguments: str, code: int = 0) -> str:
        """Run ``verify`` on the module; return what it prints."""
        return self.run("--app", "shop:make", "verify", *arguments, code=code).stdout

    def as_json(self, *arguments: str, code: int = 0) -> Any:
        """Return what a script reads."""
        return json.loads(self.verify("--json", *arguments, code=code))

    def fill(self) -> None:
        """Write some records and flush them."""
        with self.app.batch() as batch:
            for key in range(20):
                batch.put(self.accounts, {"id": key, "balance": key, "note": f"note {key}"})
            batch.put(self.others, {"id": 1})
        self.drain()

    def drain(self) -> None:
        """Flush what there is."""
        assert drain(self.app, SECONDS_MAX, FlusherSettings(linger_seconds=0)).backlog == 0

    def name(self, key: int) -> str:
        """Return the name of an account's hash."""
        return self.app.keys.record(partition_of(str(key), PARTITIONS), "accounts", str(key))

    def damage(self) -> None:
        """Change a row and a hash by hand."""
        with self.app.database.begin() as connection:
            connection.execute(sa.update(self.accounts).where(self.accounts.c.id == 3).values(note=SECRET))
        self.client.hset(self.name(4), "balance", "77")


@pytest.fixture
def shop(redis_url: str, sqlite_url: str, namespace: str, tmp_path: Path) -> Iterator[Shop]:
    """An initialised application on SQLite with flushed records."""
    made = Shop(redis_url, sqlite_url, namespace, tmp_path)
    initialise(made.app, create_tables=True)
    made.fill()
    yield made
    made.client.close()
    made.app.close()


def test_what_agrees_ends_with_0(shop: Shop) -> None:
    """Also where changes are on their way, with code or without, options before the command or after it."""
    assert "21 agree" in shop.verify()
    shop.app.patch(shop.accounts, 1, {"balance": 5})
    found = shop.as_json()
    assert found["sound"] is True
    assert (found["counts"]["agrees"], found["counts"]["pending"], found["repair"]) == (20, 1, None)
    assert sum(log["backlog"] for log in found["logs"]) == 1
    assert "1 entries on their way to SQL" in shop.verify()
    for arguments in (
        ("verify", "--app", "shop:make", "--table", "accounts"),
        ("--app", "shop:make", "--table", "accounts", "verify"),
        ("verify", *shop.urls, "--table", "accounts"),
        (*shop.urls, "--table", "accounts", "verify"),
    ):
        assert json.loads(shop.run(*arguments, "--json").stdout)["records"] == 20


def test_what_differs_is_named_and_ends_with_3(shop: Shop) -> None:
    """Keys and columns are shown; values only where they were asked for."""
    shop.damage()
    text = shop.verify(code=3)
    assert "2 DIVERGED" in text
    assert f"{shop.name(3)} (partition {partition_of('3', PARTITIONS)}, full, " in text
    assert "differs in note" in text
    assert "differs in balance" in text
    assert SECRET not in text
    assert f"note: Redis has 'note 3', SQL has {SECRET!r}" in shop.verify("--show-values", code=3)
    found = shop.as_json("--limit", "1", code=3)
    assert (found["counts"]["diverged"], len(found["findings"])) == (2, 1)
    assert "values" not in found["findings"][0]
    assert "and 1 more" in shop.verify("--limit", "1", code=3)
    shown = shop.as_json("--show-values", code=3)["findings"]
    assert {tuple(each["columns"]): each["values"] for each in shown} == {
        ("note",): {"note": ["note 3", SECRET]},
        ("balance",): {"balance": [77, 4]},
    }


def test_foreign_keys_and_gaps_end_with_3(shop: Shop) -> None:
    """They are listed; with --table, keys of tables that nobody declares are passed over."""
    foreign = f"{shop.app.keys.stems[0]}stranger:1"
    shop.client.set(foreign, "x")
    assert f"FOREIGN    {foreign}: no declared table is called so" in shop.verify(code=3)
    shop.verify("--table", "accounts")
    shop.client.delete(foreign)
    receipt = shop.app.patch(shop.accounts, 1, {"balance": 5})
    shop.client.xdel(shop.app.keys.logs[receipt.partition], str(receipt.entry_id))
    text = shop.verify(code=3)
    assert "1 LOST: their last change will never be in SQL" in text
    assert f"partition {receipt.partition}: LOST: 1 entries between" in text


@pytest.mark.parametrize("winner", ["redis", "sql"])
def test_repair_is_dry_until_told_otherwise(shop: Shop, winner: str) -> None:
    """It says what it would do and ends with 3; with --yes it does it and ends with 0; then all agree."""
    shop.damage()
    text = shop.verify("--repair", winner, code=3)
    done = (0, 2) if winner == "redis" else (2, 0)
    assert f"repair: {done[0]} records would be removed from Redis, {done[1]} would be written again" in text
    assert "nothing was changed; add --yes to do it" in text
    assert shop.as_json(code=3)["counts"]["diverged"] == 2
    repaired = shop.as_json("--repair", winner, "--yes")["repair"]
    assert (repaired["removed"], repaired["rewritten"], repaired["done"]) == (*done, True)
    shop.drain()
    assert shop.as_json()["counts"]["diverged"] == 0
    assert shop.app.get(shop.accounts, 3) == {"id": 3, "balance": 3, "note": "note 3" if winner == "redis" else SECRET}
    assert shop.app.get(shop.accounts, 4) == {"id": 4, "balance": 77 if winner == "redis" else 4, "note": "note 4"}


def test_a_repair_that_leaves_something_ends_with_3(shop: Shop) -> None:
    """Redis cannot win with a hash that does not say what to write."""
    shop.client.hset(shop.name(4), "balance", "many")
    text = shop.verify("--repair", "redis", "--yes", code=3)
    assert "1 cannot be repaired so" in text
    assert "0 cannot" not in shop.verify("--repair", "sql", "--yes")
    shop.verify()


def test_less_can_be_looked_at(shop: Shop) -> None:
    """A sample, which the report names, some tables, some partitions."""
    found = shop.as_json("--sample", "5")
    assert (found["sample"], found["totals"], found["records"]) == (5, {"accounts": 20, "others": 1}, 6)
    text = shop.verify("--sample", "5")
    assert "at most 5 of each table, chosen at random" in text
    assert "table accounts has 20 records in Redis" in text
    assert shop.as_json("--table", "others")["records"] == 1
    parts = [shop.as_json("--partition", str(number))["records"] for number in range(PARTITIONS)]
    assert sum(parts) == 21
    both = shop.as_json("--partition", "0", "--partition", "1")
    assert (both["records"], [log["partition"] for log in both["logs"]]) == (parts[0] + parts[1], [0, 1])


def test_progress_keeps_out_of_the_way(shop: Shop) -> None:
    """Bars go to standard error, on a terminal or where they are asked for."""
    command = ("--app", "shop:make", "verify", "--json")
    assert "keys" in shop.run(*command, "--progress").stderr
    assert json.loads(shop.run(*command, "--progress", "--sample", "3").stdout)["sound"]
    assert "keys" not in shop.run(*command).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--table", "nothing"), 1, "table nothing is not declared"),
        (("--partition", "4"), 1, "choose from 0 to 3"),
        (("--yes",), 2, "--yes goes with --repair"),
        (("--repair", "both"), 2, "'both' is not one of 'redis', 'sql'"),
        (("--sample", "0"), 2, "--sample"),
    ],
)
def test_wrong_usage_is_named(shop: Shop, arguments: tuple[str, ...], code: int, said: str) -> None:
    """Nothing is looked at then."""
    assert said in shop.run("--app", "shop:make", "verify", *arguments, code=code).stderr


def test_errors_end_with_1(shop: Shop, tmp_path: Path) -> None:
    """Servers that are away or not initialised are named, and passwords are not."""
    shop.environment["SHOP_DATABASE"] = f"sqlite:///{tmp_path / 'nothing'}"
    assert "writebehind init" in shop.run("--app", "shop:make", "verify", code=1).stderr
    shop.environment["SHOP_REDIS"] = f"redis://:{SECRET}@127.0.0.1:1/0"
    said = shop.run("--app", "shop:make", "verify", code=1).stderr
    assert "Redis cannot be reached" in said
    assert SECRET not in said
