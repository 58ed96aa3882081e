"""What a flusher finds to be lost, or in doubt, in what it takes from a log.

Pure. The same goes to SQL, in the transaction that passes it, and to the service.
"""

from collections.abc import Sequence

from writebehind.engine.core.mutation_ids import made_ms
from writebehind.engine.core.positions import EntryID
from writebehind.engine.core.retention import DataLoss
from writebehind.flushers.batch import Segment
from writebehind.flushers.suspect import Suspect

__all__ = ["losses_of"]


def losses_of(segment: Segment) -> list[DataLoss]:
    """Return what is missing in a segment, and each run of entries that are passed over in doubt.

    No two of them begin with the same entry: by that SQL tells those of one flusher apart.
    """
    found = [_in_doubt(segment.partition, run) for run in _runs(segment.in_doubt)]
    if segment.lost or segment.at_least:
        doubtful = {EntryID.parse(suspect.entry_id) for suspect in segment.in_doubt}
        first = segment.start.next()
        while first in doubtful:
            first = first.next()
        missing = DataLoss(
            partition=segment.partition,
            first_id=str(first),
            last_id=str(segment.end),
            unretained=segment.lost,
            until_ms=segment.oldest_ms,
        )
        found.insert(0, missing)
    return found


def _runs(suspects: Sequence[Suspect]) -> list[list[Suspect]]:
    """Return entries as runs of which each entry follows the one before it."""
    runs: list[list[Suspect]] = []
    for suspect in suspects:
        if runs and EntryID.parse(suspect.entry_id) == EntryID.parse(runs[-1][-1].entry_id).next():
            runs[-1].append(suspect)
        else:
            runs.append([suspect])
    return runs


def _in_doubt(partition: int, run: Sequence[Suspect]) -> DataLoss:
    return DataLoss(
        partition=partition,
        first_id=run[0].entry_id.decode(),
        last_id=run[-1].entry_id.decode(),
        in_doubt=len(run),
        from_ms=made_ms(run[0].mutation_id),
        until_ms=made_ms(run[-1].mutation_id),
        keys=sorted({(table, key) for suspect in run for _, table, key, _ in suspect.mutations or ()}),
    )
