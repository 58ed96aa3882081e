"""What is not believed of a partition when its history begins anew: entries that came back, and records.

Redis that is killed while it logs a transaction may forget it at the next start, and have it again at the one after
that; or it may have executed only its beginning. One that was rolled back has records that SQL has newer. Whoever takes
the partition over decides which these are (``recovery.takeover``) and has them removed here. A record of entries that
SQL has not applied yet becomes a marker, whose reads wait for SQL.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any

import redis

from writebehind.engine.adapters.links import Link, refusal
from writebehind.engine.adapters.log_replies import RawEntry, refused
from writebehind.engine.adapters.scripts import DISTRUST, TRUST
from writebehind.engine.core.contiguity import Lineage
from writebehind.engine.core.keys import Keys
from writebehind.engine.core.payload import PayloadError, decode
from writebehind.engine.core.positions import EntryID

__all__ = ["KEYS_PER_SCRIPT", "Doubts", "around_ends"]

KEYS_PER_SCRIPT = 1000


def around_ends(link: Link, log: str, lineage: Lineage) -> tuple[list[RawEntry], dict[int, RawEntry]]:
    """Return what stands above the ends of epochs, and by the next epoch the last entry of each, if it is there.

    Raises:
        redis.RedisError: the connection failed.
        WriteBehindError: as ``refused`` says.
    """
    epochs = sorted(lineage)
    commands = []
    for epoch, following in pairwise(epochs):
        base = lineage[following]
        first = base if base is not None and base.epoch == epoch else f"{epoch}-0"
        commands.append(("XRANGE", log, str(first), f"({following}-0"))
    ghosts: list[RawEntry] = []
    last_before: dict[int, RawEntry] = {}
    for following, reply in zip(epochs[1:], link.pipeline(commands) if commands else (), strict=True):
        if isinstance(reply, redis.ResponseError):
            raise refused(reply) from reply
        base, found = lineage[following], list(reply)
        if base is not None and found and found[0][0] == str(base).encode():
            last_before[following] = found.pop(0)
        ghosts += found
    return ghosts, last_before


class Doubts:
    """Takes out of the logs of a namespace, and out of belief, what is not of their history.

    Args:
        lend: lends a link, to the primary and in the history in which the logs were looked at, and says in the engine's
            terms what Redis refuses on it.
        keys: the namespace's key names.
    """

    def __init__(self, lend: Callable[[], AbstractContextManager[Link]], keys: Keys) -> None:
        self._lend = lend
        self._keys = keys

    def expunge(self, partition: int, ghosts: Sequence[RawEntry], position: EntryID) -> None:
        """Remove entries that are not of this history, and the records that they touched.

        Args:
            partition: its number.
            ghosts: the entries.
            position: what SQL has applied; a record above it becomes a marker, others are removed.

        Durability: nothing is lost that was not lost before. Repeat: harmless. Crash: records first, entries last.

        Raises:
            RedisUnavailable: Redis cannot be reached.
        """
        ids = [entry[0] for entry in ghosts]
        with self._lend() as link:
            self._distrust(link, self._touched(partition, ghosts), "", position, ghosts=ids)
            link.command("XDEL", self._keys.logs[partition], *ids)

    def doubt(self, partition: int, epoch: int, last: RawEntry, position: EntryID) -> None:
        """Believe no record that the last entry before an epoch has touched, and that was not written since.

        Args:
            partition: its number.
            epoch: the epoch.
            last: the entry.
            position: what SQL has applied; where the entry is above it, its records become markers.

        Durability: nothing is lost, the log has the entry. Repeat: harmless.

        Raises:
            RedisUnavailable: Redis cannot be reached.
        """
        entry_id = EntryID.parse(last[0])
        with self._lend() as link:
            records = self._touched(partition, [last])
            self._distrust(link, records, str(epoch), position, last=entry_id if entry_id > position else None)

    def distrust(self, partition: int, below: int, position: EntryID) -> int:
        """Remove the partition's records of epochs below one, where SQL has applied them; return how many.

        Cost: one SCAN of the whole Redis database.

        Durability: SQL has what is removed. Repeat: harmless.

        Raises:
            RedisUnavailable: Redis cannot be reached.
        """
        stem, meta = self._keys.stems[partition], self._keys.metas[partition].encode()
        removed = 0
        cursor = b"0"
        with self._lend() as link:
            while True:
                cursor, found = link.command(
                    "SCAN", cursor, "MATCH", stem + "*", "COUNT", KEYS_PER_SCRIPT, "TYPE", "hash"
                )
                removed += self._distrust(link, [name for name in found if name != meta], str(below), position)
                if cursor == b"0":
                    return removed

    def trust(self, partition: int, floor: int, judged: int | None) -> None:
        """Let records be believed again, once this history was compared with SQL. Repeat: harmless.

        Raises:
            RedisUnavailable: Redis cannot be reached.
        """
        with self._lend() as link:
            link.script(TRUST, [self._keys.metas[partition]], [floor, "" if judged is None else judged])

    def _touched(self, partition: int, entries: Sequence[RawEntry]) -> list[str]:
        """Return the names of the records that some entries have touched."""
        records: set[str] = set()
        for _, fields in entries:
            try:
                mutations = decode(fields[3])
            except (PayloadError, IndexError):
                # What cannot be read has touched nothing of ours.
                continue
            records |= {self._keys.record(partition, table, key) for _, table, key, _ in mutations if key}
        return sorted(records)

    def _distrust(
        self,
        link: Link,
        records: Sequence[Any],
        below: str,
        position: EntryID,
        *,
        last: EntryID | None = None,
        ghosts: Sequence[bytes] = (),
    ) -> int:
        if not records:
            return 0
        arguments = (below, *position, "" if last is None else str(last), *ghosts)
        try:
            return int(link.script(DISTRUST, records, arguments))
        except redis.ResponseError as error:
            if refusal(error).code != "WRONGTYPE":
                raise
            if len(records) == 1:
                # Somebody else's key in the place of a record, and left alone.
                return 0
        return sum(self._distrust(link, [record], below, position, last=last, ghosts=ghosts) for record in records)
