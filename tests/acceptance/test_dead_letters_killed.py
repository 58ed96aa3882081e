"""The operator's command and the flusher are killed while letters are replayed; both are started again."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from writebehind.engine import WriteBehind
from writebehind.flushers import FlusherSettings, drain, initialise
from writebehind.recovery import verify
from writebehind.recovery.dead_letters import counts
from writebehind.recovery.letters import LetterCounts

SECONDS_MAX = 60.0
ACCOUNTS = range(1, 301)

MODULE = """
import os

import sqlalchemy as sa

from writebehind.engine import WriteBehind

accounts = sa.Table(
    "accounts",
    sa.MetaData(),
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("balance", sa.BigInteger, sa.CheckConstraint("balance >= 0", name="positive"), nullable=False),
)
wb = WriteBehind(
    redis=os.environ["SHOP_REDIS"],
    database=os.environ["SHOP_DATABASE"],
    tables=[accounts],
    namespace=os.environ["SHOP_NAMESPACE"],
    partitions=4,
)
"""


def test_both_are_killed(redis_url: str, postgresql_url: str, namespace: str, tmp_path: Path) -> None:
    """Every write is applied once and in its order, however often it is asked for and whoever dies."""
    (tmp_path / "shop.py").write_text(MODULE)
    environment = {
        **os.environ, "SHOP_REDIS": redis_url, "SHOP_DATABASE": postgresql_url, "SHOP_NAMESPACE": namespace,
    }  # fmt: skip
    accounts = sa.Table(
        "accounts",
        sa.MetaData(),
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("balance", sa.BigInteger, sa.CheckConstraint("balance >= 0", name="positive"), nullable=False),
    )

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "writebehind.flushers.cli", "--app", "shop:wb", *arguments], env=environment,
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    app = WriteBehind(redis=redis_url, database=postgresql_url, tables=[accounts], namespace=namespace, partitions=4)
    with app:
        initialise(app, create_tables=True)
        for change in ("put", "increment"):
            with app.batch() as batch:
                for key in ACCOUNTS:
                    if change == "put":
                        batch.put(accounts, {"id": key, "balance": -1000 * key})
                    else:
                        batch.increment(accounts, key, {"balance": 1})
            drain(app, SECONDS_MAX, FlusherSettings(linger_seconds=0))
        assert counts(app) == {"accounts": LetterCounts(refused=300, waiting=300)}
        with app.database.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE accounts DROP CONSTRAINT positive")
        # Small batches: so that there is a middle to be killed in.
        flusher = start("run", "--batch-entries-max", "5", "--lease-ttl-seconds", "1")
        operator = start("dead-letters", "replay", "--all")
        _until(lambda: _left(app) < 600)
        operator.kill()
        flusher.kill()
        left = _left(app)
        for process in (operator, flusher):
            process.communicate(timeout=SECONDS_MAX)
        flusher = start("run", "--lease-ttl-seconds", "1")
        operator = start("dead-letters", "replay", "--all", "--wait", str(SECONDS_MAX))
        try:
            said, _ = operator.communicate(timeout=SECONDS_MAX)
            assert operator.returncode == 0, said
            _until(lambda: _left(app) == 0)
        finally:
            flusher.terminate()
            said, _ = flusher.communicate(timeout=SECONDS_MAX)
        assert flusher.returncode == 0, said
        assert left < 600
        with app.database.connect() as connection:
            assert {row.id: row.balance for row in connection.execute(sa.select(accounts))} == {
                key: 1 - 1000 * key for key in ACCOUNTS
            }
        assert verify(app).sound
        assert {key: record and record["balance"] for key, record in app.get_many(accounts, ACCOUNTS).items()} == {
            key: 1 - 1000 * key for key in ACCOUNTS
        }


def _left(app: WriteBehind) -> int:
    return sum(count.refused + count.waiting for count in counts(app).values())


def _until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
