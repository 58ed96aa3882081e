"""The embedded servers start, answer, survive SIGKILL, and leave nothing behind."""

import gc
import os
import signal
import socket
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa

from servers import refuse
from writebehind.engine.embedded import EmbeddedDatabase, EmbeddedMariaDB, EmbeddedPostgreSQL, EmbeddedRedis
from writebehind.engine.errors import ConfigurationError


@pytest.fixture(params=[EmbeddedPostgreSQL, EmbeddedMariaDB], ids=["postgresql", "mariadb"])
def database_class(request: pytest.FixtureRequest) -> type[EmbeddedDatabase]:
    """Each SQL server whose binaries are here."""
    kind: type[EmbeddedDatabase] = request.param
    try:
        kind()
    except ConfigurationError as error:
        refuse(str(error))
    return kind


def test_redis_keeps_its_data_over_sigkill_and_restart() -> None:
    """What appendfsync always acknowledged is there after SIGKILL, on the same port."""
    with EmbeddedRedis(settings={"appendfsync": "always"}) as server:
        url, pid = server.url, server.pid
        with redis.Redis.from_url(url) as client:
            client.set("key", "value")
            assert client.config_get("save")["save"] == ""
        server.kill()
        assert not server.running
        server.start()
        assert (server.url, server.running) == (url, True)
        assert server.pid != pid
        with redis.Redis.from_url(url) as client:
            assert client.get("key") == b"value"
            assert client.config_get("appendfsync")["appendfsync"] == "always"
        server.restart()
        with redis.Redis.from_url(url) as client:
            assert client.get("key") == b"value"


def test_redis_fsyncs_every_second_by_default() -> None:
    """The append-only file is on, with the setting that production mostly has."""
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        assert client.config_get("append*")["appendonly"] == "yes"
        assert client.config_get("append*")["appendfsync"] == "everysec"


def test_redis_with_a_password_gives_it_in_its_url() -> None:
    """A server with requirepass is ready, and its URL logs in."""
    with EmbeddedRedis(settings={"requirepass": "secret"}) as server, redis.Redis.from_url(server.url) as client:
        assert client.ping()


def test_a_temporary_directory_goes_and_a_given_one_stays(tmp_path: Path) -> None:
    """Only what the server made by itself is removed."""
    with EmbeddedRedis() as server:
        temporary = server.directory
        assert temporary.is_dir()
    assert not temporary.exists()
    with EmbeddedRedis(directory=tmp_path / "redis") as server, redis.Redis.from_url(server.url) as client:
        client.set("key", "value")
    with EmbeddedRedis(directory=tmp_path / "redis") as server, redis.Redis.from_url(server.url) as client:
        assert client.get("key") == b"value"


def test_a_forgotten_server_ends_with_its_object() -> None:
    """A server that nobody stops ends when its object is collected."""
    server = EmbeddedRedis().start()
    pid, directory = server.pid, server.directory
    del server
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not directory.exists()


def test_a_frozen_server_can_be_stopped() -> None:
    """A drill may leave a server under SIGSTOP; stop() still ends it gracefully."""
    with EmbeddedRedis() as server:
        os.kill(server.pid, signal.SIGSTOP)
    assert not server.running


def test_a_server_that_cannot_start_shows_its_log() -> None:
    """A wrong setting is reported with what the server said about it, and nothing stays behind."""
    server = EmbeddedRedis(settings={"no-such-setting": "1"})
    with pytest.raises(ConfigurationError, match="no-such-setting"):
        server.start()
    directory = server.directory
    server.stop()
    assert not directory.exists()


def test_a_port_that_is_taken_is_reported() -> None:
    """A given port that another process listens on is an error in time, not a hang."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = EmbeddedRedis(port=taken.getsockname()[1], start_seconds_max=0.5)
        with pytest.raises(ConfigurationError, match="in use"):
            server.start()
        server.stop()


def test_sql_server_survives_sigkill(database_class: type[EmbeddedDatabase]) -> None:
    """What is committed is there after SIGKILL and after a graceful restart."""
    with database_class() as server:
        url = server.create_database("shop")
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE t (id INTEGER PRIMARY KEY, name VARCHAR(20))")
            connection.exec_driver_sql("INSERT INTO t VALUES (1, 'Ada \N{OWL}')")
        server.kill()
        server.start()
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT name FROM t").scalar_one() == "Ada \N{OWL}"
        server.restart()
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT name FROM t").scalar_one() == "Ada \N{OWL}"
        directory = server.directory
    assert not directory.exists()


def test_postgresql_flushes_commits() -> None:
    """The settings on which durability rests are PostgreSQL's own defaults."""
    with EmbeddedPostgreSQL(settings={"max_connections": 30}) as server:
        engine = sa.create_engine(server.url, poolclass=sa.NullPool)
        with engine.connect() as connection:
            shown = {
                name: connection.exec_driver_sql(f"SHOW {name}").scalar_one()
                for name in ("fsync", "synchronous_commit", "max_connections", "server_encoding")
            }
    assert shown == {"fsync": "on", "synchronous_commit": "on", "max_connections": "30", "server_encoding": "UTF8"}


def test_mariadb_is_strict(mariadb_url: str) -> None:
    """A value that does not fit is an error, not a truncation."""
    engine = sa.create_engine(mariadb_url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        mode = connection.exec_driver_sql("SELECT @@sql_mode").scalar_one()
        charset = connection.exec_driver_sql("SELECT @@character_set_server").scalar_one()
    assert "STRICT_TRANS_TABLES" in mode
    assert charset == "utf8mb4"


def test_a_bad_database_name_is_refused(database_class: type[EmbeddedDatabase]) -> None:
    """A name that would need quoting never reaches the server."""
    with pytest.raises(ConfigurationError, match="no name for a database"):
        database_class().create_database("a; DROP DATABASE b")
