"""Known mistakes of systems of this kind, made in the product or in a model of a server: the simulator has to see them.

Each is a context manager that makes the mistake for as long as it is open, and the theme of the histories in which it
shows; nothing else is chosen for it.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

from simulator import adapters, transaction
from simulator.database import Database
from simulator.faults import Fault
from simulator.letter_mutants import REFUSING
from simulator.mutant import KILLS, Mutant, edited
from simulator.read_mutants import READING
from simulator.redis_service import Service
from simulator.tables import PartitionRow
from simulator.theme import Theme
from simulator.transaction import ModelTransaction
from writebehind.engine.adapters import appender, log, rewriter, scripts
from writebehind.engine.core import appending, read_through, reading
from writebehind.engine.core.contiguity import Lineage
from writebehind.engine.core.positions import EntryID
from writebehind.engine.core.retention import Ring
from writebehind.flushers import flush, flusher, losses
from writebehind.flushers.batch import Batch, Segment
from writebehind.flushers.cursor import Cursor
from writebehind.flushers.quarantine import Key
from writebehind.recovery import reclaim, takeover

__all__ = ["MUTANTS"]


def _forgetful(*, together: bool) -> Generator[appending.Effect, appending.Reply, bytes | appending.Full]:
    """Retry as if it were the first time."""
    protocol = appending.append(together=together)
    reply: appending.Reply = None
    try:
        effect = next(protocol)
        while True:
            reply = yield appending.Run(retry=False) if isinstance(effect, appending.Run) else effect
            effect = protocol.send(reply)
    except StopIteration as stop:
        done: bytes | appending.Full = stop.value
        return done


def _hasty(batch: Batch) -> Generator[flush.Effect, flush.Fenced | None, None]:
    """Acknowledge first."""
    yield flush.Acknowledge(batch)
    protocol = flush.flush(batch)
    effect = next(protocol)
    while True:
        reply = None if isinstance(effect, flush.Acknowledge) else (yield effect)
        try:
            effect = protocol.send(reply)
        except StopIteration:
            return


def _trusting(
    offset: EntryID, earlier: Mapping[int, EntryID]
) -> Generator[takeover.Effect, takeover.Reply, takeover.Start]:
    """Serve from where the group stands."""
    protocol = takeover.takeover(offset, earlier)
    delivered: EntryID | None = None
    try:
        effect = next(protocol)
        while True:
            reply = yield effect
            if isinstance(reply, log.LogState):
                delivered = reply.delivered
            effect = protocol.send(reply)
    except StopIteration as stop:
        start: takeover.Start = stop.value
        return start if delivered is None else replace(start, position=delivered, replay_until=None)


def _by_offset(offset: EntryID, _earlier: Mapping[int, EntryID], _lineage: Lineage) -> EntryID:
    return offset


def _all_moved(_: ModelTransaction, session: Any, segments: Sequence[Segment], _letters: Mapping[int, int]) -> int:
    for segment in segments:
        session.database.lock(session, segment.partition)
        row = session.partition(segment.partition)
        row.epoch, row.sequence = segment.end
    return len(segments)


DOUBTS = Theme(events=["failover"], faults=[Fault.LATE], only=True, replica_lags=True)

Writing = Callable[[ModelTransaction, Batch], dict[Key, Exception]]


def _swallowing(original: Writing) -> Writing:
    def write(writing: ModelTransaction, batch: Batch) -> dict[Key, Exception]:
        """Go on after an error that has undone the statement."""
        if writing.session.database.faults.at((Fault.DEADLOCK,)) is Fault.DEADLOCK:
            with mock.patch.object(transaction, "apply_changes", return_value=0):
                return original(writing, batch)
        return original(writing, batch)

    return write


@contextmanager
def _tokens_in_redis() -> Iterator[None]:
    services: list[Service] = []
    made = Service.__init__

    def making(service: Service, *arguments: Any, **options: Any) -> None:
        made(service, *arguments, **options)
        services[:] = [service]

    def mint(_database: Database, number: int, row: PartitionRow) -> int:
        node = services[0].primary
        if node is None:
            return row.token + 1
        was, node.forced_full = node.policy.capacity, False
        node.policy.capacity = 1 << 30
        token = int(node.execute([b"HINCRBY", b"tokens", b"%d" % number, b"1"]))
        node.policy.capacity = was
        return token

    with mock.patch.object(Service, "__init__", making), mock.patch.object(adapters, "next_token", mint):
        yield


@contextmanager
def _identity_ignored() -> Iterator[None]:
    """Neither the script nor the writer before it looks where it is."""
    unchecked = edited(
        scripts.APPEND, "if (known[1] or '') .. ' ' .. (known[2] or '') ~= ARGV[1] or", "if not known[1] or"
    )
    with unchecked, mock.patch.object(rewriter.Rewriter, "meet", return_value=None):
        yield


def _unawaited(*arguments: Any) -> tuple[reading.Standing, EntryID | None]:
    """Take what SQL has for what a marker stands for."""
    state, version = reading.believed(*arguments)
    return (reading.Standing.IN_SQL, None) if state is reading.Standing.IN_LOG else (state, version)


def _closing(ring: Ring, partition: int, epoch: int, _end: EntryID | None) -> None:
    """Expect nothing more of an epoch of which a loss was told."""
    ring.dropped.get(partition, {}).pop(b"%d" % epoch, None)


def _beyond(cursor: Cursor, _now: float, _seconds: float) -> EntryID | None:
    return EntryID(cursor.position.epoch, cursor.position.sequence + 3) if cursor.position.epoch else None


WRITING = [
    Mutant(
        name="hset before xadd",
        harm="a write torn in the middle leaves a record that no log knows of",
        rules=frozenset({"reads", "torn"}),
        make=lambda: edited(
            scripts.APPEND,
            "  if doubt == '' then",
            "  if ARGV[at + 2] == 'p' then\n"
            "    redis.call('HSET', KEYS[record], unpack(ARGV, at + 4, at + 3 + ARGV[at + 3]))\n"
            "  end\n"
            "  if doubt == '' then",
        ),
        theme=Theme(events=["power loss", "restart redis"]),
    ),
    Mutant(
        name="maxlen on xadd",
        harm="entries that no flusher has read give way to newer ones",
        rules=frozenset({"acknowledged", "honesty", "reads"}),
        make=lambda: edited(
            scripts.APPEND,
            "redis.call('XADD', log, epoch, 'm', mutation, 'p', ARGV[at])",
            "redis.call('XADD', log, 'MAXLEN', 4, epoch, 'm', mutation, 'p', ARGV[at])",
        ),
        theme=Theme(),
    ),
    Mutant(
        name="identity not checked",
        harm="after a failover two histories share an epoch, and IDs are given twice",
        rules=frozenset({"IDs", "once", "order", "acknowledged", "receipts"}),
        make=_identity_ignored,
        theme=Theme(events=["failover"]),
    ),
    Mutant(
        name="epochs 1, 2, 3",
        harm="a Redis that lost everything begins epoch 1 again: its entries pass for flushed ones",
        rules=frozenset({"IDs", "acknowledged", "once", "order", "liveness"}),
        make=lambda: edited(
            scripts.OPEN_EPOCH,
            "if epoch <= floor then epoch = floor + 1 + tonumber(ARGV[2]) end",
            "epoch = floor + 1",
        ),
        theme=Theme(events=["failover", "power loss"]),
    ),
    Mutant(
        name="no mutation ID in retries",
        harm="a write whose reply was lost stands twice",
        rules=frozenset({"refused", "once", "liveness"}),
        make=lambda: mock.patch.object(appender, "append", _forgetful),
        theme=Theme(faults=[Fault.UNANSWERED]),
    ),
    Mutant(
        name="a dirty record expires",
        harm="a record written again keeps its time to live: evicted, an old row is read in its place",
        rules=frozenset({"reads", "clean"}),
        make=lambda: edited(scripts.APPEND, "redis.call('PERSIST', key)", "redis.call('HGET', key, ':state')"),
        theme=Theme(events=["eviction"]),
    ),
    Mutant(
        name="a marker is not awaited",
        harm="a read after a cold increment gives the row of before",
        rules=frozenset({"reads"}),
        make=lambda: mock.patch.object(read_through, "believed", _unawaited),
        theme=Theme(),
    ),
    Mutant(
        name="no floor",
        harm="records that Redis was rolled back below are read and built upon",
        rules=frozenset({"reads"}),
        make=lambda: edited(
            scripts.OPEN_EPOCH, "redis.call('HSET', meta, 'floor', name)", "redis.call('EXISTS', meta)"
        ),
        theme=Theme(events=["failover"]),
        seeds_max=600,
    ),
]

FLUSHING = [
    Mutant(
        name="acknowledged before the commit",
        harm="what is acknowledged and not committed is read as flushed",
        rules=frozenset({"reads", "persisted", "honesty", "acknowledged", "clean"}),
        make=lambda: mock.patch.object(flusher, "flush", _hasty),
        theme=Theme(faults=KILLS),
    ),
    Mutant(
        name="no fence",
        harm="a frozen flusher's batch is committed after its successor's",
        rules=frozenset({"fencing", "once", "order"}),
        make=lambda: mock.patch.object(ModelTransaction, "_move", _all_moved),
        theme=Theme(faults=[Fault.FREEZE_BEFORE, Fault.FREEZE_AFTER], events=["freeze"]),
    ),
    Mutant(
        name="tokens minted in Redis",
        harm="after a failover a token is given twice",
        rules=frozenset({"fencing"}),
        make=_tokens_in_redis,
        theme=Theme(faults=KILLS, events=["failover", "kill"]),
    ),
    Mutant(
        name="a swallowed SQL error",
        harm="the offset moves past rows that were never written",
        rules=frozenset({"rows"}),
        make=lambda: mock.patch.object(ModelTransaction, "write", _swallowing(ModelTransaction.write)),
        theme=Theme(faults=[Fault.DEADLOCK]),
    ),
    Mutant(
        name="settled whatever the version",
        harm="a record that was written again becomes clean, and goes",
        rules=frozenset({"reads", "clean"}),
        make=lambda: edited(scripts.SETTLE, "  if known[1] == ARGV[i + 5] then", "  if known[1] then"),
        theme=Theme(),
    ),
    Mutant(
        name="trimmed above the offset",
        harm="what nobody has read yet is gone",
        rules=frozenset({"acknowledged", "honesty", "liveness", "reads"}),
        make=lambda: mock.patch.object(Cursor, "trim_point", _beyond),
        theme=Theme(faults=KILLS),
    ),
]

RECOVERING = [
    Mutant(
        name="applied means ID at most the offset",
        harm="after a failover to a clock behind, new writes pass for applied ones",
        rules=frozenset({"acknowledged", "liveness", "order"}),
        make=lambda: mock.patch.object(takeover, "begin", _by_offset),
        theme=Theme(events=["failover", "replica cut"]),
        seeds_max=600,
    ),
    Mutant(
        name="takeover from the group's position",
        harm="what was delivered and not committed is skipped",
        rules=frozenset({"acknowledged", "liveness", "honesty"}),
        make=lambda: mock.patch.object(reclaim, "takeover", _trusting),
        theme=Theme(faults=KILLS),
    ),
    Mutant(
        name="a doubt that is not told",
        harm="a write that was passed over, because nobody can know whether SQL has it, is missing in silence",
        rules=frozenset({"doubts"}),
        make=lambda: mock.patch.object(losses, "_runs", return_value=[]),
        theme=DOUBTS,
    ),
    Mutant(
        name="a doubt is shown",
        harm="a record shows a write that was passed over, and what is written upon it",
        rules=frozenset({"reads"}),
        make=lambda: edited(
            scripts.APPEND,
            "      if doubt ~= '' then\n        redis.call('HSET', key, ':version', id)\n      elseif",
            "      if",
        ),
        theme=DOUBTS,
        seeds_max=600,
    ),
    Mutant(
        name="one loss an epoch",
        harm="what a second rollback takes of the same epoch is told to nobody",
        rules=frozenset({"silence"}),
        make=lambda: mock.patch.object(Ring, "cut", _closing),
        theme=Theme(
            events=["power loss"],
            faults=[Fault.STALL, Fault.TIMEOUT, Fault.LATE],
            only=True,
            forgets=True,
            appendfsync="no",
        ),
        seeds_max=600,
    ),
]

MUTANTS = [*WRITING, *READING, *FLUSHING, *REFUSING, *RECOVERING]
