"""The FastAPI example under load while its flusher is killed; and what would be noticed."""

import json
import subprocess
import sys

import pytest

from writebehind.examples.load.client import ARTICLES
from writebehind.examples.load.report import KILLS, Kill, Report

SECONDS_MAX = 200


@pytest.mark.slow
@pytest.mark.timeout(SECONDS_MAX + 20)
def test_the_example_survives_load() -> None:
    """The flusher is killed twice: no request fails, every acknowledged like counts once, `verify` finds nothing."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "writebehind.examples.load.cli", "--seconds", "4", "--connections", "8", "--json"],
        capture_output=True, text=True, timeout=SECONDS_MAX, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["survived"] is True
    assert report["requests"] > report["acknowledged"] > ARTICLES
    assert len({kill["pid"] for kill in report["kills"]}) == KILLS
    assert report["seconds"] >= 4
    assert report["lag_seconds_max"] > 0


GOOD = {
    "seconds": 4.0,
    "requests": 10,
    "acknowledged": 8,
    "drained": True,
    "verify_exit_code": 0,
    "kills": [Kill(seconds=1.0, pid=7, backlog=3), Kill(seconds=2.0, pid=8, backlog=0)],
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"errors": 1},
        {"ends": ["service ended by itself with 1"]},
        {"differing": [(1, 5, 4)]},
        {"verify_exit_code": 3},
        {"drained": False},
        {"kills": GOOD["kills"][:1]},  # type: ignore[index]
        {"acknowledged": 0},
    ],
)
def test_anything_wrong_is_not_survived(wrong: dict[str, object]) -> None:
    """The verdict needs all of it, and both forms of the report say it."""
    good, bad = Report(**GOOD), Report(**{**GOOD, **wrong})  # type: ignore[arg-type]
    assert good.survived
    assert good.lines()[-1] == "verdict    survived: every like counts once"
    assert not bad.survived
    assert bad.as_json()["survived"] is False
    assert bad.lines()[-1] == "verdict    NOT SURVIVED"
