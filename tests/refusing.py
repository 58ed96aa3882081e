"""Accounts, orders and events whose constraints refuse some rows, and an engine for them."""

import time
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from writebehind.engine import DeadLetter, Receipt, WriteBehind
from writebehind.engine.adapters.control_tables import dead_letters
from writebehind.engine.core.composing import Draft, Entry
from writebehind.engine.core.payload import LETTER, MEANT, Op, encode
from writebehind.flushers import FlusherSettings, Status, drain, initialise

__all__ = ["DEADLINE_SECONDS", "SETTINGS", "World", "accounts", "events", "orders", "until"]

DEADLINE_SECONDS = 60.0
SETTINGS = FlusherSettings(linger_seconds=0, lease_ttl_seconds=1, foreign_key_seconds=0)

metadata = sa.MetaData()
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("owner", sa.String(20)),
    sa.Column("balance", sa.Integer, nullable=False, default=0),
    sa.Column("limited", sa.Integer, sa.CheckConstraint("limited < 1000"), nullable=False, default=0),
    sa.Column("name", sa.String(20), unique=True),
)
orders = sa.Table(
    "orders",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("account", sa.ForeignKey("accounts.id"), nullable=False),
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String(20), sa.CheckConstraint("kind <> 'bad'"), nullable=False),
)


class World:
    """An engine, and what its flushers told it."""

    def __init__(self, redis_url: str, database: str, namespace: str, partitions: int) -> None:
        self.told: list[DeadLetter] = []
        self.redis_url = redis_url
        self.app = WriteBehind(
            redis=redis_url,
            database=database,
            tables=[accounts, orders, events],
            namespace=namespace,
            partitions=partitions,
            on_dead_letter=self.told.append,
        )
        initialise(self.app, create_tables=True)
        self.put(1)

    def put(self, key: int, **values: Any) -> Receipt:
        """Write an account."""
        return self.app.put(accounts, {"id": key, "owner": "Ada", "balance": key, "name": f"n{key}", **values})

    def drain(self, settings: FlusherSettings = SETTINGS) -> Status:
        """Flush everything; nothing halts."""
        last = drain(self.app, DEADLINE_SECONDS, settings)
        assert (last.backlog, last.halted, last.lost_entries) == (0, [], 0)
        return last

    def rows(self, table: sa.Table = accounts) -> dict[int, Any]:
        """What SQL has."""
        with self.app.database.connect() as connection:
            return {row.id: row for row in connection.execute(sa.select(table))}

    def balances(self) -> dict[int, int]:
        """The accounts' balances."""
        return {key: row.balance for key, row in self.rows().items()}

    def letters(self) -> list[tuple[str, str]]:
        """Key and failure of each letter, in order."""
        known = dead_letters.c
        with self.app.database.connect() as connection:
            found = connection.execute(sa.select(dead_letters).order_by(known.partition, known.place)).all()
        return [(row.record_key, row.failure) for row in found]

    def resolve(self, op: Op, key: str, number: int = 0, **values: Any) -> None:
        """Append what replays or discards a letter of a key, as the commands do."""
        known = dead_letters.c
        with self.app.database.connect() as connection:
            letter = connection.execute(
                sa.select(dead_letters).where(known.record_key == key).order_by(known.place)
            ).all()[number]
        payload = encode(op, letter.table_name, key, {LETTER: letter.place, MEANT: letter.mutation_id, **values})
        record = self.app.keys.record(letter.partition, letter.table_name, key)
        entry = Entry(letter.partition, payload, [record], ["n", 1, letter.table_name], 1, (op, "", "", {}))
        appender = self.app._appender
        appender.append(Draft(letter.partition).add(entry).call(appender.call_id()))


def until(condition: Callable[[], bool]) -> None:
    """Wait for something."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
