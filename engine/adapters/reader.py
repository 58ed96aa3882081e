"""Reads that see every accepted write, whether it is in Redis, on its way to SQL, or in SQL."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

import redis

from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.engine.adapters.links import Links, refusal
from writebehind.engine.adapters.rows import Rows
from writebehind.engine.core.contiguity import Lineage, is_ghost, parse_lineage
from writebehind.engine.core.keys import Keys
from writebehind.engine.core.partitioning import partition_of
from writebehind.engine.core.positions import ORIGIN, EntryID
from writebehind.engine.core.reading import Standing, standing
from writebehind.engine.errors import ConfigurationError, ReadTimeout, RedisUnavailable, ValidationError

__all__ = ["Reader"]

PAUSE_SECONDS = 0.002
PAUSE_SECONDS_MAX = 0.05
ASK_SQL_AFTER_SECONDS = 0.5


@dataclass(slots=True)
class _Wanted:
    """One record being read."""

    key_text: str
    partition: int
    key_values: dict[str, Any] = field(repr=False)
    overlay: dict[str, Any] = field(repr=False)
    version: bytes | None = None


class Reader:
    """Reads records of one namespace.

    Args:
        links: connections to Redis.
        rows: the database.
        keys: the namespace's key names.
        timeout_seconds: how long to wait for entries that a read depends on.
        meet: called with a primary and a partition before it is read there: a new history gets first what this engine
            has written to the old one.
    """

    def __init__(
        self, links: Links, rows: Rows, keys: Keys, timeout_seconds: float, meet: Callable[[bytes, int], None]
    ) -> None:
        self._links = links
        self._meet = meet
        self._rows = rows
        self._keys = keys
        self._timeout_seconds = timeout_seconds

    def read(self, declared: DeclaredTable, keys: Sequence[Any]) -> dict[Any, dict[str, Any] | None]:
        """Read records by key.

        Args:
            declared: the table.
            keys: scalars, or tuples for a composite key.

        Returns:
            For each key the record's user values, or None where there is none.

        Raises:
            ReadTimeout: a record depends on entries that were not flushed in time.
            RedisUnavailable, DatabaseUnavailable: a server cannot be read.
            ConfigurationError: another program has written what is to be read.
            ValidationError: a key does not fit the table.
        """
        try:
            found: dict[Any, dict[str, Any] | None] = dict.fromkeys(keys)
        except TypeError:
            raise ValidationError(
                f"a key of {declared.entity.name} is of a type that no key is of", "pass scalars, or tuples of them"
            ) from None
        waiting: dict[Any, _Wanted] = {}
        for key in found:
            key_text, spread, values = declared.plan.key_only(key)
            waiting[key] = _Wanted(key_text, partition_of(spread, self._keys.partitions), values, {})
        begun = time.monotonic()
        pause = PAUSE_SECONDS
        while waiting:
            to_load: dict[Any, _Wanted] = {}
            try:
                waiting = self._look(declared, waiting, found, to_load, ask_sql=self._overdue(begun))
            except ValueError:
                raise _foreign(declared) from None
            waiting |= self._load(declared, to_load, found)
            if waiting:
                if time.monotonic() - begun > self._timeout_seconds:
                    raise ReadTimeout(
                        f"{len(waiting)} records of {declared.entity.name} depend on entries that are not in SQL yet",
                        "check 'writebehind status': is a flusher running?",
                    )
                time.sleep(pause)
                pause = min(2 * pause, PAUSE_SECONDS_MAX)
        return found

    def _load(
        self, declared: DeclaredTable, to_load: Mapping[Any, _Wanted], found: dict[Any, dict[str, Any] | None]
    ) -> dict[Any, _Wanted]:
        """Load rows and lay overlays over them; return the records that were written meanwhile.

        An overlay lies over the row that it was made for: over a later one it might show what never was.
        """
        if not to_load:
            return {}
        rows = self._rows.load(declared, {wanted.key_text: wanted.key_values for wanted in to_load.values()})
        overlaid = {key: wanted for key, wanted in to_load.items() if wanted.overlay}
        versions: list[Any] = []
        if overlaid:
            name = declared.entity.name
            with self._links.link() as link:
                versions = link.pipeline(
                    [
                        ("HGET", self._keys.record(wanted.partition, name, wanted.key_text), ":version")
                        for wanted in overlaid.values()
                    ]
                )
        again = {
            key: wanted
            for (key, wanted), version in zip(overlaid.items(), versions, strict=True)
            if version != wanted.version
        }
        for key, wanted in to_load.items():
            row = rows.get(wanted.key_text)
            found[key] = None if row is None else {**row, **wanted.overlay}
        return again

    def _look(
        self,
        declared: DeclaredTable,
        waiting: Mapping[Any, _Wanted],
        found: dict[Any, dict[str, Any] | None],
        to_load: dict[Any, _Wanted],
        *,
        ask_sql: bool,
    ) -> dict[Any, _Wanted]:
        """Look at the hashes once; return what has to wait for the log."""
        name = declared.entity.name
        partitions = sorted({wanted.partition for wanted in waiting.values()})
        commands: list[tuple[Any, ...]] = [
            ("HGETALL", self._keys.record(wanted.partition, name, wanted.key_text)) for wanted in waiting.values()
        ]
        # After the hashes: a watermark read later covers all the more, and so does the mark of inserts.
        commands += [
            ("HMGET", self._keys.metas[number], "watermark", f"inserted:{name}", "identity", "floor")
            for number in partitions
        ]
        with self._links.link() as link:
            identity = link.identity
            for number in partitions:
                self._meet(identity, number)
            replies = link.pipeline(commands)
        for reply in replies:
            if isinstance(reply, redis.ResponseError):
                raise _refused(declared, reply) from reply
        marks = dict(zip(partitions, replies[len(waiting) :], strict=True))
        floors = {number: _floor(known, floor, identity) for number, (_, _, known, floor) in marks.items()}
        unjudged = sorted(
            {
                wanted.partition
                for wanted, reply in zip(waiting.values(), replies, strict=False)
                if reply and _version_epoch(reply) < floors[wanted.partition]
            }
        )
        applied = self._rows.applied_of(self._keys.namespace, unjudged) if unjudged else {}
        lineages = self._lineages(unjudged)
        still: dict[Any, _Wanted] = {}
        for (key, wanted), reply in zip(waiting.items(), replies, strict=False):
            fields = dict(zip(reply[::2], reply[1::2], strict=True))
            state, version = standing(fields)
            watermark, inserted = (EntryID.parse(mark) if mark else ORIGIN for mark in marks[wanted.partition][:2])
            if (
                version is not None
                and version.epoch < floors[wanted.partition]
                and (
                    applied[wanted.partition].covers(version) is not False
                    or is_ghost(version, lineages[wanted.partition])
                )
            ):
                # SQL has this version, or a later one that Redis was rolled back to before; or it came back from there.
                state, version = Standing.IN_SQL, None
            if state is Standing.ABSENT:
                found[key] = None
                continue
            if state is Standing.WHOLE:
                record = declared.plan.decode_hash(fields)
                if record is not None:
                    found[key] = record
                    continue
            needed = inserted if version is None or state is Standing.OVERLAY else max(version, inserted)
            if needed > watermark and not (ask_sql and self._applied(wanted.partition, needed)):
                still[key] = wanted
                continue
            wanted.overlay = declared.plan.decode_fields(fields) if state is Standing.OVERLAY else {}
            wanted.version = fields.get(b":version")
            to_load[key] = wanted
        return still

    def _lineages(self, partitions: Sequence[int]) -> dict[int, Lineage]:
        if not partitions:
            return {}
        with self._links.link() as link:
            metas = link.pipeline([("HGETALL", self._keys.metas[number]) for number in partitions])
        return {
            number: parse_lineage(dict(zip(meta[::2], meta[1::2], strict=True)))
            for number, meta in zip(partitions, metas, strict=True)
        }

    def _applied(self, partition: int, entry_id: EntryID) -> bool:
        return self._rows.applied(self._keys.namespace, partition, entry_id) is not False

    def _overdue(self, begun: float) -> bool:
        return time.monotonic() - begun > ASK_SQL_AFTER_SECONDS


def _foreign(declared: DeclaredTable) -> ConfigurationError:
    return ConfigurationError(
        f"a record of {declared.entity.name} in Redis, or its partition's meta hash, is not as the engine writes it",
        "another program has written to the namespace; 'writebehind verify' names the keys",
    )


def _refused(declared: DeclaredTable, error: redis.ResponseError) -> Exception:
    refused = refusal(error)
    if refused.code == "WRONGTYPE":
        return _foreign(declared)
    return RedisUnavailable(f"Redis refuses: {refused.code} {refused.text}", "check the server and the permissions")


def _version_epoch(reply: list[bytes]) -> float:
    version = dict(zip(reply[::2], reply[1::2], strict=True)).get(b":version")
    return EntryID.parse(version).epoch if version else inf


def _floor(known: bytes | None, floor: bytes | None, identity: bytes) -> float:
    """Return the epoch below which records may be older in Redis than in SQL; 0 where none is."""
    if known is not None and known != identity:
        # A new history in which no epoch has begun.
        return inf
    return int(floor) if floor else 0
