"""The comparison of records with rows, done on real servers."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeVar, assert_never, cast

import redis

from writebehind.engine import WriteBehind
from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.engine.adapters.links import refusal
from writebehind.engine.adapters.rows import UnreadableRow
from writebehind.engine.adapters.scripts import MISSING
from writebehind.engine.core.positions import ORIGIN, EntryID
from writebehind.engine.core.reading import STATES, Standing, loaded_at
from writebehind.engine.errors import ConfigurationError, RedisUnavailable
from writebehind.recovery.comparison import (
    Absent,
    AskSQL,
    Assessed,
    Effect,
    Judged,
    Lettered,
    LoadRows,
    Look,
    RecordKey,
    Reply,
    Row,
    Sighting,
    Unreadable,
    assess,
    compare,
)
from writebehind.recovery.letter_keys import lettered

__all__ = ["Records"]

Answer = TypeVar("Answer")


class Records:
    """The records of one engine's namespace, in Redis and in SQL. Reads only.

    Args:
        app: the engine.
    """

    def __init__(self, app: WriteBehind) -> None:
        self._app = app
        self._links = app.links
        self._keys = app.keys
        self._columns = {name: declared.plan.columns for name, declared in app.tables.items()}

    def judge(self, keys: Iterable[RecordKey]) -> list[Judged]:
        """Compare records with their rows; those that are gone from Redis meanwhile are left out.

        Raises:
            RedisUnavailable, DatabaseUnavailable: a server cannot be read.
            ConfigurationError: Redis refuses for good.
        """
        return self._drive(compare(keys, self._columns))

    def assess(self, keys: Sequence[RecordKey]) -> dict[RecordKey, Assessed]:
        """Tell where the last changes of records are, without reading their rows; raises as ``judge``."""
        return self._drive(assess(keys))

    def _drive(self, protocol: Generator[Effect, Any, Answer]) -> Answer:
        try:
            effect = next(protocol)
            while True:
                effect = protocol.send(self.perform(effect))
        except StopIteration as stop:
            return cast("Answer", stop.value)

    def perform(self, effect: Effect) -> Reply:
        """Do one effect of the comparison."""
        match effect:
            case Look(keys):
                return self._look(keys)
            case AskSQL(partitions):
                return self._app.rows.applied_of(self._keys.namespace, partitions)
            case Absent(entries):
                return self.absent(entries)
            case Lettered(keys):
                return lettered(self._app, keys)
            case LoadRows(keys):
                return self._load(keys)
            case _:
                assert_never(effect)

    def _look(self, keys: Sequence[RecordKey]) -> dict[RecordKey, Sighting | None]:
        partitions = sorted({key.partition for key in keys})
        # Before the hashes: what is settled by an earlier watermark was settled when its hash was read.
        commands: list[tuple[Any, ...]] = [
            ("HMGET", self._keys.metas[number], "identity", "floor", "watermark") for number in partitions
        ]
        commands += [("HGETALL", self.name(key)) for key in keys]
        with self._links.link() as link:
            replies = link.pipeline(commands)
            identity = link.identity
        for reply in replies[: len(partitions)]:
            if isinstance(reply, redis.ResponseError):
                raise refused(reply) from reply
        metas = dict(zip(partitions, replies, strict=False))
        return {
            key: self._sighting(key, reply, metas[key.partition], identity)
            for key, reply in zip(keys, replies[len(partitions) :], strict=True)
        }

    def _sighting(self, key: RecordKey, reply: Any, meta: Sequence[bytes | None], identity: bytes) -> Sighting | None:
        trouble: str | None = None
        if isinstance(reply, redis.ResponseError):
            if refusal(reply).code != "WRONGTYPE":
                raise refused(reply) from reply
            trouble, reply = "it is not a hash", [b"", b""]
        if not reply:
            return None
        raw = dict(zip(reply[::2], reply[1::2], strict=True))
        state = STATES.get(raw.get(b":state", b""), Standing.IN_LOG)
        version, loaded, values = None, None, {}
        if trouble is None:
            try:
                loaded = loaded_at(raw)
                version = EntryID.parse(raw[b":version"]) if loaded is None else None
                values = self._app.tables[key.table].plan.decode_fields(raw)
            except (KeyError, ValueError):
                trouble = "it does not say which entry changed it last"
            except ConfigurationError as error:
                trouble = error.message
            else:
                trouble = None if raw.get(b":state") in STATES else "it has a state that this release does not know"
        known, floor, watermark = meta
        return Sighting(
            raw=raw,
            state=state,
            version=version,
            values=values,
            trouble=trouble,
            # The reader asks SQL for these, too.
            suspect=(known is not None and known != identity)
            or (floor is not None and any(mark is not None and mark.epoch < int(floor) for mark in (version, loaded))),
            settled=version is not None and version <= (EntryID.parse(watermark) if watermark else ORIGIN),
        )

    def absent(self, entries: Sequence[tuple[int, EntryID]]) -> set[tuple[int, EntryID]]:
        """Return those of some entries, named by partition and ID, that are not in the logs.

        Raises:
            RedisUnavailable: Redis cannot be read.
            ConfigurationError: Redis refuses for good.
        """
        found: set[tuple[int, EntryID]] = set()
        with self._links.link() as link:
            try:
                for partition, group in groupby(sorted(entries), key=lambda entry: entry[0]):
                    ids = [str(entry_id) for _, entry_id in group]
                    missing = link.script(MISSING, [self._keys.logs[partition]], ids)
                    found |= {(partition, EntryID.parse(entry_id)) for entry_id in missing}
            except redis.ResponseError as error:
                raise refused(error) from error
        return found

    def _load(self, keys: Sequence[RecordKey]) -> dict[RecordKey, Row | Unreadable]:
        rows: dict[RecordKey, Row | Unreadable] = {}
        for name in {key.table for key in keys}:
            rows |= self._load_table(self._app.tables[name], [key for key in keys if key.table == name])
        return rows

    def _load_table(self, declared: DeclaredTable, keys: Sequence[RecordKey]) -> dict[RecordKey, Row | Unreadable]:
        try:
            rows: Mapping[str, Row] = self._app.rows.load(declared, {key.key_text: key.values for key in keys})
        except UnreadableRow as error:
            if len(keys) == 1:
                return {keys[0]: Unreadable(error.message)}
            half = len(keys) // 2
            return self._load_table(declared, keys[:half]) | self._load_table(declared, keys[half:])
        return {key: rows[key.key_text] for key in keys if key.key_text in rows}

    def name(self, key: RecordKey) -> str:
        """Return the name of a record's hash."""
        return self._keys.record(key.partition, key.table, key.key_text)


def refused(error: redis.ResponseError) -> Exception:
    """Translate a refusal of Redis."""
    found = refusal(error)
    if found.code in {"NOPERM", "WRONGTYPE", "ERR"}:
        return ConfigurationError(
            f"Redis refuses: {found.code} {found.text}", "check the user's permissions and the keys"
        )
    return RedisUnavailable(f"Redis refuses: {found.code} {found.text}", "try later")
