"""The README's example runs as it stands."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
WARNINGS = 4
"""Exit code of a diagnosis that has nothing worse."""


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


def test_the_commands_work_on_the_example(redis_url: str, namespace: str, tmp_path: Path) -> None:
    """All commands for the example that the README names end well, but those for letters that are not there."""
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "shop.py").write_text(example.replace('namespace="shop"', f'namespace="{namespace}"'))
    named = re.findall(r"^ {4}writebehind (--app shop:wb .*)$", README.read_text(), re.MULTILINE)
    commands = [words for words in (shlex.split(line, comments=True) for line in named) if "replay" not in words]
    assert len(commands) >= 8
    environment = {**os.environ, "REDIS_URL": redis_url, "DATABASE_URL": f"sqlite:///{tmp_path}/shop.db"}
    for words in commands:
        serves = "run" in words
        process = subprocess.Popen(
            [sys.executable, "-m", "writebehind.flushers.cli", *words],
            env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            if serves:
                assert process.stdout is not None
                assert any("flushing namespace" in line for line in process.stdout)
                process.terminate()
            said, _ = process.communicate(timeout=60)
        finally:
            process.kill()
            process.communicate()
        assert process.returncode in ({0, WARNINGS} if "doctor" in words else {0}), (words, said)
