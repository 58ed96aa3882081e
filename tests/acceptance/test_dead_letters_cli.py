"""``writebehind dead-letters``, as an operator and a script use it; the letters are put into the database by hand."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from letters import damaged, place_letter
from writebehind.engine import WriteBehind
from writebehind.engine.adapters.control_tables import dead_letters as letters_table
from writebehind.engine.adapters.control_tables import partitions
from writebehind.engine.core.payload import LETTER, MEANT, Op, decode
from writebehind.flushers import initialise

SECONDS_MAX = 60.0
PARTITIONS = 4
SECRET = "open-sesame"
ERROR = "CHECK constraint failed: balance_positive"

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
        self.accounts = made["accounts"]
        self.app = WriteBehind(
            redis=redis_url, database=database, tables=[self.accounts, made["others"]], namespace=namespace,
            partitions=PARTITIONS,
        )  # fmt: skip
        self.client: Any = redis.Redis.from_url(redis_url)

    def run(self, *arguments: str, code: int = 0, answer: str = "") -> str:
        """Run the command line; check its exit code; return what it prints."""
        done = self.start(*arguments)
        out, err = done.communicate(answer, timeout=SECONDS_MAX)
        assert done.returncode == code, out + err
        assert "Traceback" not in err
        assert SECRET not in err
        return out + err if code else out

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the command line."""
        return subprocess.Popen(
            [sys.executable, "-m", "writebehind.flushers.cli", *arguments], env=self.environment, cwd=self.directory,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def letters(self, *arguments: str, code: int = 0, answer: str = "") -> str:
        """Run a command about dead letters."""
        return self.run("--app", "shop:make", "dead-letters", *arguments, code=code, answer=answer)

    def as_json(self, *arguments: str, code: int = 0) -> Any:
        """Return what a script reads."""
        return json.loads(self.letters(*arguments, "--json", code=code))

    def log(self, partition: int) -> list[tuple[int, str, str, dict[str, Any]]]:
        """Decode what stands in a partition's log."""
        entries = self.client.xrange(self.app.keys.logs[partition])
        return [mutation for _, fields in entries for mutation in decode(fields[b"p"])]

    def apply(self, partition: int) -> None:
        """Move SQL's offset to the end of a log, as a flusher that has come to it."""
        (last, _) = self.client.xrevrange(self.app.keys.logs[partition], count=1)[0]
        epoch, sequence = map(int, last.split(b"-"))
        with self.app.database.begin() as connection:
            connection.execute(
                sa.update(partitions).where(partitions.c.partition == partition).values(epoch=epoch, sequence=sequence)
            )

    def remove(self, partition: int) -> None:
        """Delete a partition's letters, as a flusher that has applied them."""
        with self.app.database.begin() as connection:
            connection.execute(sa.delete(letters_table).where(letters_table.c.partition == partition))


def put(key: int, table: str = "accounts") -> tuple[Op, str, str, dict[str, Any]]:
    """Make the put of a record."""
    values = {"balance": -5, "note": SECRET} if table == "accounts" else {}
    return Op.PUT, table, str(key), {"id": key, **values}


@pytest.fixture
def shop(redis_url: str, sqlite_url: str, namespace: str, tmp_path: Path) -> Iterator[Shop]:
    """An initialised application on SQLite, with letters."""
    made = Shop(redis_url, sqlite_url, namespace, tmp_path)
    initialise(made.app, create_tables=True)
    place_letter(made.app, 0, put(1), partition=0, ago_seconds=7200)
    place_letter(made.app, 1, (Op.PATCH, "accounts", "1", {"id": 1, "note": "b"}), partition=0, failure="")
    place_letter(made.app, 2, put(2), put(3, "others"), partition=0, error="FOREIGN KEY constraint failed")
    place_letter(made.app, 0, put(4, "others"), partition=2, failure="foreign key", retry_seconds=3600)
    damaged(made.app, 1, 2)
    yield made
    made.client.close()
    made.app.close()


def test_list(shop: Shop) -> None:
    """A table for people, JSON for scripts; filters; values in neither."""
    lines = shop.letters("list").splitlines()
    assert lines[0].split() == ["letter", "table", "key", "what", "state", "set", "aside", "tries", "error"]
    assert [line.split()[0] for line in lines[1:6]] == ["0-0", "0-1", "0-2", "2-0", "2-1"]
    assert f"poison: {ERROR}" in lines[1]
    assert lines[3].split()[:7] == ["0-2", "accounts", "2", "+1", "group", "of", "2"]
    assert lines[6] == (
        "dead letters: not readable: 1 refused, 0 waiting; accounts: 2 refused, 1 waiting; "
        "others: 0 refused, 1 retrying, 0 waiting"
    )
    assert SECRET not in "".join(lines)
    assert "and more: --limit is 2" in shop.letters("list", "--limit", "2")
    assert shop.letters("list", "--key", "99").startswith("no dead letter matches")
    found = shop.as_json("list")
    assert [letter["letter"] for letter in found["letters"]] == ["0-0", "0-1", "0-2", "2-0", "2-1"]
    assert [letter["state"] for letter in found["letters"]] == ["refused", "waiting", "refused", "retrying", "refused"]
    assert (found["more"], found["counts"]["accounts"]) == (False, {"refused": 2, "retrying": 0, "waiting": 1})
    assert SECRET not in json.dumps(found)
    for arguments, expected in (
        (("--table", "others"), ["0-2", "2-0"]),
        (("--key", "1", "--until", "1h"), ["0-0"]),
        (("--error", "foreign", "--since", "1h", "--limit", "1"), ["0-2"]),
        (("--partition", "2", "--partition", "0", "--state", "waiting", "--state", "retrying"), ["0-1", "2-0"]),
    ):
        assert [letter["letter"] for letter in shop.as_json("list", *arguments)["letters"]] == expected, arguments


def test_without_an_app(shop: Shop) -> None:
    """Tables that are named before the command are declared; those after it choose."""
    before = (*shop.urls, "--table", "accounts", "--table", "others", "dead-letters", "list", "--json")
    assert len(json.loads(shop.run(*before))["letters"]) == 5
    after = json.loads(shop.run("dead-letters", "list", *shop.urls, "--table", "others", "--json"))
    assert [letter["letter"] for letter in after["letters"]] == ["0-2", "2-0"]


def test_show(shop: Shop) -> None:
    """Why it was refused, what waits behind it, what can be done; values only where they are asked for."""
    text = shop.letters("show", "0-0")
    assert "letter 0-0: put, accounts 1" in text
    assert f"error      {ERROR}" in text
    assert "columns balance, note; --values shows the values" in text
    assert "Behind it wait (1):\n  0-1  patch, accounts 1, waiting" in text
    assert "dead-letters replay 0-0" in text
    assert SECRET not in text
    assert f"note = '{SECRET}'" in shop.letters("show", "0-0", "--values")
    assert "It waits for (1):\n  0-0  put" in shop.letters("show", "0-1")
    assert "can only be discarded" in shop.letters("show", "2-1")
    found = shop.as_json("show", "0-0")
    assert (found["behind"], found["waits_for"]) == ({"total": 1, "first": ["0-1"]}, {"total": 0, "first": []})
    assert SECRET not in json.dumps(found)
    assert shop.as_json("show", "0-0", "--values")["changes"][0]["values"]["note"] == SECRET
    assert "there is no letter 0-9" in shop.letters("show", "0-9", code=1)


def test_replay_asks_the_flushers(shop: Shop) -> None:
    """Letters by name, or what SQL refused by filters; what waits follows by itself; what nobody can read is told."""
    assert "asked for 1" in shop.letters("replay", "0-0", "--set", "balance=7", "--set", r"note=\N")
    values = {LETTER: 0, MEANT: "0123456789a0", "balance": 7, "note": None}
    assert shop.log(0) == [(Op.REPLAY, "accounts", "1", values)]
    text = shop.letters("replay", "--all")
    assert "1 that nobody can read were passed over" in text
    assert "asked for 3" in text
    assert [mutation[3][LETTER] for mutation in shop.log(0)[1:]] == [0, 2, 2]
    assert [mutation[3][LETTER] for mutation in shop.log(2)] == [0]
    found = shop.as_json("replay", "--table", "accounts", "--state", "waiting")
    assert [(each["letter"], each["became"]) for each in found["asked"]] == [("0-1", "asked")]
    text = shop.letters("replay", "0-0", "0-9")
    assert "0-9  there is no such letter" in text
    assert "asked for 1" in text
    assert "nothing was asked for" in shop.letters("replay", "--key", "99")


def test_replay_says_what_became_of_each(shop: Shop) -> None:
    """0 when all were resolved, 1 when some were refused again, 2 when no flusher has come to some."""
    text = shop.letters("replay", "0-0", "--wait", "0", code=2)
    assert "0-0  accounts 1: pending: no flusher has come to it yet" in text
    assert "1 pending" in text
    command = shop.start(*("--app", "shop:make", "dead-letters", "replay", "0-0", "0-1", "--wait", "60"))
    _until(lambda: len(shop.log(0)) == 3)
    shop.apply(0)
    out, err = command.communicate(timeout=SECONDS_MAX)
    assert command.returncode == 1, err
    assert f"0-0  accounts 1: REFUSED again: {ERROR}" in out
    assert "0-1  accounts 1: waiting: an earlier write of its key was refused" in out
    assert "1 refused, 1 waiting" in out
    command = shop.start(
        *("--app", "shop:make", "dead-letters", "replay", "--partition", "0", "--wait", "60", "--json")
    )
    _until(lambda: len(shop.log(0)) == 6)
    shop.remove(0)
    shop.apply(0)
    out, err = command.communicate(timeout=SECONDS_MAX)
    assert command.returncode == 0, err
    assert [each["became"] for each in json.loads(out)["asked"]] == ["resolved", "resolved"]


def test_discard_says_what_is_lost_and_asks(shop: Shop) -> None:
    """Nothing happens until it is confirmed; with --yes nobody is asked."""
    text = shop.letters("discard", "--table", "accounts", answer="n\n", code=1)
    assert "To be given up (2):" in text
    assert "0-0  put, accounts 1, refused" in text
    assert "SQL never gets these: 1 group of 2 of accounts, 1 put of accounts." in text
    assert "Give them up for good?" in text
    assert "Aborted" in text
    shop.letters("discard", "0-0", code=1)
    assert shop.log(0) == []
    assert "asked for 1" in shop.letters("discard", "0-0", answer="y\n")
    assert "asked for 4" in shop.letters("discard", "--all", "--yes")
    everything = ("--state", "refused", "--state", "waiting", "--state", "retrying", "--yes")
    found = shop.as_json("discard", *everything)
    assert [each["letter"] for each in found["asked"]] == ["0-2", "0-1", "0-0", "2-1", "2-0"]
    assert [mutation[3][LETTER] for mutation in shop.log(0)][-4:] == [2, 2, 1, 0]
    assert "nothing was asked for" in shop.letters("discard", "--key", "99", answer="y\n")
    shop.apply(0)
    shop.remove(0)
    assert "there is no such letter" in shop.letters("discard", "0-0", "--yes", "--wait", "5")


def test_a_killed_command_may_be_repeated(shop: Shop) -> None:
    """What it had asked for is whole in the log; the letters are the flushers'."""
    for place in range(3, 700):
        place_letter(shop.app, place, put(place), partition=0)
    command = shop.start("--app", "shop:make", "dead-letters", "discard", "--all", "--yes")
    _until(lambda: bool(shop.client.exists(shop.app.keys.logs[0])))
    command.kill()
    command.communicate(timeout=SECONDS_MAX)
    asked = shop.log(0)
    assert asked
    for _, table, key, values in asked:
        assert (values[LETTER], table) == (2, "others") or values[LETTER] == int(key) or values[LETTER] < 3
    assert len(shop.as_json("list", "--limit", "5000")["letters"]) == 702
    assert "asked for 701" in shop.letters("discard", "--all", "--yes")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("replay",), 2, "name letters, or choose them by filters, or give --all"),
        (("discard", "--yes"), 2, "name letters, or choose them by filters, or give --all"),
        (("replay", "0-0", "--all"), 2, "not both"),
        (("discard", "0-0", "--key", "1"), 2, "not both"),
        (("replay", "--all", "--set", "note=x"), 2, "--set goes with one letter"),
        (("replay", "0-0", "--set", "note"), 2, "COLUMN=VALUE"),
        (("replay", "0-0", "--set", "note=a", "--set", "note=b"), 2, "given twice"),
        (("replay", "0-0", "--set", f"balance={SECRET}"), 1, "accounts.balance is integer"),
        (("replay", "0-0", "--set", "id=9"), 1, "belongs to the key"),
        (("replay", "0-2", "--set", "note=x"), 1, "an atomic group, which cannot be corrected"),
        (("replay", "2-1"), 1, "it can only be discarded"),
        (("replay", "2-1", "--set", "note=x"), 1, "it can only be discarded"),
        (("replay", "x"), 1, "'x' is no letter"),
        (("discard", "--all", "--json"), 2, "--json goes with --yes"),
        (("list", "--since", "soon"), 2, "'soon' is no time"),
        (("list", "--state", "sad"), 2, "'sad' is not one of"),
    ],
)
def test_wrong_usage_is_named(shop: Shop, arguments: tuple[str, ...], code: int, said: str) -> None:
    """Nothing is written then."""
    assert said in shop.letters(*arguments, code=code)
    assert shop.log(0) == shop.log(2) == []


def test_other_commands_tell_of_dead_letters(shop: Shop) -> None:
    """The status counts them, recover says what to do, verify tells them from what is wrong."""
    text = shop.run("--app", "shop:make", "status")
    assert "dead letters of accounts: 2 refused, 1 waiting; see 'dead-letters list'" in text
    assert "dead letters of no known table: 1 refused, 0 waiting" in text
    told = json.loads(shop.run("--app", "shop:make", "status", "--json"))["dead_letters"]
    assert told["others"] == {"refused": 0, "retrying": 1, "waiting": 0}
    assert "SQL refused writes: 2 refused, 1 waiting" in shop.run("--app", "shop:make", "recover", code=3)
    shop.app.put(shop.accounts, {"id": 1, "balance": 1})
    number = next(number for number in range(PARTITIONS) if shop.log(number))
    shop.apply(number)
    place_letter(shop.app, 50, put(1), partition=number)
    assert "1 dead-lettered: SQL refused a change of them" in shop.run("--app", "shop:make", "verify")
    text = shop.run("--app", "shop:make", "drain", "--timeout", "60")
    assert text.startswith("drained\n")
    assert "dead letters of accounts: " in text


def _until(happened: Any) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
