"""Writing records again through the log, only where they are still what they were when they were looked at.

The check and the write are one: WATCH makes Redis refuse the transaction around the write script where anything has
touched one of the records since. So nothing newer is ever overwritten, and the entry stands in the log in the order of
its key, to be flushed as any other.
"""

import itertools
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis

from writebehind.engine import WriteBehind
from writebehind.engine.adapters.links import Link, open_epoch, refusal
from writebehind.engine.adapters.scripts import APPEND
from writebehind.engine.core.composing import Draft, Entry, pieces
from writebehind.recovery.records import refused

__all__ = ["ConditionalWriter", "Rewrite"]


@dataclass(frozen=True, slots=True)
class Rewrite:
    """An entry to be written in place of what a record has.

    Attributes:
        record: name of the record's hash.
        version: the version that the hash has to have still; None for none, as where it was only loaded from SQL.
        entry: what to append.
    """

    record: str
    version: bytes | None
    entry: Entry


class ConditionalWriter:
    """Writes records of one engine's namespace again. Not for sharing between threads.

    Args:
        app: the engine.

    Durability: what counts as written is in the log of the primary. Repeat: a record that was written has another
    version, and is left alone. Crash: each record is written with its entry, or not at all.
    """

    def __init__(self, app: WriteBehind) -> None:
        self._links = app.links
        self._keys = app.keys
        self._settings = app.settings
        self._client_id = secrets.token_hex(5)
        self._numbers = itertools.count(1)
        self._epochs: dict[int, bytes] = {}

    def write(self, rewrites: Sequence[Rewrite]) -> list[bool]:
        """Write records again; return for each whether it was, or was left alone because it has changed.

        Raises:
            RedisUnavailable: Redis refuses, or does not answer: then the last entries may be written or not, and a
                repetition finds out.
            ConfigurationError: Redis refuses for good.
        """
        written = [False] * len(rewrites)
        by_partition: dict[int, list[int]] = {}
        for number, rewrite in enumerate(rewrites):
            by_partition.setdefault(rewrite.entry.partition, []).append(number)
        for partition, numbers in by_partition.items():
            payloads = (rewrites[number].entry.payload for number in numbers)
            for cut in pieces(payloads, self._settings.call_entries_max, self._settings.call_bytes_max):
                for number in self._write(partition, {number: rewrites[number] for number in numbers[cut]}):
                    written[number] = True
        return written

    def _write(self, partition: int, todo: dict[int, Rewrite]) -> list[int]:
        """Write some records of one partition; return the numbers of those that had not changed."""
        with self._links.link() as link:
            if partition not in self._epochs:
                self._open_epoch(link, partition)
            same = self._watched(link, todo)
            if not same:
                link.command("UNWATCH")
                return []
            reply = self._append(link, partition, same)
            if isinstance(reply, redis.ResponseError) and refusal(reply).code == "TIMELINE":
                # The primary is another one since, or was restarted.
                self._open_epoch(link, partition)
                same = self._watched(link, same)
                reply = self._append(link, partition, same) if same else None
        if isinstance(reply, redis.ResponseError):
            raise refused(reply) from reply
        if reply is not None:
            return list(same)
        if len(same) <= 1:
            return []
        # Somebody writes one of them: it must not keep the others from being written.
        return [number for each in same.items() for number in self._write(partition, dict([each]))]

    def _open_epoch(self, link: Link, partition: int) -> None:
        try:
            self._epochs[partition] = open_epoch(link, self._keys, partition)
        except redis.ResponseError as error:
            raise refused(error) from error

    def _watched(self, link: Link, todo: dict[int, Rewrite]) -> dict[int, Rewrite]:
        """Have Redis watch the records; return those that have not changed before."""
        names = [rewrite.record for rewrite in todo.values()]
        _, *versions = link.pipeline([("WATCH", *names), *(("HGET", name, ":version") for name in names)])
        return {
            number: rewrite
            for (number, rewrite), version in zip(todo.items(), versions, strict=True)
            if version == rewrite.version
        }

    def _append(self, link: Link, partition: int, todo: dict[int, Rewrite]) -> Any:
        """Return the last entry's ID; None where a record has changed; or Redis's refusal."""
        number = next(self._numbers)
        call_id = f"{int(time.time() * 1000):011x}{self._client_id}{number:x}"
        draft = Draft(partition)
        for rewrite in todo.values():
            draft.add(rewrite.entry)
        made = draft.call(call_id)
        names = (self._keys.logs[partition], self._keys.metas[partition], *made.records)
        # Never repeated where the reply is lost: hence no anchor, and nothing to search.
        history = b"%b %b" % (link.identity, self._epochs[partition])
        # Nor is it ever refused for the backlog: what is repaired would only be wrong for longer.
        head = (history, self._client_id, number, call_id, "", 0, "", "")
        append = ("EVAL", APPEND.text, len(names), *names, *head, *made.arguments)
        replies = link.pipeline([("MULTI",), append, ("EXEC",)])
        for reply in replies[:2]:
            if isinstance(reply, redis.ResponseError):
                return reply
        done = replies[2]
        return done[0] if isinstance(done, list) else done
