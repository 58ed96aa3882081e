"""The fixtures give what they promise."""

import threading
import time
from typing import TYPE_CHECKING

import pytest
import redis
import sqlalchemy as sa

if TYPE_CHECKING:
    from conftest import OwnRedisFactory

seen_databases: set[str] = set()


@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_has_an_empty_database(database_url: str, turn: int) -> None:
    """No table is there, whatever ran before, and the URL is new."""
    assert database_url not in seen_databases
    seen_databases.add(database_url)
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)
    assert sa.inspect(engine).get_table_names() == []
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE t{turn} (id INTEGER PRIMARY KEY)")


def test_the_shared_redis_answers(redis_url: str, namespace: str) -> None:
    """A client reaches it under the URL."""
    with redis.Redis.from_url(redis_url) as client:
        assert client.set(f"wb:{{{namespace}:00}}:key", "value")


def test_an_own_redis_can_be_killed(own_redis: "OwnRedisFactory") -> None:
    """It comes back on the same URL with what was fsynced."""
    server = own_redis({"appendfsync": "always"})
    with redis.Redis.from_url(server.url) as client:
        client.set("key", "value")
    server.kill()
    with redis.Redis.from_url(server.url) as client, pytest.raises(redis.ConnectionError):
        client.ping()
    server.start()
    with redis.Redis.from_url(server.url) as client:
        assert client.get("key") == b"value"
    server.restart()
    with redis.Redis.from_url(server.url) as client:
        assert client.get("key") == b"value"


@pytest.mark.leaks_threads(reason="what the marker allows")
def test_a_marked_test_may_leave_a_thread() -> None:
    """The leak check lets a marked test be."""
    threading.Thread(target=time.sleep, args=(0.3,), daemon=True).start()
