"""What must hold, and whoever sees everything checks it: each entry ever accepted, each commit, each promise.

While it happens: an entry ID names one entry for ever; a commit is of the holder of the lease; no entry takes effect
twice, or out of its order, or otherwise than one by one; a read returns what SQL and the log together said at some
moment while it ran. At the end: every acknowledged write is in SQL unless a rollback of Redis took it, nothing said to
be refused was written, SQL is what the entries give, and reads say the same.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from simulator.database import Database
from simulator.loop import Loop, Process
from simulator.reads import Reads
from simulator.records import Entry, Place, Violation, Watch, Write
from simulator.redis_keyspace import StreamID, parse_id
from simulator.redis_node import Node, Unit
from simulator.redis_service import Service
from simulator.sessions import Session
from simulator.standing import Account, Standing
from simulator.trace import Trace
from writebehind.engine import DeadLetter, Durability
from writebehind.engine.core.keys import Keys
from writebehind.engine.core.payload import decode
from writebehind.engine.core.retention import DataLoss
from writebehind.flushers.batch import Segment

__all__ = ["Judge"]


class Judge:
    """Sees everything.

    Args:
        loop: the world's time.
        keys: the namespace's key names.
        service: Redis.
        database: SQL.
        trace: notes a line.

    Attributes:
        writes: what the application did.
        entries: every entry that a Redis ever accepted.
        seen: how often dead letters were made, and what became of them.
    """

    def __init__(self, loop: Loop, keys: Keys, service: Service, database: Database, trace: Trace) -> None:
        self._loop = loop
        self._service = service
        self._database = database
        self._trace = trace
        self._partitions = {name.encode(): number for number, name in enumerate(keys.logs)}
        self._keys = keys
        self._metas = {name.encode(): number for number, name in enumerate(keys.metas)}
        self.writes: list[Write] = []
        self.entries: dict[Place, Entry] = {}
        self._standing = Standing()
        self._earlier: list[Standing] = []
        self._tokens: dict[int, tuple[str | None, int]] = {}
        self._bases: dict[tuple[int, int], StreamID | None] = {}
        self._reads = Reads(lambda: self._standing, self.entries, self.waiting)
        self._forgotten: set[Place] = set()
        self._missed: set[Place] = set()
        self._given_up: set[str] = set()
        self.seen: Counter[str] = Counter()
        self._letters_seen: set[tuple[int, int, str]] = set()
        self._told: dict[tuple[Process, int], int] = {}
        service.noted = self.noted
        service.rolled_back = self.rolled_back
        database.committed = self.committed

    def violated(self, rule: str, text: str) -> Violation:
        """Return a violation, and end the history with it whoever catches it."""
        violation = Violation(rule, text)
        self._trace(f"VIOLATION {violation}")
        self._loop.stop(violation)
        return violation

    # Redis

    def noted(self, node: Node, unit: Unit) -> None:
        """Note what a server has accepted.

        Raises:
            Violation: an ID was given twice.
        """
        new: dict[Place, None] = {}
        added = False
        for change in unit:
            added = added or change[0] == "xadd"
            if change[0] == "hset" and not added and any(not name.startswith(b":") for name in change[2]):
                self._check_torn(change[1], change[2])
            if change[0] == "xadd" and change[1] in self._partitions:
                partition = self._partitions[change[1]]
                self._add(node, partition, change[2], change[3])
                new[partition, change[2]] = None
            elif change[0] == "hset":
                self._note_epochs(change[1], change[2])
                if b":version" in change[2] and change[1] in node.keyspace.expires:
                    raise self.violated("clean", f"{change[1].decode()} is written and keeps its time to live")
            elif change[0] == "expireat":
                self._check_clean(node, change[1])
        if new:
            self._reads.look(new=new)

    def _check_torn(self, key: bytes, fields: Mapping[bytes, bytes]) -> None:
        """A file may end anywhere inside a transaction, and its beginning comes back: the log has to be first.

        But what is loaded from SQL changes no version, and says all that it says at once.
        """
        filled = fields.get(b":state") == b"full" and b":version" not in fields
        if key not in self._metas and key.startswith(b"wb:") and not filled and not key.endswith(b":reads"):
            raise self.violated("torn", f"{key.decode()} is written before the log")

    def _check_clean(self, node: Node, key: bytes) -> None:
        """Only a record whose last change is in SQL may get a time to live."""
        record = node.keyspace.values.get(key)
        version = record.get(b":version") if isinstance(record, dict) else None
        if version is None or self._database.rollbacks:
            return
        place = (self._metas[key[: key.index(b"}:") + 2] + b"meta"], parse_id(version))
        held = any(letter.entry == place[1] for letter in self._standing.of(place[0]).values())
        if place not in self._standing.applied or held:
            raise self.violated("clean", f"{key.decode()} may expire and {version.decode()} is not in SQL")

    def _add(self, node: Node, partition: int, entry: StreamID, fields: Sequence[bytes]) -> None:
        mutation = fields[1].decode()
        known = self.entries.get((partition, entry))
        if known is not None:
            raise self.violated(
                "IDs", f"{node.name} gives {_id(entry)} of partition {partition} to {mutation}; {known.mutation} had it"
            )
        # An old primary that does not know yet: whatever it takes is gone when it learns.
        lost = None if node is self._service.primary else "failover"
        named = fields[5].split(b" ") if len(fields) > 4 else []
        originals = [parse_id(text) for text in named if not text.endswith(b"?")]
        doubts = [parse_id(text[:-1]) for text in named if text.endswith(b"?")]
        original = originals[0] if originals else None
        self.entries[partition, entry] = Entry(mutation, fields[3], original, doubts, lost)

    def _note_epochs(self, key: bytes, fields: Mapping[bytes, bytes]) -> None:
        for name, value in fields.items():
            if name.startswith(b"lineage:") and key in self._metas:
                number = self._metas[key]
                first, _, second = value.partition(b"@")[0].partition(b"-")
                base = (int(first), int(second))
                self._bases[number, int(name[8:])] = None if base == (0, 0) else base

    def rolled_back(self, _node: Node, units: Sequence[Unit], how: str) -> None:
        """Note what a server's successor does not have."""
        for unit in units:
            for change in unit:
                if change[0] == "xadd" and change[1] in self._partitions:
                    entry = self.entries[self._partitions[change[1]], change[2]]
                    entry.lost = entry.lost or how
                    self._trace(f"LOST {_id(change[2])} of partition {self._partitions[change[1]]} ({entry.mutation})")
        self._reads.void()

    # SQL

    def committed(self, session: Session) -> None:
        """Check a commit.

        Raises:
            Violation: it must not have been.
        """
        if self._database.keeps:
            self._earlier.append(self._standing.copied())
        self._check_tokens(session)
        segments: Sequence[Segment] | None = session.notes.get("segments")
        if segments is None:
            return
        state = self._database.state
        touched: set[tuple[str, str]] = set()
        for segment in segments:
            row = state.partitions[segment.partition]
            # One that has handed it back and does not know may go on until somebody takes it. A restored backup has
            # older tokens, which are then given twice: the offset alone decides between their holders.
            restored = self._database.rollbacks > 0
            if row.token != segment.token or not (row.holder in {session.process.name, None} or restored):
                raise self.violated(
                    "fencing",
                    f"{session.process.name} committed partition {segment.partition} under token {segment.token} "
                    f"while {row.holder} held it under {row.token}",
                )
            touched |= self._account(segment.partition, session.applied.get(segment.partition, ()))
            self._note_missed(segment.partition)
        in_doubt = {(number, *entry) for number, entry in self._standing.in_doubt}
        if state.in_doubt.keys() != in_doubt:
            raise self.violated("doubts", f"{list(state.in_doubt)} are recorded as in doubt; {sorted(in_doubt)} are")
        unaccounted = sorted(session.rows.keys() - touched)
        if unaccounted:
            raise self.violated("rows", f"{unaccounted} were written, and nothing that was committed is about them")
        for name, key in sorted(touched):
            expected, found = self._standing.contents.rows.get((name, key)), state.rows[name].get(key)
            if expected != found:
                raise self.violated("rows", f"{name} {key} is {found} in SQL; its entries give {expected}")
        appended = len(self._standing.contents.appended)
        if len(state.appended) != appended:
            raise self.violated("rows", f"{len(state.appended)} appended rows, not {appended}")
        self._reads.look(session.applied)

    def _account(self, partition: int, entries: Sequence[StreamID]) -> set[tuple[str, str]]:
        """Account for what a transaction has done in one partition; return which records it concerns."""
        rows = {place: row for (number, place), row in self._database.state.letters.items() if number == partition}
        account = Account(self._standing, self._database.constraints, partition, rows)
        touched: set[tuple[str, str]] = set()
        for entry in entries:
            known = self._pass(partition, entry)
            if known is None:
                touched |= {(table, key) for _, table, key, _ in decode(self.entries[partition, entry].payload) if key}
            else:
                account.take(entry, known.mutation, known.payload, self._meant(known))
        account.conclude()
        self.seen += account.seen
        if account.wrong is not None:
            raise self.violated(*account.wrong)
        self._letters_seen |= {(partition, place, str(row["entry_id"])) for place, row in rows.items()}
        return touched | account.touched

    def _meant(self, entry: Entry) -> str | None:
        """Return the mutation ID of the letter that a request was about."""
        stem = entry.mutation.partition(".")[0]
        return next((write.meant for write in self.writes if write.meant is not None and stem in write.calls), None)

    def _check_tokens(self, session: Session) -> None:
        """A token grows with every change of holder."""
        for number, row in session.partitions.items():
            holder, token = self._tokens.get(number, (None, 0))
            if row.holder is not None and row.holder != holder and row.token <= token:
                raise self.violated(
                    "fencing", f"{row.holder} gets partition {number} under {row.token}; {holder} had {token}"
                )
            if row.holder is not None:
                self._tokens[number] = row.holder, row.token

    def _pass(self, partition: int, entry: StreamID) -> Entry | None:
        """Note that SQL has passed an entry; return it unless it has no effect any more."""
        place = (partition, entry)
        known = self.entries.get(place)
        if known is None:
            raise self.violated("source", f"{_id(entry)} of partition {partition} was committed and never accepted")
        if place in self._standing.applied:
            raise self.violated("once", f"{_id(entry)} of partition {partition} took effect twice")
        later = self._later(partition, entry)
        if later is not None and place not in self._missed:
            raise self.violated("order", f"{_id(entry)} of partition {partition} took effect after {_id(later)}")
        self._standing.applied[place] = None
        if known.original is not None and self._is_given_up(partition, known.original):
            return None
        first = self._standing.mutations.get(known.mutation)
        if self._is_same(partition, entry, [*self._standing.in_doubt, *([] if first is None else [first])]):
            # It, or what it repeats, was told as in doubt, or is in SQL.
            return None
        if any(self._is_passed(partition, doubt) for doubt in known.doubts):
            self._standing.in_doubt[place] = None
            return None
        if first is not None:
            if known.original is None and not known.doubts and self.entries[first].original is None:
                raise self.violated(
                    "once", f"mutation {known.mutation} took effect twice, as {_id(first[1])} and as {_id(entry)}"
                )
            # Written again, and in SQL already: to be passed over, as the rows will show.
            return None
        self._standing.mutations[known.mutation] = place
        return known

    def _note_missed(self, partition: int) -> None:
        """Note what SQL was rolled back behind, the log has not kept, and SQL has gone on without: it is counted.

        Where Redis is rolled back after that, to a replica that was trimmed later, it is there again, and is applied.
        """
        if self._service.primary is None:
            return
        self._missed |= {
            place
            for place in self._forgotten - self._missed
            if place[0] == partition
            and place not in self._standing.applied
            and not self._in_log(*place)
            and self._later(*place) is not None
        }

    def _is_same(self, partition: int, entry: StreamID, places: Iterable[Place]) -> bool:
        """Tell whether an entry repeats one of some entries, or is repeated by one, or both repeat the same."""
        known = self.entries[partition, entry]
        for number, other in places:
            repeated = self.entries[number, other].original
            if number == partition and (
                repeated == entry or (known.original is not None and known.original in {other, repeated})
            ):
                return True
        return False

    def _is_in_doubt(self, mutation: str) -> bool:
        """Tell whether an entry of a mutation was passed in doubt."""
        return any(self.entries[place].mutation == mutation for place in self._standing.in_doubt)

    def _later(self, partition: int, entry: StreamID) -> StreamID | None:
        """Return an applied entry before which this one should have been."""
        ends: dict[int, StreamID] = {}
        for place in self._standing.applied:
            if place[0] == partition:
                ends[place[1][0]] = max(place[1], ends.get(place[1][0], place[1]))
        if entry <= ends.get(entry[0], (0, 0)):
            return ends[entry[0]]
        for epoch, end in ends.items():
            base = self._bases.get((partition, epoch))
            while base is not None and base[0] != entry[0]:
                base = self._bases.get((partition, base[0]))
            if epoch != entry[0] and base is not None and entry <= base:
                return end
        return None

    def sql_rolled_back(self, commits: int) -> None:
        """Go back with SQL."""
        before = self._standing.applied
        if commits:
            self._standing = self._earlier[-commits]
            del self._earlier[-commits:]
        self._forgotten |= before.keys() - self._standing.applied.keys()
        partitions = self._database.state.partitions
        self._tokens = {number: (row.holder, row.token) for number, row in partitions.items()}
        self._reads.void()

    # Reads

    def watch(self, table: str, key: str, partition: int) -> Watch:
        """Begin to look what a read may return."""
        # One that begins while SQL gives older rows may wait for something else until that is over.
        return self._reads.begin(Watch(partition, table, key, [], void=self._is_replayed(partition)))

    def read(self, watch: Watch, found: dict[str, Any] | None) -> None:
        """Check what a read has returned.

        Raises:
            Violation: it is nothing of what it may be.
        """
        if watch.void or self._service.others:
            return
        if found not in watch.possible:
            raise self.violated("reads", f"{watch.table} {watch.key} was read as {found}; it was {watch.possible}")

    def _is_replayed(self, partition: int) -> bool:
        """Tell whether SQL was rolled back and does not have everything again: until then it gives older rows.

        What the log has not kept stays missing, until ``recover`` takes it from the records.
        """
        return any(place[0] == partition and place not in self._standing.applied for place in self._forgotten)

    def forget(self, watch: Watch) -> None:
        """End looking."""
        self._reads.end(watch)

    def waiting(self, partition: int) -> list[StreamID]:
        """Return the entries of the primary's log that SQL has not applied."""
        node = self._service.primary
        if node is None:
            return []
        stream = node.keyspace.stream(self._keys.logs[partition].encode())
        return [
            entry
            for entry in (stream.entries if stream else ())
            if (partition, entry) not in self._standing.applied
            and self.entries[partition, entry].lost is None
            and not self._is_gone(partition, entry)
        ]

    def promised(self, partition: int, entry: StreamID) -> None:
        """Check that an entry said to be in SQL is.

        Raises:
            Violation: it is not.
        """
        known = self.entries.get((partition, entry))
        if known is None or (known.mutation not in self._standing.mutations and not self._database.rollbacks):
            raise self.violated("persisted", f"{_id(entry)} of partition {partition} was said to be in SQL")
        if self._is_in_doubt(known.mutation):
            raise self.violated("persisted", f"{_id(entry)} of partition {partition} was said to be in SQL; who knows")
        if any(letter.entry == entry for letter in self._standing.of(partition).values()):
            raise self.violated("persisted", f"{_id(entry)} of partition {partition} was said to be in SQL, and waits")

    def told(self, process: Process, loss: DataLoss) -> None:
        """Note what a process was told that it has lost."""
        self._trace(f"TOLD {process.name}: {loss}")
        epoch, sequence = parse_id(loss.first_id.encode())
        run = {(loss.partition, epoch, sequence + number) for number in range(loss.in_doubt)}
        if not self._database.rollbacks and not run <= self._database.state.in_doubt.keys():
            raise self.violated("doubts", f"{loss} was told of and is not recorded")
        key = (process, loss.partition)
        self._told[key] = self._told.get(key, 0) + loss.lost

    def told_letter(self, letter: DeadLetter) -> None:
        """Check that a letter that a service is told of is one, or was.

        Raises:
            Violation: it never was.
        """
        if (letter.partition, letter.place, letter.entry_id) not in self._letters_seen:
            raise self.violated("letters", f"{letter} was told of and never was in SQL")

    def unresolved(self) -> list[str]:
        """Return the letters that SQL has, the refused ones with why."""
        return [
            f"{number}-{place} {row['failure'] or 'waits'}"
            for (number, place), row in sorted(self._database.state.letters.items())
        ]

    # The end

    def conclude(self) -> None:
        """Check what must hold when all is quiet.

        Raises:
            Violation: it does not.
        """
        by_call: dict[str, list[str]] = {}
        for known in self.entries.values():
            by_call.setdefault(known.mutation.partition(".")[0], []).append(known.mutation)
        lost: Counter[tuple[Process, int]] = Counter()
        self._given_up = {self.entries[place].mutation for place in self._forgotten if self._is_gone(*place)}
        for write in self.writes:
            receipts = {mutation for mutation, _, _ in write.accepted}
            for mutation, partition, entry in write.accepted:
                if self._is_lost(write, mutation, partition, entry):
                    lost[write.process, partition] += 1
            if write.outcome in {"refused", "accepted"}:
                extra = [each for stem in write.calls for each in by_call.get(stem, ()) if each not in receipts]
                if extra:
                    raise self.violated("refused", f"{write.what}: {extra} were written without a receipt")
        for (process, partition), count in lost.items():
            told = self._told.get((process, partition), 0)
            if process.alive and told < count:
                raise self.violated(
                    "silence", f"{process.name} lost {count} writes of partition {partition} and was told of {told}"
                )
        self._compare()

    def _is_lost(self, write: Write, mutation: str, partition: int, entry: StreamID) -> bool:
        """Tell whether Redis has lost an accepted write that is nowhere else."""
        known = self.entries.get((partition, entry))
        if known is None or known.mutation != mutation:
            raise self.violated("receipts", f"{write.what}: the receipt names {_id(entry)}, which is {known}")
        # What both Redis and SQL have lost was in one of them when the other was asked: nobody can tell.
        if mutation in self._standing.mutations or mutation in self._given_up or self._is_in_doubt(mutation):
            return False
        if known.lost is None:
            raise self.violated("acknowledged", f"{write.what}: {_id(entry)} of partition {partition} is not in SQL")
        kept = {
            Durability.ACCEPTED: False,
            Durability.FSYNCED: known.lost != "failover",
            Durability.REPLICATED: True,
            Durability.PERSISTED: (partition, entry) not in self._forgotten,
        }
        if kept[write.level]:
            raise self.violated("durability", f"{write.what}: {write.level.name}, and lost: {known.lost}")
        return True

    def _is_gone(self, partition: int, entry: StreamID) -> bool:
        """Tell whether SQL had an entry, was rolled back below it, and did not find it in the log again.

        It may come back to the log afterwards, with a replica that was trimmed later.
        """
        place = (partition, entry)
        if place not in self._forgotten or place in self._standing.applied:
            return False
        return self._is_passed(partition, entry) or not self._in_log(partition, entry)

    def _is_given_up(self, partition: int, entry: StreamID) -> bool:
        """Tell whether SQL has passed an entry that it does not have: missing in the log, and reported."""
        return self._is_gone(partition, entry) and self._is_passed(partition, entry)

    def _is_passed(self, partition: int, entry: StreamID) -> bool:
        """Tell whether SQL's offset is at an entry or above it, in its own epoch."""
        state = self._database.state
        row = state.partitions[partition]
        ended = state.epochs.get((partition, entry[0]), (-1, 0, ""))[0]
        return max(ended, row.sequence if row.epoch == entry[0] else -1) >= entry[1]

    def _in_log(self, partition: int, entry: StreamID) -> bool:
        node = self._service.primary
        stream = node.keyspace.stream(self._keys.logs[partition].encode()) if node else None
        return stream is not None and entry in stream.entries

    def _compare(self) -> None:
        state = self._database.state
        found = {(name, key): row for name, rows in state.rows.items() for key, row in rows.items()}
        if found != self._standing.contents.rows:
            raise self.violated("rows", f"SQL has {found}; its entries give {self._standing.contents.rows}")
        if state.letters:
            raise self.violated("stuck", f"letters are left: {self.unresolved()}")
        if Counter(map(repr, state.appended)) != Counter(map(repr, self._standing.contents.appended)):
            raise self.violated("rows", "appended rows are not those of their entries")
        missing = [
            place
            for place in self._forgotten
            if self._is_gone(*place)
            and self.entries[place].lost is None
            and self.entries[place].mutation not in self._standing.mutations
        ]
        reported = sum(row.lost_entries for row in state.partitions.values())
        # Where both have lost something, what is missing may have been written again meanwhile.
        both = self._database.rollbacks > 0 and any(known.lost for known in self.entries.values())
        lost = len(missing) + len(self._standing.in_doubt)
        if reported < lost or (reported > lost and not both):
            raise self.violated("honesty", f"{reported} entries are reported lost and {lost} are, or are in doubt")


def _id(entry: StreamID) -> str:
    return f"{entry[0]}-{entry[1]}"
