"""What a report says about where it was made."""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version

from writebehind.drills.result import Report, Result

__all__ = ["report_of"]


def report_of(results: Sequence[Result]) -> Report:
    """Make a report of drills that were played just now."""
    return Report(
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        product=version("writebehind"),
        system=f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        results=list(results),
    )
