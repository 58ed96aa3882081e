"""K1 to K4: what became of the writes."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from writebehind.drills.checkers.check import NOTHING, Allowance, Check, Snapshot, described
from writebehind.drills.journal import Kind, Operation, Outcome

__all__ = ["bank", "counters", "lists", "records", "set_full"]


def set_full(operations: Sequence[Operation], stored: Mapping[int, int], allowed: Allowance = NOTHING) -> Check:
    """K1, over SET and TRANSFER.

    Args:
        operations: the history.
        stored: by operation number, how many rows SQL has of it.
        allowed: what may be lost.
    """
    known = {each.number: each for each in operations if each.kind in {Kind.SET, Kind.TRANSFER}}
    lost = tuple(each for each in known.values() if each.acknowledged and not stored.get(each.number))
    problems = described(
        ("lost", [each.number for each in lost if not allowed.covers(each)]),
        ("doubled", [number for number, count in stored.items() if count > 1]),
        ("refused, yet stored", [n for n in stored if n in known and known[n].outcome is Outcome.REFUSED]),
        ("never written, yet stored", [number for number in stored if number not in known]),
    )
    acknowledged = sum(each.acknowledged for each in known.values())
    return Check(
        "K1",
        "acknowledged inserts and groups are in SQL once",
        not problems,
        problems or f"{acknowledged} acknowledged, " + (f"{len(lost)} lost as allowed" if lost else "all there once"),
        lost=lost,
        doubled=sum(count - 1 for count in stored.values()),
    )


def counters(operations: Sequence[Operation], values: Mapping[int, int], allowed: Allowance = NOTHING) -> Check:
    """K2.

    Args:
        operations: the history.
        values: the counters in SQL.
        allowed: what may be lost.
    """
    acknowledged: Counter[int] = Counter()
    possible: Counter[int] = Counter()
    covered: Counter[int] = Counter()
    for each in operations:
        if each.kind is Kind.COUNT:
            key = each.arguments[0]
            acknowledged[key] += each.acknowledged
            possible[key] += each.outcome is not Outcome.REFUSED
            covered[key] += each.acknowledged and allowed.covers(each)
    keys = {*possible, *values}
    short = {key: acknowledged[key] - values.get(key, 0) for key in keys if values.get(key, 0) < acknowledged[key]}
    over = {key: values.get(key, 0) - possible[key] for key in keys if values.get(key, 0) > possible[key]}
    problems = described(
        ("too low", [f"{key} by {missing}" for key, missing in short.items() if missing > covered[key]]),
        ("too high", [f"{key} by {extra}" for key, extra in over.items()]),
    )
    return Check(
        "K2",
        "counters hold what was added",
        not problems,
        problems or f"{acknowledged.total()} acknowledged, {possible.total() - acknowledged.total()} uncertain",
        lost_unnamed=sum(short.values()),
        doubled=sum(over.values()),
    )


def lists(
    operations: Sequence[Operation],
    stored: Mapping[int, Sequence[int]],
    snapshots: Sequence[Snapshot],
    allowed: Allowance = NOTHING,
) -> Check:
    """K3, over LIST: what is there in the end, and that every snapshot held a beginning of each list.

    Args:
        operations: the history.
        stored: the positions of each list in the final state.
        snapshots: looks at SQL in between.
        allowed: what may be lost.
    """
    certain: dict[int, set[int]] = defaultdict(set)
    possible: dict[int, set[int]] = defaultdict(set)
    lost = []
    final = {number: Counter(positions) for number, positions in stored.items()}
    for each in operations:
        if each.kind is not Kind.LIST or each.outcome is Outcome.REFUSED:
            continue
        number, position = each.arguments
        possible[number].add(position)
        if each.acknowledged:
            if position in final.get(number, ()):
                certain[number].add(position)
            else:
                lost.append(each)
    extra = [f"{n}[{p}]" for n, counted in final.items() for p, count in counted.items() if count > 1]
    foreign = [f"{n}[{p}]" for n, counted in final.items() for p in counted if p not in possible.get(n, ())]
    problems = described(
        ("lost", ["{}[{}]".format(*each.arguments) for each in lost if not allowed.covers(each)]),
        ("doubled", extra),
        ("never written, yet stored", foreign),
        ("not a beginning", _holes(certain, snapshots)),
    )
    return Check(
        "K3",
        "lists grow in order",
        not problems,
        problems or f"{len(possible)} lists, {sum(map(len, certain.values()))} elements, {len(snapshots)} snapshots",
        lost=tuple(lost),
        doubled=sum(count - 1 for counted in final.values() for count in counted.values()),
    )


def _holes(certain: Mapping[int, set[int]], snapshots: Sequence[Snapshot]) -> list[str]:
    """Name the lists of which a snapshot had an element, but not every certain one before it."""
    ordered = {number: sorted(positions) for number, positions in certain.items()}
    found = []
    for snapshot in snapshots:
        for number, (count, highest) in snapshot.lists.items():
            known = ordered.get(number, [])
            # Positions are dense but for what was lost or never certain, so this rarely looks far.
            before = _count_up_to(known, highest)
            if count < before:
                found.append(f"list {number}: {count} rows up to position {highest}, of {before} certain ones")
    return found


def _count_up_to(ordered: Sequence[int], highest: int) -> int:
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high) // 2
        if ordered[middle] <= highest:
            low = middle + 1
        else:
            high = middle
    return low


State = tuple[int, int] | None
"""Version of a record's last write and of its last put; None where it is deleted."""


def records(
    operations: Sequence[Operation], rows: Mapping[int, tuple[int, int]], allowed: Allowance = NOTHING
) -> Check:
    """K3, over PUT, PATCH and DELETE: each record is as its last acknowledged write left it, or a later uncertain one.

    Args:
        operations: the history; the writes of one record in their order, an uncertain one followed by a put.
        rows: the records in SQL.
        allowed: what may be lost.
    """
    history: dict[int, list[tuple[Operation, State]]] = defaultdict(list)
    for each in operations:
        if each.kind in {Kind.PUT, Kind.PATCH, Kind.DELETE} and each.outcome is not Outcome.REFUSED:
            key, version, *born = each.arguments
            history[key].append((each, (version, born[0]) if born else None))
    lost: list[Operation] = []
    wrong = [str(key) for key in rows if key not in history]
    for key, writes in history.items():
        last = max((n for n, (each, _) in enumerate(writes) if each.acknowledged), default=-1)
        found = rows.get(key)
        if found in [state for _, state in writes[max(last, 0) :]] or (last < 0 and found is None):
            continue
        older = [n for n, (_, state) in enumerate(writes[:last]) if _same(found, state)]
        missing = [each for each, _ in writes[(older[-1] + 1 if older else 0) : last + 1] if each.acknowledged]
        lost += missing
        if not all(map(allowed.covers, missing)) or (found is not None and not older):
            wrong.append(f"record {key} is {found}, written was {writes[last][1]}")
    problems = described(("wrong", wrong))
    return Check(
        "K3",
        "records are what was written last",
        not problems,
        problems or f"{len(history)} records, {sum(map(len, history.values()))} writes",
        lost=tuple(lost),
    )


def _same(found: State, state: State) -> bool:
    """Tell whether a row is what a write left, apart from a put before it that was lost."""
    return found == state or (found is not None and state is not None and found[0] == state[0])


def bank(
    operations: Sequence[Operation],
    stored: Mapping[int, int],
    balances: Mapping[tuple[int, int], int],
    snapshots: Sequence[Snapshot],
    opening: int,
) -> Check:
    """K4: sums never change, and each account holds exactly what the groups that are there moved.

    Args:
        operations: the history.
        stored: by operation number, how many rows SQL has of it: a group's own row says that the group is there.
        balances: the accounts in SQL, by bank and account.
        snapshots: looks at SQL in between.
        opening: each account's balance in the beginning.
    """
    expected: Counter[tuple[int, int]] = Counter(dict.fromkeys(balances, opening))
    for each in operations:
        if each.kind is Kind.TRANSFER:
            number, source, target, amount = each.arguments
            times = stored.get(each.number, 0)
            expected[number, source] -= times * amount
            expected[number, target] += times * amount
    sizes = Counter(number for number, _ in balances)
    torn = [
        f"bank {number} had {total} instead of {opening * sizes[number]}"
        for snapshot in snapshots
        for number, (accounts, total) in snapshot.banks.items()
        if (accounts, total) != (sizes[number], opening * sizes[number])
    ]
    problems = described(
        ("torn", torn),
        ("unequal", [f"{key} is {balances.get(key)}, not {value}" for key, value in expected.items()
                     if balances.get(key) != value]),
    )  # fmt: skip
    return Check(
        "K4",
        "groups are whole: no money is made or lost",
        not problems,
        problems or f"{len(sizes)} banks, {len(balances)} accounts, {len(snapshots)} snapshots",
    )
