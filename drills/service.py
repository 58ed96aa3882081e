"""The service: a process that writes without a pause, and may be killed at any moment.

Arguments: the journal's path, number of the run, seed, durability level, operations a second. Where to write stands
in the environment. It ends at SIGTERM, or when its standard input does: then whoever started it is gone.
"""

import sys
import time
from pathlib import Path

from writebehind.drills.app import from_environment
from writebehind.drills.journal import Journal, LossReport
from writebehind.drills.parent import stopping_event
from writebehind.drills.workload import Workload, until_stopped
from writebehind.engine import DataLoss, Durability

__all__ = ["arguments", "main"]

SINGLE_SHARE = 0.4
"""Of the operations, those that are written one by one; the others go in batches."""
BATCH = 25


def arguments(journal: Path, run: int, seed: int, durability: Durability, per_second: float) -> list[str]:
    """Return what this program wants on its command line."""
    return [str(journal), str(run), str(seed), durability.name, str(per_second)]


def main() -> None:
    """Write until told to stop."""
    journal_path, run, seed, level, rate = sys.argv[1:]
    per_second = float(rate)
    stopping = stopping_event()
    with Journal(Path(journal_path)) as journal:

        def report(loss: DataLoss) -> None:
            text = (
                f"{loss.first_id} to {loss.last_id}: {loss.entries} own entries, {loss.rewritten} written again, "
                f"{loss.superseded} overwritten since, {loss.unretained} not kept, {loss.in_doubt} in doubt"
            )
            journal.write(LossReport(time.monotonic(), loss.partition, loss.lost, text))

        app = from_environment(Durability[level], report)
        first, second = (Workload(app, journal, run=int(run), thread=thread, seed=int(seed)) for thread in range(2))
        try:
            until_stopped(
                [
                    lambda: first.singles(stopping, per_second * SINGLE_SHARE),
                    lambda: second.batches(stopping, BATCH, per_second * (1 - SINGLE_SHARE) / BATCH),
                ],
                stopping,
            )
            journal.end()
        finally:
            app.close()


if __name__ == "__main__":
    main()
