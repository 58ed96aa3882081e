"""The services of examples/services run as a user would run them, beside a flusher, on real servers."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from writebehind.engine import WriteBehind
from writebehind.engine.embedded.server import free_port
from writebehind.examples import services

if TYPE_CHECKING:
    from conftest import OwnRedisFactory

SECONDS_MAX = 60.0
LINES_MAX = 60
CLIENTS, CALLS = 4, 25
SERVICES = "writebehind.examples.services"


def until(happened: Callable[[], bool]) -> None:
    """Wait for an event, with a deadline."""
    deadline = time.monotonic() + SECONDS_MAX
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


class Ground:
    """Servers for one example, its flusher, and commands about it."""

    def __init__(self, app: str, redis_url: str, database: str, directory: Path) -> None:
        self.redis = redis_url
        self._app, self._directory = f"{SERVICES}.{app}:wb", directory
        self._environment = {**os.environ, "REDIS_URL": redis_url, "DATABASE_URL": database}
        blocking = sa.make_url(database)
        self._database = sa.create_engine(
            blocking.set(drivername={"sqlite+aiosqlite": "sqlite", "postgresql+asyncpg": "postgresql+psycopg"}.get(
                blocking.drivername, blocking.drivername
            ))
        )  # fmt: skip

    @contextlib.contextmanager
    def process(self, *arguments: str, **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
        """Run a Python module beside the block; kill it where the block has not ended it."""
        log = self._directory / f"{len(list(self._directory.glob('*.log')))}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", *arguments],
                env={**self._environment, **environment}, stdout=output, stderr=output,
            )  # fmt: skip
        try:
            yield process
        except BaseException:
            print(log.read_text())
            raise
        finally:
            process.kill()
            process.wait()
        assert "Traceback" not in log.read_text()

    @contextlib.contextmanager
    def flusher(self) -> Iterator[None]:
        """Run a flusher beside the block, and end it as an operator does."""
        with self.process("writebehind.flushers.cli", "--app", self._app, "run") as process:
            yield
            process.terminate()
            assert process.wait(SECONDS_MAX) == 0

    def command(self, *arguments: str) -> str:
        """Run ``writebehind`` to its end, which has to be a good one; return what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "writebehind.flushers.cli", "--app", self._app, *arguments],
            env=self._environment, capture_output=True, text=True, timeout=SECONDS_MAX, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def rows(self, query: str) -> Sequence[Any]:
        """Return what SQL has."""
        with self._database.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(query)]

    def table(self, name: str) -> sa.Table:
        """Return a table as SQL has it."""
        return sa.Table(name, sa.MetaData(), autoload_with=self._database)

    def close(self) -> None:
        """Close the connections."""
        self._database.dispose()


GroundFactory = Callable[[str, str], Ground]


@pytest.fixture
def open_ground(own_redis: "OwnRedisFactory", tmp_path: Path) -> Iterator[GroundFactory]:
    """Initialise an example on a Redis of its own, since its namespace's name is fixed, and a database."""
    made: list[Ground] = []

    def factory(app: str, database: str) -> Ground:
        made.append(Ground(app, own_redis().url, database, tmp_path))
        made[-1].command("init", "--create-tables")
        return made[-1]

    yield factory
    for ground in made:
        ground.close()


def call(port: int, method: str, path: str) -> tuple[int, Any, Any]:
    """Send one request; return status, headers, and the body, as JSON where it is that."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS_MAX)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read().decode()
        told = json.loads(body) if answer.headers.get_content_type() == "application/json" else body
        return answer.status, answer.headers, told
    finally:
        connection.close()


def healthy(port: int) -> bool:
    """Tell whether a service answers, and is well."""
    try:
        return call(port, "GET", "/health")[0] == 200
    except OSError:
        return False


def called_until_the_end(port: int, path: str, process: "subprocess.Popen[bytes]") -> tuple[int, int]:
    """Call with several clients, end the process in the middle; return how many calls were acknowledged, and sent."""

    def go_on(_: int) -> tuple[int, int]:
        acknowledged = sent = 0
        with contextlib.suppress(OSError, http.client.HTTPException):
            while True:
                sent += 1
                acknowledged += call(port, "POST", path)[0] < 300
                if acknowledged == CALLS:
                    process.terminate()
        return acknowledged, sent

    with ThreadPoolExecutor(CLIENTS) as clients:
        counted = list(clients.map(go_on, range(CLIENTS)))
    return sum(each for each, _ in counted), sum(each for _, each in counted)


@pytest.mark.parametrize("path", sorted(Path(services.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short(path: Path) -> None:
    """It can be read at a glance."""
    assert len(path.read_text().splitlines()) <= LINES_MAX


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fixture", "driver"), [("sqlite_url", "sqlite+aiosqlite"), ("postgresql_url", "postgresql+asyncpg")]
)
def test_the_fastapi_example(
    open_ground: GroundFactory, request: pytest.FixtureRequest, fixture: str, driver: str
) -> None:
    """Reads see writes, limits and cache do their work, and what was acknowledged until SIGTERM counts once in SQL."""
    url = sa.make_url(request.getfixturevalue(fixture)).set(drivername=driver)
    ground, port = open_ground("fastapi_app", url.render_as_string(hide_password=False)), free_port()
    serve = ("uvicorn", f"{SERVICES}.fastapi_app:app", "--port", str(port))
    with ground.flusher(), ground.process(*serve) as service:
        until(lambda: healthy(port))
        assert call(port, "GET", "/articles/1")[::2] == (200, None)
        assert call(port, "PUT", "/articles/1?title=Eins")[0] == 200
        assert call(port, "POST", "/articles/1/likes")[0] == 200
        assert call(port, "GET", "/articles/1")[2] == {"id": 1, "title": "Eins", "likes": 1}
        assert call(port, "PUT", "/articles/1?title=One")[0] == 200
        assert call(port, "GET", "/articles/1")[2] == {"id": 1, "title": "One", "likes": 1}
        assert [call(port, "PUT", "/articles/2?title=Zwei")[0] for _ in range(6)] == [200] * 5 + [429]
        assert 1 <= int(call(port, "PUT", "/articles/2?title=Zwei")[1]["Retry-After"]) <= 60
        assert call(port, "PUT", f"/articles/3?title={'x' * 101}")[0] == 422
        until(lambda: [each["id"] for each in call(port, "GET", "/front")[2]] == [1, 2])
        call(port, "POST", "/articles/2/likes")
        call(port, "POST", "/articles/2/likes")
        until(lambda: [each["id"] for each in call(port, "GET", "/front")[2]] == [2, 1])
        assert call(port, "POST", "/articles/4/likes")[0] == 200  # as by who comes between two first writes
        assert call(port, "PUT", "/articles/4?title=Vier")[0] == 200
        assert call(port, "GET", "/articles/4")[2] == {"id": 4, "title": "Vier", "likes": 1}
        acknowledged, sent = called_until_the_end(port, "/articles/3/likes", service)
        assert service.wait(SECONDS_MAX) in {0, -signal.SIGTERM}
        ground.command("drain", "--timeout", "60")
    rows = ground.rows("SELECT id, title, likes FROM articles ORDER BY id")
    likes = rows[2][2]
    assert rows == [(1, "One", 1), (2, "Zwei", 2), (3, "", likes), (4, "Vier", 1)]
    assert acknowledged <= likes <= sent
    ground.command("verify")


@pytest.mark.slow
def test_the_flask_example(open_ground: GroundFactory, mariadb_url: str) -> None:
    """Reads see writes, limits and cache do their work, and what was acknowledged until SIGTERM counts once in SQL."""
    ground, port = open_ground("flask_app", mariadb_url), free_port()
    with ground.flusher(), ground.process(f"{SERVICES}.flask_app", PORT=str(port)) as service:
        until(lambda: healthy(port))
        assert call(port, "GET", "/accounts/1")[0] == 404
        assert call(port, "PUT", "/accounts/1/Ada")[0] == 204
        assert [call(port, "POST", "/accounts/1/deposits/5")[0] for _ in range(11)] == [204] * 10 + [429]
        assert call(port, "GET", "/accounts/1")[2] == {"id": 1, "owner": "Ada", "balance": 50}
        assert call(port, "PUT", "/accounts/1/Ada%20L")[0] == 204
        assert call(port, "GET", "/accounts/1")[2] == {"id": 1, "owner": "Ada L", "balance": 50}
        assert call(port, "PUT", f"/accounts/2/{'x' * 101}")[0] == 422
        until(lambda: call(port, "GET", "/total")[2] == {"total": 50})
        call(port, "PUT", "/accounts/2/Grace")
        service.terminate()
        assert service.wait(SECONDS_MAX) == 0
        ground.command("drain", "--timeout", "60")
    assert ground.rows("SELECT id, owner, balance FROM accounts ORDER BY id") == [(1, "Ada L", 50), (2, "Grace", 0)]
    ground.command("verify")


@pytest.mark.slow
@pytest.mark.parametrize("app", ["fastapi_app", "flask_app"])
def test_a_service_says_that_redis_is_away(
    own_redis: "OwnRedisFactory", sqlite_url: str, tmp_path: Path, app: str
) -> None:
    """503 while it is, and all is well again when it is back."""
    server, port = own_redis(), free_port()
    ground = Ground(app, server.url, sqlite_url, tmp_path)
    ground.command("init", "--create-tables")
    serve = (
        ("uvicorn", f"{SERVICES}.{app}:app", "--port", str(port)) if app == "fastapi_app" else (f"{SERVICES}.{app}",)
    )
    with ground.process(*serve, PORT=str(port)):
        until(lambda: healthy(port))
        server.kill()
        status, _, said = call(port, "GET", "/health")
        assert status == 503
        assert "Redis" in said
        server.start()
        until(lambda: healthy(port))
    ground.close()


@pytest.mark.slow
def test_a_worker_that_is_ended_and_killed_goes_on_where_it_was(
    open_ground: GroundFactory, postgresql_url: str, tmp_path: Path
) -> None:
    """SIGTERM and SIGKILL in the middle of a file: in the end SQL has each of its lines, and nothing else."""
    ground, path = open_ground("worker", postgresql_url), tmp_path / "readings.csv"
    lines = [(f"s{number % 7}", number, number / 4) for number in range(30_000)]
    path.write_text("".join(f"{sensor},{second},{value}\n" for sensor, second, value in lines))

    imports = ground.table("imports")
    reader = WriteBehind(redis=ground.redis, database=postgresql_url, tables=[imports], namespace="plant")

    def written() -> int:
        found = reader.get(imports, path.name)
        return found["lines"] if found else 0

    with reader, ground.flusher():
        for ends in (signal.SIGTERM, signal.SIGKILL):
            before = written()
            assert before < len(lines)
            with ground.process(f"{SERVICES}.worker", str(path)) as worker:
                until(lambda before=before: written() > before)  # type: ignore[misc]
                worker.send_signal(ends)
                assert worker.wait(SECONDS_MAX) == (0 if ends is signal.SIGTERM else -signal.SIGKILL)
        with ground.process(f"{SERVICES}.worker", str(path)) as worker:
            assert worker.wait(SECONDS_MAX) == 0
        ground.command("drain", "--timeout", "60")
    assert ground.rows("SELECT sensor, second, value FROM readings ORDER BY second") == lines
    assert ground.rows("SELECT lines FROM imports") == [(len(lines),)]
    ground.command("verify", "--sample", "1000")
