"""``writebehind bench`` as a subprocess: what it prints, never how fast anything was."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa

BENCH = (sys.executable, "-m", "writebehind.flushers.cli", "bench", "--quick", "--entries", "2000", "--rounds", "1")
PARTS = ("put", "batch", "async", "get", "drain", "poison", "lag", "memory", "footprint", "pressure")
ABOUT = {"python", "redis", "database", "system", "cpus", "load_average"}
FIGURE = {"part", "name", "value", "unit", "baseline", "ratio", "target", "note", "met"}


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the benchmark to its end."""
    return subprocess.run([*BENCH, *arguments], capture_output=True, text=True, check=False, env=dict(os.environ))


@pytest.mark.slow
def test_every_part_prints_its_figures_as_json(redis_server: str, postgresql_url: str, tmp_path: Path) -> None:
    """All parts run, the table shows them, the JSON has every key, and the servers are left as they were."""
    file = tmp_path / "bench.json"
    done = bench("--redis", redis_server, "--database", postgresql_url, "--json", str(file))
    assert done.returncode == 0, done.stderr
    document = json.loads(file.read_text())
    assert document.keys() == {"about", "settings", "figures"}
    assert document["about"].keys() == ABOUT
    assert document["settings"] == {"entries": 2000, "rounds": 1, "seed": 1, "seconds": 3.0}
    assert {figure["part"] for figure in document["figures"]} == set(PARTS)
    for figure in document["figures"]:
        _check(figure)
        assert figure["part"] in done.stdout
    assert document["about"]["redis"] in done.stdout
    engine = sa.create_engine(postgresql_url, poolclass=sa.NullPool)
    assert not [name for name in sa.inspect(engine).get_table_names() if name.startswith("bench_")]
    with redis.Redis.from_url(redis_server) as client:
        assert not list(client.scan_iter("wb:{bench-*", count=1000))


def test_json_goes_to_standard_output_and_the_table_out_of_its_way(redis_server: str, postgresql_url: str) -> None:
    """With ``--json -`` standard output is JSON alone, and ``--part`` measures nothing else."""
    done = bench("--redis", redis_server, "--database", postgresql_url, "--part", "memory", "--json", "-")
    assert done.returncode == 0, done.stderr
    assert {figure["part"] for figure in json.loads(done.stdout)["figures"]} == {"memory"}
    assert "memory" in done.stderr


def test_a_database_that_cannot_be_measured_is_named(redis_server: str, tmp_path: Path) -> None:
    """Another database than PostgreSQL is refused with what is needed, not with a traceback."""
    done = bench("--redis", redis_server, "--database", f"sqlite:///{tmp_path / 'other.db'}")
    assert done.returncode == 1
    assert "postgresql+psycopg" in done.stderr
    assert "Traceback" not in done.stderr


def _check(figure: dict[str, Any]) -> None:
    assert figure.keys() == FIGURE
    assert figure["value"] > 0
    assert (figure["ratio"] is None) == (figure["baseline"] is None)
    assert (figure["met"] is None) == (figure["target"] is None)
