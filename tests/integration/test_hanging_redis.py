"""What is accepted, and then Redis tells no more of it: who waits is told so in time.

And never that nothing was written.
"""

# ruff: noqa: PT012 - a batch raises when its block ends

import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import redis
import sqlalchemy as sa

from writebehind.engine import (
    Durability,
    DurabilityTimeout,
    EngineSettings,
    WriteBehind,
    WritePolicy,
    WriteThroughTimeout,
)
from writebehind.flushers import FlusherSettings, drain, initialise

if TYPE_CHECKING:
    from conftest import OwnRedisFactory

DEADLINE_SECONDS = 20.0

accounts = sa.Table(
    "accounts",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("balance", sa.BigInteger, nullable=False, default=0),
)


def test_a_batch_ends_in_time_though_redis_answers_nothing(
    own_redis: "OwnRedisFactory", sqlite_url: str, namespace: str
) -> None:
    """Of many partitions each look takes as long as Redis may; they are not all looked at then."""
    partitions, server = 16, own_redis({})
    settings = EngineSettings(write_timeout_seconds=2.0, redis_timeout_seconds=1.0)
    with WriteBehind(
        redis=server.url, database=sqlite_url, tables=[accounts], namespace=namespace, partitions=partitions,
        settings=settings,
    ) as engine:  # fmt: skip
        initialise(engine, create_tables=True)
        receipts = []
        freezer = threading.Timer(1.0, os.kill, (server.pid, signal.SIGSTOP))
        begun = time.monotonic()
        try:
            with pytest.raises(DurabilityTimeout), engine.batch(durability=Durability.PERSISTED) as batch:
                receipts += [batch.put(accounts, {"id": key}) for key in range(200)]
                freezer.start()
            took_seconds = time.monotonic() - begun
        finally:
            freezer.join()
            os.kill(server.pid, signal.SIGCONT)
        assert {receipt.durability for receipt in receipts} == {Durability.ACCEPTED}
        assert took_seconds < partitions * settings.redis_timeout_seconds, "not one look after the other"
        drain(engine, DEADLINE_SECONDS, FlusherSettings(linger_seconds=0))


@pytest.mark.parametrize("way", ["durability", "policy"])
def test_a_meta_hash_that_is_damaged_after_the_write(redis_url: str, sqlite_url: str, namespace: str, way: str) -> None:
    """The error says that the write is accepted, not that it was refused: nobody writes it again."""
    given: dict[str, Any] = (
        {"durability": Durability.PERSISTED} if way == "durability" else {"policy": WritePolicy.WRITE_THROUGH}
    )
    late = DurabilityTimeout if way == "durability" else WriteThroughTimeout
    with (
        WriteBehind(
            redis=redis_url, database=sqlite_url, tables=[accounts], namespace=namespace, partitions=1,
            settings=EngineSettings(write_timeout_seconds=1.0),
        ) as engine,
        redis.Redis.from_url(redis_url) as client,
    ):  # fmt: skip
        initialise(engine, create_tables=True)
        engine.put(accounts, {"id": 1})
        client.hset(engine.keys.metas[0], "watermark", "nonsense")
        with pytest.raises(late, match="the write is accepted, but not PERSISTED in time: the meta hash"):
            engine.increment(accounts, 1, {"balance": 5}, **given)
        with pytest.raises(late, match="accepted"), engine.batch(**given) as batch:
            receipt = batch.increment(accounts, 1, {"balance": 5})
        assert receipt.durability is Durability.ACCEPTED
        assert client.xlen(engine.keys.logs[0]) == 3
