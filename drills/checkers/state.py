"""K5 to K10: what state everything is in."""

from collections.abc import Hashable, Mapping, Sequence

from writebehind.drills.checkers.check import Audited, Check, Row, described
from writebehind.engine.core.positions import EntryID

__all__ = ["convergence", "fencing", "honesty", "hygiene", "liveness", "tails"]


def tails(versions: Mapping[str, EntryID], newest: Mapping[str, EntryID]) -> Check:
    """K5.

    Args:
        versions: by record that is in Redis, the entry that it says changed it last.
        newest: by record, the last entry in the log that changed it, where the log still has one.
    """
    wrong = [
        f"{name}: record {version}, log {newest[name]}"
        for name, version in versions.items()
        if name in newest and newest[name] != version
    ]
    problems = described(("differ", wrong))
    compared = sum(name in newest for name in versions)
    return Check("K5", "records and log agree on the last entry", not problems, problems or f"{compared} compared")


def fencing(audit: Sequence[Audited]) -> Check:
    """K6.

    Args:
        audit: committed moves of offsets, in their order.
    """
    tokens: dict[int, int] = {}
    offsets: dict[tuple[int, int], int] = {}
    back, twice = [], []
    for move in audit:
        if move.token < tokens.get(move.partition, 0):
            back.append(f"partition {move.partition}: token {move.token} after {tokens[move.partition]}")
        tokens[move.partition] = move.token
        where = (move.partition, move.epoch)
        if move.sequence <= offsets.get(where, -1):
            twice.append(f"partition {move.partition}: {move.epoch}-{move.sequence} after {offsets[where]}")
        offsets[where] = move.sequence
    problems = described(("token went back", back), ("offset did not advance", twice))
    return Check("K6", "no commit under an old token", not problems, problems or f"{len(audit)} commits")


def convergence(read: Mapping[Hashable, Row], rows: Mapping[Hashable, Row]) -> Check:
    """K7.

    Args:
        read: records as the engine reads them, absent ones left out.
        rows: the same as SQL has them.
    """
    wrong = [_difference(key, read.get(key), rows.get(key)) for key in sorted({*read, *rows}, key=str)]
    wrong = [difference for difference in wrong if difference]
    problems = described(("differ", wrong))
    return Check("K7", "reads and rows are the same", not problems, problems or f"{len(rows)} records")


def _difference(key: Hashable, read: Row | None, row: Row | None) -> str:
    if read == row:
        return ""
    if read is None or row is None:
        return f"{key} is only in {'SQL' if read is None else 'what is read'}"
    return f"{key}: " + ", ".join(
        f"{name} read {read.get(name)}, row {row.get(name)}" for name in row if read.get(name) != row.get(name)
    )


def liveness(backlog: int, seconds: float, halted: Sequence[str], troubles: Sequence[str]) -> Check:
    """K8.

    Args:
        backlog: entries that are not in SQL at the deadline.
        seconds: how long emptying it took.
        halted: partitions that are not served, with the reason.
        troubles: processes that ended by themselves, faults after which no write came through.
    """
    problems = described(("backlog", [backlog] if backlog else []), ("halted", halted), ("trouble", troubles))
    return Check("K8", "everything is flushed in time", not problems, problems or f"empty after {seconds:.1f} s")


def hygiene(leftovers: Sequence[str]) -> Check:
    """K9.

    Args:
        leftovers: what should not be there any more.
    """
    problems = described(("left behind", leftovers))
    return Check("K9", "nothing is left behind", not problems, problems or "no process, lease, session, pending entry")


def honesty(lost_entries: int, uncertain: int, reported: int, *, knowable: bool = True) -> Check:
    """K10: not less is reported than was lost, and not more than lost and uncertain ones together.

    Args:
        lost_entries: acknowledged entries whose effect is missing.
        uncertain: entries without an acknowledgement, which may have been lost too.
        reported: entries that the product says are lost.
        knowable: False where nobody who knew of them survived.
    """
    wrong = (reported < lost_entries and knowable) or reported > lost_entries + uncertain
    detail = f"{reported} reported, {lost_entries} lost" + ("" if knowable else "; nobody who knew of them survived")
    return Check("K10", "reported losses are real losses", not wrong, detail)
