"""What memory a flusher takes while it drains a long backlog."""

import subprocess
import time
from pathlib import Path

from writebehind.bench.report import Figure, Target
from writebehind.bench.trial import Plan, trial

__all__ = ["BACKLOG_FACTOR", "footprint"]

BACKLOG_FACTOR = 5
"""Backlog of this part, in drains of the others."""

SAMPLE_SECONDS = 0.05
TARGET = Target(at_most=200)
FLAT_TARGET = Target(at_most=1.1)
MEBIBYTE = 1024 * 1024


def footprint(plan: Plan) -> list[Figure]:
    """Sample the resident memory of a drain in a process of its own."""
    entries = BACKLOG_FACTOR * plan.entries
    samples: list[float] = []
    with trial(plan) as now:
        keys = now.fill("uniform", entries)
        with now.process("drain") as process:
            while process.poll() is None:
                resident = _resident_bytes(process.pid)
                if resident:
                    samples.append(resident / MEBIBYTE)
                time.sleep(SAMPLE_SECONDS)
        if process.returncode != 0 or now.rows() != keys:
            raise RuntimeError(f"the drain ended with {process.returncode} and {now.rows()} rows of {keys} keys")
    half = max(1, len(samples) // 2)
    first, second = max(samples[:half]), max(samples[half:])
    part, note = "footprint", f"one process draining {entries:,} entries"
    return [
        Figure(part=part, name="resident memory, most", value=max(samples), unit="MiB", target=TARGET, note=note),
        Figure.compared(part, "second half against first", "MiB", [second], [first], target=FLAT_TARGET, note=note),
    ]


def _resident_bytes(pid: int) -> int:
    """Return the resident memory of a process; 0 where it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except FileNotFoundError:
        found = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False)  # noqa: S607
        return int(found.stdout.strip() or 0) * 1024
    except ProcessLookupError:
        pass
    return 0
