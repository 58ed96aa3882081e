"""The takeover protocol, done on real logs."""

import logging
from collections.abc import Callable, Generator, Mapping
from typing import assert_never, cast

from writebehind.engine.adapters.log import Acknowledgement, Log
from writebehind.engine.core.positions import EntryID
from writebehind.engine.errors import LeaseLost
from writebehind.recovery.takeover import (
    Claim,
    Confirmed,
    Distrust,
    Doubt,
    Effect,
    Expunge,
    Inspect,
    MakeGroup,
    OpenEpoch,
    Reply,
    Start,
    Trust,
    takeover,
)

__all__ = ["perform", "reclaim"]

logger = logging.getLogger(__name__)


def reclaim(
    log: Log, partition: int, offset: EntryID, earlier: Mapping[int, EntryID], still_held: Callable[[], bool]
) -> Start:
    """Take a partition over and return where to serve from. Only for the holder of its lease.

    Args:
        log: the logs.
        partition: its number.
        offset: the offset in SQL.
        earlier: by epoch, the last applied entry of the epoch before it.
        still_held: asks SQL whether the lease is still this holder's: one that was frozen judges by an old offset.

    Durability, Repeat, Crash: as ``takeover``.

    Raises:
        RedisUnavailable: Redis cannot be reached.
        ConfigurationError: Redis refuses for good.
        LeaseLost: the lease is another's; nothing was judged.
    """
    start = _drive(log, partition, takeover(offset, earlier), still_held)
    if start.gone:
        logger.error(
            "DATA LOSS: partition %d: %d entries that were delivered and not applied are gone from the log, %s to %s",
            partition, len(start.gone), start.gone[0].decode(), start.gone[-1].decode(),
        )  # fmt: skip
    if start.past_missing:
        logger.error(
            "POSSIBLE DATA LOSS: partition %d: the log has nothing of the history that SQL applied up to %s: it was "
            "emptied, or this is another Redis; what stood above that is lost unless its writers write it again",
            partition, offset,
        )  # fmt: skip
    if start.group_made:
        logger.warning("partition %d: the consumer group was missing; made anew at %s", partition, start.position)
    if start.ghosts:
        logger.warning(
            "partition %d: removed %d entries that Redis had forgotten at an earlier start", partition, start.ghosts
        )
    if start.ahead is not None:
        logger.warning(
            "partition %d: Redis was rolled back below what SQL has (%s); %d records will be loaded from SQL again",
            partition, offset, start.distrusted,
        )  # fmt: skip
    if start.claimed:
        logger.info("partition %d: claimed %d pending entries", partition, start.claimed)
    if start.served_by_group:
        log.forget_consumers(partition)
    return start


def _drive(
    log: Log, partition: int, protocol: Generator[Effect, Reply, Start], still_held: Callable[[], bool]
) -> Start:
    effect = next(protocol)
    while True:
        if isinstance(effect, Expunge | Doubt | Distrust | Trust) and not still_held():
            raise LeaseLost(f"partition {partition} has another holder", "it is left to that one")
        try:
            effect = protocol.send(perform(log, partition, effect))
        except StopIteration as stop:
            return cast("Start", stop.value)


def perform(log: Log, partition: int, effect: Effect) -> Reply:
    """Do one effect of the takeover protocol."""
    match effect:
        case Inspect():
            return log.states([partition])[partition]
        case OpenEpoch():
            return log.open_epoch(partition)
        case Expunge(ghosts, position):
            log.doubts.expunge(partition, ghosts, position)
        case Doubt(epoch, last, position):
            log.doubts.doubt(partition, epoch, last, position)
        case Distrust(below, position):
            return log.doubts.distrust(partition, below, position)
        case Trust(floor, judged):
            log.doubts.trust(partition, floor, judged)
        case MakeGroup(position):
            return log.ensure_group(partition, position)
        case Claim():
            return log.claim(partition)
        case Confirmed(ids, position):
            log.acknowledge(
                [
                    Acknowledgement(
                        partition=partition,
                        ids=ids,
                        offset=position,
                        whole=(),
                        other=(),
                        ttl_ms=0,
                        trim_below=None,
                        flushed_rows=0,
                        letters=True,  # nobody has looked
                    )
                ]
            )
        case _:
            assert_never(effect)
    return None
