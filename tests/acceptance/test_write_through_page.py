"""The example of docs/write-through.md runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "write-through.md"


def test_the_example_runs(redis_url: str, namespace: str, tmp_path: Path) -> None:
    """SQL and Redis agree when a call returns, without a flusher; what SQL refuses is told."""
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    program = tmp_path / "through.py"
    program.write_text(example.replace('namespace="through"', f'namespace="{namespace}"'))
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", str(program)],
        env={**os.environ, "REDIS_URL": redis_url, "DATABASE_URL": f"sqlite:///{tmp_path}/shop.db"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "PERSISTED [(1, 70)] {'id': 1, 'balance': 70}",
        "booked",
        "refused by SQL",
    ]
