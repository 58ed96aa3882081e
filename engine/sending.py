"""Sending a batch: many calls, one of each partition at a time, in as few round trips as possible.

Invariants:

1. A call of a partition is sent when the one before it is accepted: a refused call is not overtaken by the next one.
2. A partition that takes no more holds up its own calls only. The others go on, and all that wait do so together: what
   keeps all of them from writing, as a full Redis does, is waited for as long as for one.
3. What was accepted beyond a limit is named to the caller whatever becomes of the others: its writer waits for SQL.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence

from writebehind.engine.adapters.appender import Appender
from writebehind.engine.adapters.deadline import Deadline, pause
from writebehind.engine.core.appending import Call, Full, Refused, exhausted, final
from writebehind.engine.core.composing import Draft
from writebehind.engine.errors import BacklogFull, WriteBehindError, WriteOutcomeUnknown
from writebehind.engine.receipts import Acceptance, Receipt

__all__ = ["failed", "fill", "refused", "send"]


def send(
    appender: Appender,
    drafts: Mapping[int, Sequence[Draft]],
    receipts: Mapping[int, Sequence[Receipt]],
    wait_seconds: float,
) -> tuple[list[Sequence[Receipt]], Exception | None]:
    """Append drafts by partition, each partition's in order, and fill in their receipts.

    Args:
        appender: does it.
        drafts: the calls to be.
        receipts: of their entries.
        wait_seconds: how long a call waits, for room or for whatever else may pass.

    Returns:
        The receipts of calls that were accepted beyond a limit, whose writer has to wait until SQL has them, also where
        others have failed; and the failure that says the least, after all partitions were tried, or None.

    Durability, Crash: each script call is all or nothing; a partition whose call fails gets no later ones.
    """
    queues = {partition: iter(listed) for partition, listed in drafts.items()}
    unfilled = {partition: iter(listed) for partition, listed in receipts.items()}
    waiting: dict[int, tuple[Call, Deadline]] = {}
    failures: list[Exception] = []
    through: list[Sequence[Receipt]] = []
    pauses = 0
    while wave := list(_wave(appender, queues, waiting, Deadline(wait_seconds))):
        for (call, deadline), result in zip(wave, appender.append_all(wave), strict=True):
            partition = call.partition
            if isinstance(result, Full) and deadline.left_seconds():
                waiting[partition] = call, deadline
                continue
            waiting.pop(partition, None)
            if isinstance(result, tuple):
                filled = list(itertools.islice(unfilled[partition], call.entries))
                fill(filled, result, call)
                if call.through:
                    through.append(filled)
                continue
            del queues[partition]
            failures.append(refused(result))
        pauses = pauses + 1 if len(waiting) == len(queues) else 0
        if waiting and pauses:
            pause(pauses, min(deadline.left_seconds() for _, deadline in waiting.values()))
    if not failures:
        return through, None
    accepted = sum(receipt.durability is not None for listed in receipts.values() for receipt in listed)
    return through, failed(failures, accepted, sum(map(len, receipts.values())))


def _wave(
    appender: Appender,
    queues: dict[int, Iterator[Draft]],
    waiting: Mapping[int, tuple[Call, Deadline]],
    fresh: Deadline,
) -> Iterator[tuple[Call, Deadline]]:
    """Yield the next call of each partition with its deadline, and forget partitions that have none."""
    for partition, queue in list(queues.items()):
        if partition in waiting:
            call, deadline = waiting[partition]
            call.begin(appender.call_id())
            yield call, deadline
        elif (draft := next(queue, None)) is not None:
            yield draft.call(appender.call_id()), fresh
        else:
            del queues[partition]


def refused(result: Full | Refused | Exception) -> Exception:
    """Return the error of a call that is not made again."""
    if isinstance(result, Full):
        return exhausted(result)
    return final(result) if isinstance(result, Refused) else result


def failed(failures: Sequence[Exception], accepted: int, total: int) -> Exception:
    """Return the failure that says the least, with what became of the others: part of a batch may be accepted."""
    worst = next((error for error in failures if isinstance(error, WriteOutcomeUnknown)), failures[0])
    if accepted == 0 or not isinstance(worst, WriteBehindError):
        return worst
    unknown = " and others unknown" if isinstance(worst, WriteOutcomeUnknown) else ""
    message = f"{accepted} of {total} writes of a batch are accepted{unknown}: {worst.message}"
    error = type(worst)(message, "those accepted have a receipt with an entry_id; do not repeat them")
    if isinstance(worst, BacklogFull) and isinstance(error, BacklogFull):
        error.retry_after_seconds = worst.retry_after_seconds
    error.__cause__ = worst
    return error


def fill(receipts: Sequence[Acceptance], result: tuple[bytes, bytes], call: Call) -> None:
    """Fill in the receipts of a call's entries, all of which it has."""
    raw_id, identity = result
    in_doubt = bool(call.doubts)
    if len(receipts) == 1:
        receipts[0].accepted(raw_id, identity, call.call_id, in_doubt=in_doubt)
        return
    epoch, _, last = raw_id.partition(b"-")
    first = int(last) - len(receipts) + 1
    for number, receipt in enumerate(receipts):
        mutation_id = f"{call.call_id}.{number + 1}"
        receipt.accepted(b"%b-%d" % (epoch, first + number), identity, mutation_id, in_doubt=in_doubt)
