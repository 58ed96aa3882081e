"""The README's example runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_the_example_runs(redis_url: str, tmp_path: Path) -> None:
    """The embedding example prints the record and a receipt that is persisted."""
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    program = tmp_path / "shop.py"
    program.write_text(example)
    environment = {**os.environ, "REDIS_URL": redis_url, "DATABASE_URL": f"sqlite:///{tmp_path}/shop.db"}
    done = subprocess.run(
        [sys.executable, str(program)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record, receipt = done.stdout.splitlines()
    assert record == "{'id': 1, 'owner': 'Ada', 'balance': 15}"
    assert "PERSISTED" in receipt


def test_the_example_is_an_app_for_the_command_line(redis_url: str, tmp_path: Path) -> None:
    """The commands that the README names work on the example."""
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "shop.py").write_text(example.replace('namespace="shop"', 'namespace="shop-cli"'))
    environment = {**os.environ, "REDIS_URL": redis_url, "DATABASE_URL": f"sqlite:///{tmp_path}/shop.db"}
    for arguments in (["init", "--create-tables"], ["status", "--json"], ["drain", "--timeout", "60"]):
        done = subprocess.run(
            [sys.executable, "-m", "writebehind.flushers.cli", "--app", "shop:wb", *arguments],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
