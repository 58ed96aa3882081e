"""A daemon that is started before its servers waits for them."""

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from writebehind.drills.app import APP, environment, make
from writebehind.flushers import initialise, status

if TYPE_CHECKING:
    from conftest import OwnRedisFactory

SECONDS_MAX = 30.0


def test_a_redis_that_is_away_is_waited_for(
    own_redis: "OwnRedisFactory", sqlite_url: str, namespace: str, tmp_path: Path
) -> None:
    """It says so, serves as soon as Redis is there, and ends with 0."""
    server = own_redis()
    app = make(server.url, sqlite_url, namespace)
    initialise(app, create_tables=True)
    server.kill()
    log = tmp_path / "log"
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "writebehind.flushers.cli", "--app", APP, "run"],
            env=environment(server.url, sqlite_url, namespace),
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + SECONDS_MAX
        while "trying again" not in log.read_text():
            assert daemon.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        server.start()
        while status(app).flushers == 0:
            assert daemon.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(SECONDS_MAX) == 0, log.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            daemon.kill()
        daemon.wait()
        app.close()
