"""The known-bad variants: what is changed, and which tests must notice.

Each variant is a mistake that systems of this kind have really made, or that one careless line here would make.
``old`` must occur exactly once in its file: when the code moves on, the variant has to move with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["MUTANTS", "Edit", "Mutant"]

APPEND = "engine/adapters/lua/append.lua"
APART = "flushers/apart.py"
APPENDER = "engine/adapters/appender.py"
ATTEMPTS = "engine/adapters/attempts.py"
CACHE_FILL = "engine/adapters/lua/cache_fill.lua"
CACHE_LOOK = "engine/adapters/lua/cache_look.lua"
CACHE_STORE = "engine/adapters/cache_store.py"
COALESCING = "engine/core/coalescing.py"
CONFIRMER = "engine/adapters/confirmer.py"
CONTIGUITY = "engine/core/contiguity.py"
CURSOR = "flushers/cursor.py"
FLUSH = "flushers/flush.py"
FLUSHER = "flushers/flusher.py"
FSYNC = "engine/adapters/fsync.py"
HIT = "engine/adapters/lua/hit.lua"
HOLDINGS = "flushers/holdings.py"
INTAKE = "flushers/intake.py"
ISOLATION = "flushers/isolation.py"
LEASES = "flushers/leases.py"
LETTERS = "flushers/letters.py"
LINKS = "engine/adapters/links.py"
LANE = "engine/lane.py"
LANES = "engine/lanes.py"
LOCAL_CACHE = "engine/adapters/local_cache.py"
LOCAL_ENTRIES = "engine/core/local_entries.py"
LOG = "engine/adapters/log.py"
MERGING = "flushers/merging.py"
OPEN_EPOCH = "engine/adapters/lua/open_epoch.lua"
PACING = "flushers/pacing.py"
PARCELS = "engine/parcels.py"
PAYLOAD = "engine/core/payload.py"
PUBLISH = "engine/adapters/lua/publish.lua"
QUARANTINE = "flushers/quarantine.py"
RECORD_OVERLAY = "engine/adapters/lua/record_overlay.lua"
READING = "engine/core/reading.py"
READ_THROUGH = "engine/core/read_through.py"
RECORD_FILL = "engine/adapters/lua/record_fill.lua"
RECORD_LEASE = "engine/adapters/lua/record_lease.lua"
RECORD_RELEASE = "engine/adapters/lua/record_release.lua"
RECORD_OVERLAY = "engine/adapters/lua/record_overlay.lua"
REWRITING = "engine/adapters/rewriting.py"
ROWS = "engine/adapters/rows.py"
SENDING = "engine/sending.py"
SETTLE = "engine/adapters/lua/settle.lua"
SETTLEMENT = "flushers/settlement.py"
SIFTING = "flushers/sifting.py"
TAKEOVER = "recovery/takeover.py"
OWN_FLUSHER = "engine/own_flusher.py"
TRANSACTION = "flushers/transaction.py"
TROUBLE = "flushers/trouble.py"
WRITER = "engine/writing.py"

CACHE = "tests/integration/test_cache.py"
CACHE_MACHINE = "tests/property/test_cache.py"
COPIES = "tests/integration/test_cache_copies.py"
LEASES_OF_CACHES = "tests/integration/test_cache_leases.py"
FAULTS = "tests/integration/test_known_faults.py"
HANGING = "tests/integration/test_hanging_sql.py"
FILLED = "tests/integration/test_read_through.py"
ENGINE = "tests/integration/test_engine.py"
HOT = "tests/integration/test_reads_under_writes.py"
LIMITED = "tests/integration/test_rate_limits.py"
LIMITED_AT_ALL_TIMES = "tests/property/test_rate_limits.py"
LOST = "tests/integration/test_lost_replies.py"
READS = "tests/contract/test_reads.py"
PRESSED = "tests/integration/test_pressure.py"
REFUSED = "tests/integration/test_dead_letters.py"
REFUSED_FAULTS = "tests/integration/test_dead_letter_faults.py"
RESOLVED = "tests/integration/test_letter_resolution.py"
AWAITING = "tests/integration/test_async.py"
LANED = "tests/integration/test_lanes.py"
DAMAGED = "tests/integration/test_damaged_partitions.py"
DOUBTS = "tests/integration/test_doubts.py"
RETENTION = "tests/integration/test_retention.py"
ROLLBACKS = "tests/integration/test_rollbacks.py"
THROUGH = "tests/integration/test_write_through.py"

EXCHANGE = """            link.connection.send_packed_command((pack_command(command),), check_health=False)
            return link.receive(disable_decoding=True)"""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A textual change of one file.

    Attributes:
        path: the file, from the repository's root.
        old: what is there, exactly once.
        new: what stands there instead.
    """

    path: str
    old: str
    new: str


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A known-bad variant.

    Attributes:
        name: a short name for ``--only``.
        harm: what it would do to data.
        edits: how it differs.
        tests: test IDs, at least one of which must fail.
    """

    name: str
    harm: str
    edits: Sequence[Edit]
    tests: Sequence[str]


def mutant(name: str, harm: str, path: str, old: str, new: str, *tests: str) -> Mutant:
    """Make a variant of one edit."""
    return Mutant(name=name, harm=harm, edits=[Edit(path=path, old=old, new=new)], tests=tests)


WRITING = [
    mutant(
        "hset-before-xadd",
        "a refused append leaves a record that the log does not know",
        APPEND,
        "  if doubt == '' then\n",
        "  if ARGV[at + 2] == 'p' then\n"
        "    redis.call('HSET', KEYS[record], unpack(ARGV, at + 4, at + 3 + ARGV[at + 3]))\n"
        "  end\n"
        "  if doubt == '' then\n",
        f"{ENGINE}::test_a_foreign_key_in_redis_leaves_nothing_half_written[log that is ahead]",
    ),
    Mutant(
        name="pcall-around-writes",
        harm="a full Redis acknowledges writes that are in no log",
        edits=[
            Edit(
                path=APPEND,
                old="    id = redis.call('XADD', log, epoch, 'm', mutation, 'p', ARGV[at])\n  else",
                new="    id = redis.pcall('XADD', log, epoch, 'm', mutation, 'p', ARGV[at])\n  else",
            ),
            Edit(
                path=APPEND,
                old="  end\n  at = at + 2\n  for _ = 1, operations do\n"
                "    local op, size = ARGV[at], tonumber(ARGV[at + 1])\n"
                "    local first, last = at + 2, at + 1 + size\n    at = last + 1\n    if op == 'a' or",
                new="  end\n  if type(id) == 'table' then id = known[2] .. '-0' end\n  at = at + 2\n"
                "  for _ = 1, operations do\n    local op, size = ARGV[at], tonumber(ARGV[at + 1])\n"
                "    local first, last = at + 2, at + 1 + size\n    at = last + 1\n    if op == 'a' or",
            ),
            Edit(
                path=APPEND,
                old="redis.call('HSET', key, ':version', id, ':state', 'full',",
                new="redis.pcall('HSET', key, ':version', id, ':state', 'full',",
            ),
        ],
        tests=[f"{ENGINE}::test_a_full_redis_refuses_whole_writes_and_drains"],
    ),
    Mutant(
        name="pcall-around-hset",
        harm="an entry without its record: reads do not see an accepted write",
        edits=[
            Edit(
                path=APPEND,
                old="suspect[key] and 'marker' or redis.call('HGET', key, ':state')}",
                new="suspect[key] and 'marker' or redis.pcall('HGET', key, ':state')}",
            ),
            Edit(
                path=APPEND,
                old="redis.call('HSET', key, ':version', id, ':state', 'full',",
                new="redis.pcall('HSET', key, ':version', id, ':state', 'full',",
            ),
        ],
        tests=[f"{ENGINE}::test_a_foreign_key_in_redis_leaves_nothing_half_written[record]"],
    ),
    mutant(
        "maxlen-on-xadd",
        "entries that no flusher has read give way to newer ones",
        APPEND,
        "    id = redis.call('XADD', log, epoch, 'm', mutation, 'p', ARGV[at])\n  else",
        "    id = redis.call('XADD', log, 'MAXLEN', 100, epoch, 'm', mutation, 'p', ARGV[at])\n  else",
        f"{FAULTS}::test_the_log_keeps_what_is_not_flushed",
    ),
    mutant(
        "identity-not-checked",
        "after a failover two histories share an epoch, and IDs are given twice",
        APPEND,
        "if (known[1] or '') .. ' ' .. (known[2] or '') ~= ARGV[1] or",
        "if not known[1] or",
        f"{FAULTS}::test_another_primary_opens_an_epoch",
    ),
    mutant(
        "epochs-1-2-3",
        "a Redis that lost everything begins epoch 1 again: its entries pass for flushed ones",
        OPEN_EPOCH,
        "if epoch <= floor then epoch = floor + 1 + tonumber(ARGV[2]) end",
        "epoch = floor + 1",
        f"{FAULTS}::test_an_emptied_redis_opens_an_epoch_that_never_was",
    ),
    mutant(
        "epochs-from-a-byte",
        "two histories that begin at once share an epoch, once in 256 times: writes of one pass for flushed ones",
        LINKS,
        "EPOCH_STEPS = 2**20",
        "EPOCH_STEPS = 256",
        f"{FAULTS}::test_histories_that_begin_at_once_are_no_twins",
    ),
    mutant(
        "dirty-record-expires",
        "a record written again keeps its time to live: evicted, an old row is read in its place",
        APPEND,
        "redis.call('PERSIST', key)",
        "redis.call('HGET', key, ':state')",
        f"{ENGINE}::test_only_flushed_records_expire",
    ),
    mutant(
        "no-tombstone",
        "until its delete is flushed, a deleted record is read from SQL again",
        APPEND,
        "        redis.call('HSET', key, ':version', id, ':state', 'tombstone')\n",
        "",
        f"{ENGINE}::test_a_deleted_record_stays_deleted",
    ),
    mutant(
        "marker-not-awaited",
        "a read after a cold increment gives the row of before",
        READ_THROUGH,
        "        if last > applied:",
        "        if state is Standing.OVERLAY and last > applied:",
        f"{ENGINE}::test_a_cold_increment_is_read_after_its_flush",
    ),
    mutant(
        "read-chases-writes",
        "a record that is written all the while is never read",
        READ_THROUGH,
        "        if wanted.inserted is None:\n",
        "        if True:\n",
        f"{HOT}::test_a_hot_counter",
    ),
    mutant(
        "read-before-its-time",
        "a record that is written all the while is read as it was before the read began",
        READ_THROUGH,
        "wanted.ripe = wanted.required <= applied",
        "wanted.ripe = True",
        f"{HOT}::test_what_was_accepted_before_is_awaited",
    ),
    mutant(
        "read-of-the-history-before",
        "what was accepted before a read in a new history is not awaited",
        READ_THROUGH,
        "        if sights.identity != self._identity:",
        "        if self._identity is None:",
        f"{HOT}::test_another_history",
    ),
    mutant(
        "row-under-anything",
        "a row is laid under what was written since, and undoes it",
        RECORD_OVERLAY,
        "(known[1] or known[3]) ~= ARGV[1]",
        "false",
        f"{HOT}::test_a_record_from_before_a_column_is_written_meanwhile",
    ),
    mutant(
        "new-column-never-kept",
        "after a new column SQL is asked for each record at each read",
        RECORD_OVERLAY,
        "(known[2] ~= 'partial' and known[2] ~= 'full')",
        "known[2] ~= 'partial'",
        f"{HOT}::test_a_record_from_before_a_column",
    ),
    mutant(
        "rest-loaded-by-all",
        "two hundred readers of a partial record ask SQL two hundred times",
        RECORD_LEASE,
        "if left > 0 and left <= tonumber(ARGV[3]) then return 0 end",
        "",
        f"{FILLED}::test_two_hundred_threads_ask_once_for_the_rest",
    ),
    mutant(
        "rest-loaded-once-more",
        "a reader that looked before the row came loads it again",
        RECORD_LEASE,
        "(lacked ~= '' and redis.call('HGET', key, lacked))",
        "false",
        f"{FILLED}::test_who_looked_before_the_rest_came",
    ),
    mutant(
        "rest-leased-for-good",
        "a write to a partial record leaves its readers to wait for a load that is of no use any more",
        RECORD_LEASE,
        "if leased == about then",
        "if leased then",
        f"{FILLED}::test_a_lease_for_the_rest_ends",
    ),
    mutant(
        "rest-not-there",
        "readers of a patch without a row load one after the other",
        RECORD_OVERLAY,
        "redis.call('HSET', KEYS[1], ':overlay', nothing)",
        "redis.call('HDEL', KEYS[1], ':overlay')",
        f"{FILLED}::test_readers_of_a_patch_without_a_row",
    ),
    mutant(
        "rest-not-given-back",
        "a failed load for a partial record holds its readers up until the lease has run out",
        RECORD_RELEASE,
        "string.match(known[3] or '', '^%d+ (%S+) ') == ARGV[1]",
        "false",
        f"{FILLED}::test_a_lease_for_the_rest_ends",
    ),
    mutant(
        "queue-of-all-that-waited",
        "who waited for a flush asks SQL beside all others",
        READ_THROUGH,
        "queues_up = wanted.queued and",
        "queues_up = wanted.waited and",
        f"{FILLED}::test_a_flush_while_the_rest_is_loaded",
    ),
    mutant(
        "batch-overtaken",
        "a refused call is overtaken by the partition's next one: order is lost",
        SENDING,
        "            del queues[partition]\n            failures.append(",
        "            failures.append(",
        f"{FAULTS}::test_a_call_is_not_overtaken_by_the_next_one",
    ),
    mutant(
        "receipts-shifted",
        "receipts of a batch speak of their neighbours' entries",
        SENDING,
        "first = int(last) - len(receipts) + 1",
        "first = int(last) - len(receipts)",
        f"{FAULTS}::test_receipts_of_a_batch_name_their_own_entries",
    ),
    mutant(
        "naive-datetime-gets-a-zone",
        "a datetime without a zone comes out of the log with one",
        PAYLOAD,
        "    return Ext(1, _INT64.pack((value - _EPOCH) // _MICROSECOND))",
        "    from datetime import UTC\n\n    return value.replace(tzinfo=UTC)",
        "tests/unit/test_payload.py::test_mutation",
    ),
    mutant(
        "aware-datetime-loses-its-zone",
        "a datetime with a zone comes out of the log without one",
        PAYLOAD,
        "    if value.tzinfo is not None:\n        return value\n",
        "    value = value.replace(tzinfo=None)\n",
        "tests/unit/test_payload.py::test_mutation",
    ),
]

WRITING_THROUGH = [
    mutant(
        "through-returns-before-sql",
        "a write through returns when SQL has not got it",
        WRITER,
        "        if through:\n            self._persist([], {partition: [receipt]})\n            return receipt\n",
        "        if through:\n            return receipt\n",
        f"{THROUGH}::test_sql_and_hash_agree_on_return[a flusher]",
    ),
    mutant(
        "through-by-the-first-entry",
        "a batch written through returns when SQL has the first of its writes to a partition",
        "engine/confirmations.py",
        "for last in {receipt.identity: receipt for receipt in listed if not receipt.in_doubt}.values():",
        "for last in {receipt.identity: receipt for receipt in listed[::-1] if not receipt.in_doubt}.values():",
        f"{THROUGH}::test_a_batch_is_whole",
    ),
    mutant(
        "a-tables-policy-unheard",
        "a table that is to be written through is written behind",
        "engine/declarations.py",
        "return bool(self._through) and not self._through.isdisjoint(names)",
        "return False",
        f"{THROUGH}::test_a_table_and_a_call",
    ),
    mutant(
        "a-group-by-its-own-name",
        "an atomic group of a table that is written through is written behind",
        "engine/batches.py",
        "return self._core.declarations.writes_through({each.member[1] for each in self._entries}, self._policy)",
        'return self._core.declarations.writes_through({""}, self._policy)',
        f"{THROUGH}::test_batches_and_groups",
    ),
    mutant(
        "through-past-a-dead-letter",
        "a write through that SQL refuses returns as if SQL had it",
        CONFIRMER,
        "        if letter is not None and letter.error is not None:\n",
        "        if letter is None or letter.error is not None:\n            return False\n"
        "        if letter.error is not None:\n",
        f"{THROUGH}::test_what_sql_refuses[a flusher]",
    ),
    mutant(
        "the-newest-entry-first",
        "a service's own flusher overtakes what stands in the log before the write",
        OWN_FLUSHER,
        "            flusher = self._flusher(unserved)\n",
        "            flusher = self._flusher(unserved)\n            take_over = flusher.holdings.take_over\n\n"
        "            def at_the_end(cursor):\n                done = take_over(cursor)\n"
        "                end = flusher._log.states([cursor.number])[cursor.number].end\n"
        "                cursor.base = cursor.position = type(end)(end.epoch, end.sequence - 1)\n"
        "                cursor.expected = cursor.committed\n                return done\n\n"
        "            flusher.holdings.take_over = at_the_end\n",
        f"{THROUGH}::test_sql_and_hash_agree_on_return[no flusher]",
    ),
    mutant(
        "nobody-flushes",
        "where no flusher is alive nothing can be written through",
        OWN_FLUSHER,
        "            if concerned := self._unserved(waiting, now):\n                self._flush(concerned)\n",
        "            self._unserved(waiting, now)\n",
        f"{THROUGH}::test_a_table_and_a_call",
    ),
    Mutant(
        name="its-own-flusher-stays",
        harm="a service keeps partitions that nobody waits for, and flushers stand idle",
        edits=[
            Edit(
                path=OWN_FLUSHER,
                old="                if self._flushing and self._waiting.keys().isdisjoint(self._flushing):\n"
                "                    self._stopping.set()\n",
                new="",
            ),
            Edit(path=OWN_FLUSHER, old="return nobody or (waits", new="return nobody and (waits"),
        ],
        tests=[f"{THROUGH}::test_where_none_is_alive_nothing_else_is_taken"],
    ),
    mutant(
        "its-own-flusher-stays-beside-a-live-one",
        "a service with many writers keeps its partitions from the flushers for as long as anybody waits",
        OWN_FLUSHER,
        "            if flusher.holdings.members:\n",
        "            if False:\n",
        f"{THROUGH}::test_a_member_comes_while_somebody_always_waits",
    ),
    mutant(
        "its-own-flusher-dies",
        "after one unexpected error nothing is written through any more where no flusher is alive",
        OWN_FLUSHER,
        "        except Exception as error:\n            # Whatever it is, it must not end the thread",
        "        except ZeroDivisionError as error:\n            # Whatever it is, it must not end the thread",
        f"{THROUGH}::test_an_error_that_nobody_expects",
    ),
    mutant(
        "its-own-flusher-takes-all",
        "a service takes partitions that it does not wait for from the flushers",
        OWN_FLUSHER,
        "member=False, among=among,",
        "member=False,",
        f"{THROUGH}::test_where_none_is_alive_nothing_else_is_taken",
    ),
    mutant(
        "beside-a-live-flusher",
        "a service takes what a flusher that is alive was about to",
        ROWS,
        "Serving(bool(members or row.held), row.halted)",
        "Serving(bool(row.held), row.halted)",
        f"{THROUGH}::test_a_live_flusher_is_left_to_it",
    ),
    mutant(
        "a-timeout-without-receipts",
        "who writes through while SQL is down cannot ask what became of it",
        OWN_FLUSHER,
        "            receipts=without,\n",
        "",
        f"{THROUGH}::test_a_halted_partition",
    ),
    mutant(
        "settled-later",
        "a record is still dirty when its write through returns",
        "engine/confirmations.py",
        "covered.append((yield from self.confirming(*asked)))",
        "covered.append((yield from self.confirming(*asked)) or True)",
        f"{THROUGH}::test_redis_hears_of_it_late[threads]",
    ),
    mutant(
        "settled-later-in-a-loop",
        "a record is still dirty when its write through returns in an event loop",
        CONFIRMER,
        "            yield from self._published(partition, passed.last)\n",
        "",
        f"{THROUGH}::test_redis_hears_of_it_late[an event loop]",
    ),
    mutant(
        "waits-for-sql-without-end",
        "whoever waits for a database that does not answer waits as long as that does",
        CONFIRMER,
        "                if now >= deadline + (0.0 if asked.look is None else GRACE_SECONDS):\n",
        "                if now >= deadline and asked.look is None:\n",
        f"{HANGING}::test_who_waits_in_threads[silent]",
    ),
    mutant(
        "asks-for-letters-without-end",
        "whoever waits for a write of a partition with dead letters waits as long as the database does not answer",
        "engine/adapters/looks.py",
        "            while not look.answered() and (left := until_seconds - time.monotonic()) > 0:\n",
        "            while not look.answered() and (left := 1.0):\n",
        "tests/unit/test_looks.py::test_who_waits_goes_in_time",
    ),
    mutant(
        "a-thread-for-each-look",
        "a database that does not answer takes all threads that a process may have",
        "engine/adapters/looks.py",
        "return sum(now - since < STUCK_SECONDS for since in self._asking_since.values())",
        "return 0",
        f"{HANGING}::test_who_waits_in_threads[silent]",
    ),
    mutant(
        "queries-without-a-limit",
        "a lock keeps a connection for as long as it is held",
        ROWS,
        "self._limited.connect() as connection:\n                # The offset first",
        "self._engine.connect() as connection:\n                # The offset first",
        f"{HANGING}::test_what_is_asked_has_a_limit",
    ),
    mutant(
        "queries-without-a-limit-after-a-rollback",
        "a lock keeps a connection for as long as it is held where a row could not be read",
        "engine/adapters/limiting.py",
        "        connection.rollback()\n        self._begin(connection)\n",
        "        connection.rollback()\n",
        f"{FILLED}::test_a_limit_where_a_row_cannot_be_read",
    ),
    mutant(
        "waits-for-a-thread-without-end",
        "whoever finds no thread to wait for a disk in waits as long as others do",
        "engine/rounds.py",
        "asyncio.timeout(max(0.0, timeout) + 2 * GRACE_SECONDS)",
        "asyncio.timeout(None)",
        "tests/unit/test_rounds.py::test_no_thread_to_ask_in",
    ),
    Mutant(
        name="late-for-all",
        harm="writes that SQL has are named as late",
        edits=[
            Edit(
                path="engine/confirmations.py",
                old="        while waits:\n            over",
                new="        while not failures and waits:\n            over",
            ),
            Edit(path="engine/confirmations.py", old="waits[:1] if over_since < 0 else list(waits)", new="waits[:1]"),
        ],
        tests=["tests/contract/test_shells.py::test_failures_of_several_partitions"],
    ),
    mutant(
        "late-for-all-while-sql-hangs",
        "writes that Redis knows to be in SQL are named as late, because SQL says nothing of others",
        "engine/confirmations.py",
        "            for wait in waits[:1] if over_since < 0 else list(waits):\n",
        "            for wait in waits[:1]:\n",
        f"{HANGING}::test_what_redis_knows_of_other_partitions",
    ),
    mutant(
        "late-before-refused",
        "a write that SQL refuses hides behind one that is late",
        "engine/errors.py",
        "        case PoisonEntryError():\n            return 2\n",
        "        case PoisonEntryError():\n            return 5\n",
        "tests/contract/test_shells.py::test_failures_of_several_partitions",
    ),
    mutant(
        "a-failure-for-an-answer",
        "a database that fails late is waited for by every write again",
        "engine/adapters/asking.py",
        "not silent.succeeded() and ",
        "not silent.answered() and ",
        "tests/unit/test_asking.py::test_silence_ends_with_the_answer",
    ),
    mutant(
        "unanswered-questions-pile-up",
        "a database that hung for hours is asked all that was wanted meanwhile, and what is wanted now comes last",
        "engine/adapters/asking.py",
        "            before.give_up()\n",
        "            pass\n",
        "tests/unit/test_asking.py::test_only_the_last_unanswered_question_stays",
    ),
    mutant(
        "closed-told-as-a-runtime-error",
        "a read that waits while its engine is closed gets an error of a thread pool",
        "engine/async_write_behind.py",
        '            if self._closed:\n                raise WriteBehindError("this engine was closed meanwhile"',
        '            if False:\n                raise WriteBehindError("this engine was closed meanwhile"',
        "tests/integration/test_async_reads.py::test_closed_while_a_read_waits",
    ),
    mutant(
        "cancelled-once",
        "a driver that politely asks a hung server to end a query outlives the engine",
        "engine/adapters/async_clients.py",
        "CANCEL_SECONDS = (2.0, 0.5, 0.5)",
        "CANCEL_SECONDS = (2.0,)",
        "tests/integration/test_async_clients.py::test_closing_does_not_wait_for_a_database_that_hangs",
    ),
    mutant(
        "silent-after-an-answer",
        "a database that was slow once is not asked for seconds, and what it has is told as lost",
        "engine/adapters/asking.py",
        "not silent.succeeded() and ",
        "",
        "tests/unit/test_asking.py::test_silence_ends_with_the_answer",
    ),
    mutant(
        "a-lone-question-waits-behind-dead-connections",
        "a read behind connections that are dead is not asked for over another, until something else is asked",
        "engine/adapters/looks.py",
        "                self.attend()\n",
        "                pass\n",
        "tests/unit/test_looks.py::test_who_waits_alone_is_asked_for_when_threads_are_lost",
    ),
    mutant(
        "closed-while-it-connects",
        "an engine that is closed leaves a connection half made behind, in an event loop that ends",
        "engine/async_write_behind.py",
        "                await self._calls.end()\n",
        "                pass\n",
        "tests/integration/test_async_clients.py::test_closing_waits_for_what_is_asked",
    ),
    mutant(
        "closing-waits-for-a-hung-database",
        "what a database that hangs was asked outlives the engine",
        "engine/adapters/async_clients.py",
        "                    task.cancel()\n",
        "                    pass\n",
        "tests/integration/test_async_clients.py::test_closing_does_not_wait_for_a_database_that_hangs",
    ),
    mutant(
        "through-returns-before-sql-in-a-loop",
        "a write through returns in an event loop when SQL has not got it",
        "engine/async_writing.py",
        "                await self._persist([], [receipt])\n                return\n",
        "                return\n",
        "tests/contract/test_shells.py::test_write_through_by_policy",
    ),
]

RETRIES = [
    Mutant(
        name="client-repeats-writes",
        harm="the client's own retries send a write again whose reply was lost: it is applied twice",
        edits=[
            Edit(
                path=ATTEMPTS,
                old=EXCHANGE,
                new="""            def exchange():
                link.connection.send_packed_command((pack_command(command),), check_health=False)
                return link.receive(disable_decoding=True)

            from redis.backoff import NoBackoff
            from redis.retry import Retry

            return Retry(NoBackoff(), 3).call_with_retry(exchange, lambda _: link.connection.disconnect())""",
            ),
        ],
        tests=[f"{LOST}::test_a_write_survives_one_fault[Mishap.CUT_AFTER-increment-0]"],
    ),
    mutant(
        "client-repeats-connecting",
        "a write takes many times its timeout, because the client connects again and again below it",
        LINKS,
        "Retry(NoBackoff(), 0)",
        "Retry(NoBackoff(), 3)",
        f"{FAULTS}::test_a_connection_is_tried_once",
    ),
    mutant(
        "one-damaged-refuses-all",
        "a damaged partition refuses the writes of others that share its round trip",
        APPENDER,
        """            except ConfigurationError as error:
                unmet[partition] = Unfit(error)
""",
        """            except ConfigurationError as error:
                return dict.fromkeys(partitions, Unfit(error))
""",
        f"{DAMAGED}::test_tasks_that_know_nothing_of_each_other[lineage]",
    ),
    mutant(
        "one-damaged-keeps-a-link",
        "each write to a damaged partition costs a connection",
        APPENDER,
        """        replies = iter(self._exchange(link, [call""",
        """        if len(unmet) == len(calls):
            return [(b"", unmet[call.partition], 0) for call in calls]
        replies = iter(self._exchange(link, [call""",
        f"{DAMAGED}::test_a_batch_gives_no_connection_up",
    ),
    mutant(
        "one-damaged-stops-writing-again",
        "what Redis has lost is not written again, because another partition is damaged",
        "engine/adapters/rewriter.py",
        "                    self._reconcile_if_fit(number)\n",
        "                    self.reconcile(number)\n",
        f"{DAMAGED}::test_what_redis_loses_of_the_other_is_written_again[lineage]",
    ),
    mutant(
        "retry-under-another-id",
        "a retry does not find its first attempt: the write is applied twice",
        APPENDER,
        "            call.call_id,\n            anchor,",
        "            self.call_id(),\n            anchor,",
        f"{LOST}::test_a_write_survives_one_fault[Mishap.CUT_AFTER-increment-0]",
    ),
    mutant(
        "retry-without-search",
        "a retry does not look for its first attempt: the write is applied twice",
        ATTEMPTS,
        "            anchor = appender.rewriter.anchor(partition, self._anchor)",
        '            anchor = b""',
        f"{LOST}::test_a_write_survives_one_fault[Mishap.CUT_AFTER-increment-0]",
    ),
    mutant(
        "retry-without-fence",
        "the first attempt arrives after the retry: the write is applied twice",
        APPEND,
        "UNSEARCHED entries were trimmed meanwhile') end\n  redis.call('HSET', meta, 'fence:' .. ARGV[2], ARGV[3])\n",
        "UNSEARCHED entries were trimmed meanwhile') end\n",
        f"{LOST}::test_a_write_survives_one_fault[Mishap.DELAY-increment-0]",
    ),
    mutant(
        "fence-not-checked",
        "the first attempt arrives after the retry: the write is applied twice",
        APPEND,
        "if known[3] and tonumber(known[3]) > tonumber(ARGV[3]) then",
        "if false then",
        f"{LOST}::test_a_write_survives_one_fault[Mishap.DELAY-increment-0]",
    ),
    Mutant(
        name="search-gives-up-silently",
        harm="a first attempt too far back is taken for lost: the write is applied twice",
        edits=[
            Edit(
                path=APPEND,
                old="      return redis.error_reply('UNSEARCHED the log is longer than the search')",
                new="      break",
            ),
            # The second line of defence: what stood below the last entry searched may have been trimmed.
            Edit(
                path=APPEND,
                old="local function searched_all(oldest)\n",
                new="local function searched_all(oldest)\n  do return true end\n",
            ),
        ],
        tests=[f"{LOST}::test_a_log_too_long_to_search_makes_the_outcome_unknown"],
    ),
    mutant(
        "trimmed-attempt-taken-for-lost",
        "a first attempt that was flushed and trimmed is taken for lost: the write is applied twice",
        APPEND,
        "local function searched_all(oldest)\n",
        "local function searched_all(oldest)\n  do return true end\n",
        f"{LOST}::test_an_entry_flushed_and_trimmed_before_the_retry_is_not_written_again",
    ),
    mutant(
        "unknown-outcome-called-nothing",
        "a write that may be in the log is reported as not written",
        "engine/core/appending.py",
        "        lost = still_lost(reply, lost)\n",
        "",
        "tests/unit/test_appending.py::test_nothing_written_is_said_only_when_certain",
    ),
    mutant(
        "hidden-server-called-nothing",
        "a write that is in the log is reported as not written, because the server hides what it is by then",
        ATTEMPTS,
        "            return Unsent(error)\n        except ConfigurationError as error:\n"
        "            return Unfit(error)\n        return None\n\n    def _run_text",
        "            return Unsent(error)\n        return None\n\n    def _run_text",
        f"{LOST}::test_a_server_that_hides_what_it_is_leaves_a_lost_outcome_unknown",
    ),
    mutant(
        "foreign-log-taken-for-searched",
        "a write that is in the log is reported as not written, because the log was overwritten since",
        ATTEMPTS,
        'refused.fenced_off = fenced_off and refused.code == "RANGE"',
        'refused.fenced_off = fenced_off and refused.code in {"RANGE", "WRONGTYPE"}',
        f"{LOST}::test_a_log_overwritten_before_the_retry_makes_the_outcome_unknown",
    ),
    mutant(
        "waitaof-not-compared",
        "a write passes for fsynced when only time ran out",
        FSYNC,
        "on_disk = answers[0][0] >= 1",
        "on_disk = True",
        f"{FAULTS}::test_a_confirmation_is_compared_with_what_was_asked",
    ),
    mutant(
        "wait-not-compared",
        "a write passes for replicated when only time ran out",
        FSYNC,
        "level < Durability.REPLICATED or answers[-1] >= replicas",
        "level < Durability.REPLICATED or answers[-1] >= 0",
        f"{FAULTS}::test_a_confirmation_is_compared_with_what_was_asked",
    ),
    mutant(
        "waitaof-trusted-unseen",
        "a server that confirms before any fsync is believed",
        FSYNC,
        "slow += elapsed >= SLOW_SECONDS",
        "slow += 1",
        f"{FAULTS}::test_a_waitaof_that_answers_at_once_is_not_trusted",
    ),
]

FLUSHING = [
    mutant(
        "acknowledged-before-commit",
        "a crash in between leaves entries that nobody will deliver again",
        FLUSH,
        "        yield Commit()\n",
        "        yield Acknowledge(batch)\n        yield Commit()\n",
        f"{FAULTS}::test_nothing_shows_before_the_commit[Commit]",
    ),
    mutant(
        "offset-in-another-transaction",
        "a crash between offset and rows loses the rows",
        TRANSACTION,
        "            self._note(segments)\n            return Fenced.MOVED",
        "            self._note(segments)\n            connection.commit()\n            connection.begin()\n"
        "            return Fenced.MOVED",
        f"{FAULTS}::test_nothing_shows_before_the_commit[Write]",
    ),
    mutant(
        "rows-before-offset",
        "a crash between rows and offset applies the rows twice",
        TRANSACTION,
        "        if missing:\n            connection.execute(\n",
        "        connection.commit()\n        connection.begin()\n"
        "        if missing:\n            connection.execute(\n",
        f"{FAULTS}::test_nothing_shows_before_the_commit[Commit]",
    ),
    mutant(
        "watermark-before-commit",
        "readers load a row that is not there yet, and receipts say PERSISTED too early",
        FLUSHER,
        "                return self._fence(segments)",
        "                with self._links.link() as link:\n"
        "                    for each in segments:\n"
        "                        meta = self._log._keys.metas[each.partition]\n"
        '                        link.command("HSET", meta, "watermark", str(each.end))\n'
        "                return self._fence(segments)",
        f"{FAULTS}::test_nothing_shows_before_the_commit[Write]",
    ),
    mutant(
        "database-error-swallowed",
        "the offset moves past rows that the database refused",
        TRANSACTION,
        "            missing += self._path.apply(connection, declared, changes.tables[declared.entity.name])",
        "            try:\n"
        "                missing += self._path.apply("
        "connection, declared, changes.tables[declared.entity.name])\n"
        "            except sa.exc.DBAPIError:\n"
        "                pass",
        f"{FAULTS}::test_a_refused_row_costs_its_key_only[sqlite]",
    ),
    mutant(
        "aborted-transaction-committed",
        "COMMIT of an aborted PostgreSQL transaction succeeds and stores nothing",
        TRANSACTION,
        "            missing += self._path.apply(connection, declared, changes.tables[declared.entity.name])",
        "            try:\n"
        "                missing += self._path.apply("
        "connection, declared, changes.tables[declared.entity.name])\n"
        "            except sa.exc.DBAPIError:\n"
        "                pass",
        f"{FAULTS}::test_a_refused_row_costs_its_key_only[postgresql]",
    ),
    mutant(
        "lock-timeout-swallowed",
        "MariaDB's 1205 undoes one statement only: the offset moves past its rows",
        TRANSACTION,
        "            missing += self._path.apply(connection, declared, changes.tables[declared.entity.name])",
        "            try:\n"
        "                missing += self._path.apply("
        "connection, declared, changes.tables[declared.entity.name])\n"
        "            except sa.exc.OperationalError as error:\n"
        "                if error.orig.args[0] != 1205:\n"
        "                    raise",
        f"{FAULTS}::test_a_lock_that_is_not_granted_in_time_skips_nothing",
    ),
    mutant(
        "fence-ignores-its-answer",
        "a batch is committed though the fence found another holder or offset",
        FLUSH,
        "if fenced is Fenced.MOVED:",
        "if fenced is not Fenced.ALREADY:",
        f"{FAULTS}::test_a_holder_that_was_succeeded_commits_nothing",
    ),
    mutant(
        "fence-ignores-rowcount",
        "a batch is committed though the fence moved no offset",
        TRANSACTION,
        "if moved.rowcount == len(segments):",
        "if moved.rowcount >= 0:",
        f"{FAULTS}::test_a_holder_that_was_succeeded_commits_nothing",
    ),
    mutant(
        "fence-without-token",
        "a frozen flusher that goes on commits beside its successor",
        TRANSACTION,
        '            known.token == _number(f"token_{number}"),',
        '            sa.or_(known.token == _number(f"token_{number}"), sa.true()),',
        f"{FAULTS}::test_a_holder_that_was_succeeded_commits_nothing",
    ),
    mutant(
        "fence-without-offset",
        "a commit whose outcome was unknown is repeated: increments and inserts count twice",
        TRANSACTION,
        '            known.epoch == _number(f"start_epoch_{number}"),\n'
        '            known.sequence == _number(f"start_sequence_{number}"),',
        '            sa.or_(known.epoch == _number(f"start_epoch_{number}"), sa.true()),\n'
        '            sa.or_(known.sequence == _number(f"start_sequence_{number}"), sa.true()),',
        f"{FAULTS}::test_a_batch_committed_before_is_not_applied_again",
    ),
    mutant(
        "any-offset-passes-for-committed",
        "after a rollback of SQL a batch is acknowledged and never applied",
        TRANSACTION,
        "found.get(segment.partition) == (segment.token, *segment.end)",
        "found.get(segment.partition, (0,))[0] == segment.token",
        f"{FAULTS}::test_another_offset_is_no_earlier_commit",
    ),
    mutant(
        "ids-compared-across-histories",
        "after a failover new writes stand below the offset of the old history and are dropped",
        INTAKE,
        "        start = cursor.position\n",
        "        entries = [entry for entry in entries if EntryID.parse(entry[0]) > cursor.committed]\n"
        "        if not entries:\n            return\n        start = cursor.position\n",
        f"{FAULTS}::test_a_history_with_smaller_numbers_is_flushed",
    ),
    mutant(
        "offset-of-another-history",
        "what was delivered of a new history is not replayed, because the old one's offset is above it",
        CONTIGUITY,
        "for applied in (offset, *earlier.values()) if applied.epoch in lineage), default=ORIGIN)",
        "for applied in (offset, *earlier.values())), default=ORIGIN)",
        "tests/unit/test_contiguity.py::test_reading_begins_where_the_histories_parted",
        f"{FAULTS}::test_a_history_with_smaller_numbers_is_flushed[True]",
    ),
    mutant(
        "receipts-compared-across-histories",
        "a lost write is reported as persisted",
        ROWS,
        "        if entry_id.epoch == self.offset.epoch:",
        "        if True:",
        f"{FAULTS}::test_a_lost_write_is_not_called_persisted",
    ),
    mutant(
        "gaps-passed-over",
        "entries that are missing from the log are not missed by anybody",
        CONTIGUITY,
        "return Step(lost=found.sequence - position.sequence - 1)",
        "return Step()",
        f"{FAULTS}::test_a_removed_entry_is_counted",
    ),
    mutant(
        "trimmed-above-the-offset",
        "entries that were read ahead are trimmed before they are in SQL",
        CURSOR,
        "return EntryID(point.epoch, point.sequence + 1)",
        "return EntryID(self.position.epoch, self.position.sequence + 1)",
        f"{FAULTS}::test_only_what_sql_has_is_trimmed",
    ),
    mutant(
        "settled-whatever-the-version",
        "a record written since the batch was read may be evicted before it is in SQL",
        SETTLE,
        "  if version == ARGV[i + 5] then",
        "  if version then",
        f"{ENGINE}::test_a_record_written_since_its_flush_does_not_expire",
    ),
    mutant(
        "late-commit-unseen",
        "where records have no end, what was loaded before a late commit is read for ever",
        SETTLEMENT,
        "([], [*whole, *other])",
        "([], other)",
        f"{FILLED}::test_a_late_commit",
    ),
    mutant(
        "removed-whatever-the-version",
        "a record deleted or patched since the batch was read is forgotten before it is in SQL",
        SETTLE,
        "  if known[1] == ARGV[i + 5] then",
        "  if known[1] then",
        f"{FAULTS}::test_a_change_after_the_batch_survives_its_settlement",
    ),
]

HOLDING = [
    Mutant(
        name="tokens-from-redis",
        harm="a Redis that was rolled back hands out a fencing token twice",
        edits=[
            Edit(
                path=FLUSHER,
                old="        self._transaction = Transaction(",
                new="        leases.mint = self._mint\n        self._transaction = Transaction(",
            ),
            Edit(
                path=FLUSHER,
                old="    # Serving\n",
                new="    def _mint(self, number):\n"
                "        with self._links.link() as link:\n"
                '            return int(link.command("INCR", self._log._keys.stems[number] + "token"))\n\n'
                "    # Serving\n",
            ),
            Edit(path=LEASES, old="token=partitions.c.token + 1", new="token=self.mint(number)"),
        ],
        tests=[f"{FAULTS}::test_tokens_grow_though_redis_forgets"],
    ),
    mutant(
        "token-does-not-grow",
        "a frozen flusher that goes on cannot be told from its successor",
        LEASES,
        "token=partitions.c.token + 1",
        "token=partitions.c.token",
        f"{FAULTS}::test_tokens_grow_though_redis_forgets",
    ),
    mutant(
        "live-lease-taken",
        "two flushers chase each other off a partition",
        LEASES,
        "                partitions.c.lease_until_ms < now_ms(),",
        "                partitions.c.holder != self._holder,",
        f"{FAULTS}::test_a_lease_that_lives_is_left_alone",
    ),
    mutant(
        "lease-of-another-released",
        "a flusher that was succeeded takes the partition from its successor",
        LEASES,
        ".where(self._mine, partitions.c.partition == number, partitions.c.token == token)\n"
        "                    .values(holder=None",
        ".where(partitions.c.namespace == self._namespace, partitions.c.partition == number)\n"
        "                    .values(holder=None",
        f"{FAULTS}::test_a_lease_of_another_is_not_released",
    ),
    mutant(
        "group-rebuilt-at-the-end",
        "entries from before the new group are never delivered",
        LOG,
        'start = "0" if position == ORIGIN else str(position)',
        'start = "$"',
        f"{FAULTS}::test_a_group_that_is_gone_is_rebuilt_where_sql_stands",
    ),
    mutant(
        "late-settlement-believed",
        "a commit acknowledged after a failover trims what the new primary has not flushed",
        PUBLISH,
        "if redis.call('HEXISTS', meta, 'lineage:' .. ARGV[1]) == 0 then return 0 end",
        "",
        f"{FAULTS}::test_a_late_settlement_leaves_another_history_alone",
    ),
    mutant(
        "pending-not-claimed",
        "entries of the dead stay pending for ever",
        TAKEOVER,
        "_answer(tuple, (yield Claim()))",
        "([], [])",
        f"{FAULTS}::test_what_was_committed_and_not_acknowledged_is_acknowledged",
    ),
    mutant(
        "claimed-and-acknowledged",
        "a takeover acknowledges what is not in SQL",
        TAKEOVER,
        "for entry in claimed if EntryID.parse(entry) <= position]",
        "for entry in claimed]",
        f"{FAULTS}::test_what_the_dead_had_read_is_replayed",
    ),
    mutant(
        "delivered-not-replayed",
        "what a dead flusher had read waits until a later entry shows the gap",
        TAKEOVER,
        "    replay_until = delivered if delivered > position else None",
        "    replay_until = None",
        "tests/unit/test_takeover.py::test_what_was_delivered_and_not_applied_is_replayed",
    ),
]

ROLLED_BACK = [
    mutant(
        "suspects-built-upon",
        "an increment is added to a value that SQL has newer, and shown so",
        APPEND,
        "if known[4] then",
        "if false then",
        f"{ROLLBACKS}::test_records_that_sql_has_newer_are_loaded",
    ),
    mutant(
        "suspects-read",
        "a record that SQL has newer is served",
        READING,
        "elif version.epoch < floor and (",
        "elif False and (",
        f"{ROLLBACKS}::test_records_that_sql_has_newer_are_loaded",
    ),
    mutant(
        "suspects-trusted",
        "a record that SQL has newer is believed again",
        TAKEOVER,
        "        if behind is not None:",
        "        if False:",
        f"{ROLLBACKS}::test_records_that_sql_has_newer_are_loaded",
    ),
    mutant(
        "ghosts-applied",
        "a write that was lost, and written again, is applied when Redis remembers it",
        TAKEOVER,
        "        if state.ghosts:",
        "        if False:",
        f"{ROLLBACKS}::test_an_undone_write_stays_undone",
    ),
    mutant(
        "foreign-key-stops-a-takeover",
        "another program's key under a record's name halts its partition after a restart of Redis",
        "engine/adapters/doubts.py",
        "                return 0\n        return sum(",
        "                raise\n        return sum(",
        f"{ROLLBACKS}::test_a_foreign_key_under_a_doubted_record",
    ),
    mutant(
        "lost-epoch-in-the-lineage",
        "entries of an epoch are taken for ghosts, because the beginning of a lost one came back above its number",
        "engine/core/contiguity.py",
        "        if epoch > current or (following is not None and not _follows(following, epoch, lineage)):",
        "        if False:",
        "tests/unit/test_contiguity.py::test_an_epoch_that_never_was_is_not_in_the_lineage",
    ),
    mutant(
        "half-written-trusted",
        "the beginning of a transaction that Redis was killed in is believed whole",
        TAKEOVER,
        "        for epoch, last in state.last_before.items():",
        "        for epoch, last in ():",
        f"{ROLLBACKS}::test_half_a_write_comes_back",
    ),
    mutant(
        "ghosts-read",
        "a record that came back with a lost write is shown until a flusher has looked",
        READING,
        " or is_ghost(version, lineage)",
        "",
        f"{ROLLBACKS}::test_an_undone_write_is_not_read",
    ),
    mutant(
        "written-again-though-applied",
        "what SQL has is applied once more, because Redis had lost it",
        MERGING,
        "(origin.original is not None and cursor.has(origin.original))",
        "False",
        f"{RETENTION}::test_a_lost_tail_is_written_again",
    ),
    mutant(
        "inserts-unseen-when-written-again",
        "a lost write is put over a row that was inserted meanwhile, which leaves no record in Redis",
        "engine/adapters/lua/rewrite.lua",
        "      if string.find(entry[2][4] or '', needle, 1, true) then return false end",
        "",
        f"{RETENTION}::test_an_insert_between_the_look_and_the_script",
    ),
    mutant(
        "written-again-over-others",
        "a lost write puts an old value over a later one",
        REWRITING,
        "            if single.original in self._originals or unseen or not self._commutes(single):",
        "            if single.original in self._originals:",
        f"{RETENTION}::test_what_others_have_written_since_stays",
    ),
    mutant(
        "originals-forgotten",
        "a write that is lost twice is applied twice",
        TRANSACTION,
        "            if segment.rewritten:",
        "            if False:",
        f"{RETENTION}::test_written_again_flushed_and_lost_again",
    ),
    mutant(
        "doubts-untold",
        "a write that nobody can know SQL to have is passed over in silence",
        "flushers/losses.py",
        "    found = [_in_doubt(segment.partition, run) for run in _runs(segment.in_doubt)]",
        "    found = []",
        f"{DOUBTS}::test_what_nobody_can_know_is_told[increment-executed before]",
    ),
    mutant(
        "doubts-doubled",
        "a write whose reply was lost in a failover is applied twice",
        MERGING,
        "    return Elsewhere.PERHAPS if any(map(cursor.reaches, origin.doubts)) else None",
        "    return None",
        f"{DOUBTS}::test_what_nobody_can_know_is_told[increment-executed before]",
    ),
    mutant(
        "letters-that-moved",
        "a receipt says that SQL has a write that it has refused, once that was written again",
        "engine/adapters/confirmer.py",
        "        where = places or [entry_id]",
        "        where = [entry_id]",
        f"{RETENTION}::test_a_dead_letter_that_redis_lost",
    ),
    mutant(
        "persisted-in-doubt",
        "a receipt says that SQL has a write that was passed over",
        "engine/adapters/confirmer.py",
        "            if in_doubt and (yield from self._looks.asking(",
        "            if False and (yield from self._looks.asking(",
        f"{DOUBTS}::test_what_nobody_can_know_is_told[increment-not executed before]",
    ),
    mutant(
        "others-vouch-for-a-doubt",
        "a batch says that SQL has a write that was passed over",
        "engine/confirmations.py",
        "            if not all(covered) or receipt.in_doubt:",
        "            if not all(covered):",
        f"{DOUBTS}::test_a_batch_in_doubt",
    ),
    mutant(
        "doubts-shown",
        "a record shows a write that was passed over",
        APPEND,
        "      if doubt ~= '' then\n        redis.call('HSET', key, ':version', id)\n      elseif",
        "      if",
        f"{DOUBTS}::test_what_nobody_can_know_is_told[put-not executed before]",
    ),
    mutant(
        "one-loss-an-epoch",
        "what a second rollback takes of the same epoch is told to nobody",
        "engine/core/retention.py",
        '            known[b"%d" % epoch] = str(end).encode()',
        '            known.pop(b"%d" % epoch, None)',
        f"{RETENTION}::test_what_is_not_kept_is_counted_at_each_loss[SQL answers]",
    ),
    mutant(
        "losses-told-again",
        "what a rollback took is counted at the next one, too",
        "engine/adapters/rewriter.py",
        "self._ring.cut(partition, last.epoch,",
        "self._ring.cut(partition, -1,",
        f"{RETENTION}::test_what_is_not_kept_is_counted_at_each_loss[SQL answers]",
    ),
    mutant(
        "sql-rollback-unnoticed",
        "rows that a restored database is without stay missing until the next write",
        HOLDINGS,
        "            elif offset != cursor.committed:",
        "            elif False:",
        "tests/integration/test_sql_rollbacks.py::test_what_the_log_retains_is_applied_again",
    ),
]

COALESCED = [
    mutant(
        "patch-lost-after-put",
        "a patch of a record put in the same batch vanishes",
        COALESCING,
        "            row.update(values)\n        elif key not in self.deletes:",
        "            pass\n        elif key not in self.deletes:",
        "tests/unit/test_coalescing.py::test_a_put_takes_in_patches_and_increments",
    ),
    mutant(
        "increment-overwrites",
        "of several increments in a batch only the last one counts",
        COALESCING,
        "increments = self._sums(self.delta_adders, update.increments, increments)",
        "increments = self._sums(self.delta_adders, {}, increments)",
        "tests/unit/test_coalescing.py::test_patches_merge_and_increments_add_up",
    ),
    mutant(
        "put-lost-after-delete",
        "a record put after its delete in the same batch vanishes",
        COALESCING,
        "        if self.deletes:\n            self.deletes.pop(key, None)",
        "",
        "tests/unit/test_coalescing.py::test_a_row_after_a_delete_replaces_it",
    ),
    mutant(
        "group-merged-in-part",
        "half of an atomic group whose other half is poison lands",
        COALESCING,
        "            for undo in undos:\n                undo()\n",
        "",
        "tests/unit/test_coalescing.py::test_a_group_is_merged_whole_or_not_at_all",
    ),
    mutant(
        "upsert-on-any-unique-index",
        "MySQL's upsert overwrites another row that has the same unique value",
        "flushers/bulk/mysql.py",
        "        if not self._has_one_unique_key(connection, declared):",
        "        if False:",
        "tests/integration/test_bulk.py::test_a_unique_index_that_the_model_does_not_know",
    ),
    mutant(
        "upsert-by-replace",
        "SQLite's INSERT OR REPLACE deletes another row that has the same unique value",
        "flushers/bulk/upsert.py",
        "insert.on_conflict_do_update(index_elements=target.key, set_=sets)",
        'insert.prefix_with("OR REPLACE")',
        f"{FAULTS}::test_a_row_is_not_overwritten_by_another_keys",
    ),
    mutant(
        "number-bound-as-bytes",
        "a forged entry of a few bytes, a number for a column of bytes, makes MariaDB's driver take gigabytes",
        "flushers/bulk/generic.py",
        "            self._check(declared, columns, rows)\n            self._put(",
        "            self._put(",
        "tests/integration/test_bulk.py::test_values_of_another_type[mariadb-mysql-1]",
    ),
    mutant(
        "memory-copied-as-an-interval",
        "psycopg's COPY writes what is in the memory beside a forged value where an interval is meant",
        "flushers/bulk/postgresql.py",
        "Kind.DATETIME_UTC, Kind.BYTES, Kind.UUID}",
        "Kind.DATETIME_UTC, Kind.BYTES, Kind.UUID, Kind.INTERVAL}",
        "tests/integration/test_bulk.py::test_values_of_another_type[postgresql-copy-1]",
    ),
]

SET_ASIDE = [
    mutant(
        "refused-and-forgotten",
        "what SQL refuses is lost, as it is with most of this kind",
        LETTERS,
        "            self._insert(connection, partition, some, retrying=retrying)",
        "            pass",
        f"{REFUSED}::test_each_kind_of_refusal[sqlite]",
    ),
    mutant(
        "refused-again-and-untold",
        "a service never hears of a letter whose last retry was committed while its reply was lost",
        "flushers/trouble.py",
        "self._holdings.doubt(cursor.number, cursor.quarantine.chains(due))",
        "self._holdings.doubt(cursor.number, ())",
        f"{REFUSED_FAULTS}::test_a_retried_letter_is_told_of_where_the_reply_is_lost[sqlite]",
    ),
    mutant(
        "letter-overtaken",
        "later writes of a key overtake the one that SQL refuses: increments are applied to another value",
        QUARANTINE,
        "if line is not None and next(iter(line)) < place:",
        "if line is not None and next(iter(line)) < 0:",
        f"{REFUSED}::test_what_comes_after_waits_in_order[sqlite]",
    ),
    mutant(
        "superseded-by-a-part",
        "a patch takes the letter away whose other columns it does not have",
        QUARANTINE,
        "if op in {Op.PUT, Op.DELETE} else ()",
        "if op in {Op.PUT, Op.PATCH, Op.DELETE} else ()",
        "tests/unit/test_isolation.py::test_a_put_supersedes_what_it_covers",
    ),
    mutant(
        "letter-after-the-commit",
        "a crash loses what SQL has refused, whose entry the offset has passed",
        TRANSACTION,
        "        self._letters.record(self.connection, segment.partition, outcome, retried)",
        "        self.connection.commit()\n        self.connection.begin()\n"
        "        self._letters.record(self.connection, segment.partition, outcome, retried)",
        f"{REFUSED}::test_every_step_may_be_the_last[before]",
    ),
    mutant(
        "letter-stays",
        "a letter that was applied is applied again with the next replay",
        SIFTING,
        "        outcome.gone |= {suspect.place for suspect in chunk if suspect.letter}",
        "",
        f"{REFUSED}::test_a_parent_that_comes_later[sqlite]",
    ),
    Mutant(
        name="retried-from-memory",
        harm="a letter is applied twice where the reply of its commit is lost",
        edits=[
            # Either of the two is enough.
            Edit(path=TRANSACTION, old='            known.letters == _number(f"letters_{number}"),\n', new=""),
            Edit(path=ISOLATION, old="def isolate(", new="_SEEN: dict = {}\n\n\ndef isolate("),
            Edit(
                path=ISOLATION,
                old="        suspects = letters if isinstance(letters, Sequence) else []",
                new="        suspects = _SEEN.setdefault((segment.partition, *places), letters)",
            ),
        ],
        tests=[f"{REFUSED_FAULTS}::test_a_retry_whose_reply_is_lost_is_applied_once[sqlite]"],
    ),
    mutant(
        "letters-for-a-missing-table",
        "a migration that was forgotten makes a dead letter of every write",
        APART,
        "REFUSING = frozenset({Failure.POISON, Failure.FOREIGN_KEY})",
        "REFUSING = frozenset({Failure.POISON, Failure.FOREIGN_KEY, Failure.CONFIGURATION})",
        "tests/integration/test_configuration_halts.py::test_a_migration_that_is_not_through[sqlite-missing table]",
    ),
    mutant(
        "migration-fills-the-letters",
        "a column that was changed makes a dead letter of every write",
        APART,
        "changed = None if self._transaction.ended else self._transaction.drift(tables, error)",
        "changed = None",
        "tests/integration/test_configuration_halts.py::test_a_migration_that_is_not_through[mariadb-other type]",
        "tests/integration/test_configuration_halts.py::test_a_migration_that_is_not_through[sqlite-required column]",
    ),
    mutant(
        "no-time-for-parents",
        "a child that is flushed before its parent is a dead letter",
        APART,
        "                until = now + self._foreign_key_seconds",
        "                until = now",
        f"{REFUSED}::test_a_parent_that_comes_later[sqlite]",
    ),
    mutant(
        "place-used-again",
        "a decision that comes late is carried out on another letter",
        TRANSACTION,
        '{**here, "letters_are": segment.places.stop})',
        '{**here, "letters_are": 0})',
        "tests/integration/test_letter_resolution.py::test_a_late_request_means_no_other_letter[sqlite]",
    ),
    mutant(
        "persisted-by-the-offset-alone",
        "a receipt says PERSISTED of a write that SQL has refused",
        CONFIRMER,
        "        if not passed.letters and not in_doubt:",
        "        if not in_doubt:",
        f"{REFUSED}::test_receipts_of_what_sql_refuses[sqlite]",
    ),
    mutant(
        "savepoint-over-letters",
        "a second refusal of a batch takes back the dead letters of the first",
        TRANSACTION,
        "        self._savepoint = False  # the next one has to lie behind what is written here\n",
        "",
        f"{REFUSED}::test_thousands_with_some_poison",
    ),
    Mutant(
        name="letters-not-fenced",
        harm="after a rollback of SQL a write overtakes the letter that it brought back",
        edits=[
            Edit(path=TRANSACTION, old='            known.letters == _number(f"letters_{number}"),\n', new=""),
            Edit(path=HOLDINGS, old="            elif letters != cursor.letters:", new="            elif letters < 0:"),
        ],
        tests=[f"{REFUSED_FAULTS}::test_sql_rolled_back_to_other_letters"],
    ),
    mutant(
        "screening-has-the-last-word",
        "a row is refused that SQL would take",
        FLUSH,
        "                yield from sift(line, Quarantine(), outcome)",
        "                yield from sift(line, Quarantine(), outcome, ValueError('screened'))",
        f"{REFUSED_FAULTS}::test_what_was_tried_alone_and_taken_is_settled",
    ),
    mutant(
        "loaded-before-a-letter-believed",
        "a record that was loaded before SQL took a dead letter, and written since, is shown without it for ever",
        TROUBLE,
        "late=any(suspect.letter for suspect in outcome.applied)",
        "late=False",
        f"{RESOLVED}::test_what_was_loaded_lacks_what_waits[before-increment]",
    ),
    mutant(
        "loaded-before-a-letter-and-written-believed",
        "likewise, where it is written between the commit and the moment when Redis learns of it",
        SETTLE,
        "  elseif lacking then",
        "  elseif false then",
        f"{RESOLVED}::test_what_was_loaded_lacks_what_waits[meanwhile-increment]",
    ),
    mutant(
        "laid-under-a-patch-before-a-letter-believed",
        "likewise, where it was laid under a patch",
        RECORD_OVERLAY,
        "':loaded', ARGV[1], ",
        "",
        f"{RESOLVED}::test_what_was_loaded_lacks_what_waits[before-patch]",
    ),
]

PRESSURE = [
    mutant(
        "admitted-before-the-search",
        "a write that was accepted, and whose reply was lost, is said not to be written",
        APPEND,
        "if ARGV[5] == '+' then\n",
        "if ARGV[7] ~= '' and length >= tonumber(ARGV[7]) then return redis.error_reply('BACKLOG entries 1 0') end\n"
        "if ARGV[5] == '+' then\n",
        f"{PRESSED}::test_a_retry_finds_its_entry_in_a_full_backlog",
    ),
    mutant(
        "fenced-off-in-another-history",
        "a write that SQL has is said not to be written",
        ATTEMPTS,
        "fenced_off=effect.retry and not doubts)",
        "fenced_off=effect.retry)",
        f"{RETENTION}::test_a_lost_reply_a_lost_tail_and_no_room",
    ),
    mutant(
        "a-deadline-for-each-partition",
        "a batch waits for a Redis that is away as often as it has partitions",
        SENDING,
        "yield draft.call(appender.call_id()), fresh",
        "yield draft.call(appender.call_id()), Deadline(fresh._seconds)",
        f"{PRESSED}::test_a_batch_waits_for_a_redis_that_is_away_once[False]",
    ),
    mutant(
        "a-failure-raised-at-once",
        "who writes in batches of which some writes fail never waits for the database, whatever the limit",
        WRITER,
        "            self._persist(beyond, chosen)\n",
        "            self._persist([] if failure else beyond, chosen)\n",
        f"{PRESSED}::test_what_a_failed_batch_wrote_through_is_waited_for",
    ),
    mutant(
        "a-group-paid-for-in-part",
        "the limit on the database's load is void for atomic groups",
        PACING,
        "self._saved_at(now, self._rate) - rows, now)",
        "self._saved_at(now, self._rate) - min(rows, self.mutations_max), now)",
        "tests/unit/test_pacing.py::test_groups_are_paid_for_and_no_more",
    ),
    mutant(
        "groups-counted-as-one",
        "a batch of atomic groups is many times what the database is to be given at a time",
        MERGING,
        "                if number and changes.mutations >= enough:\n                    return number\n",
        "",
        f"{PRESSED}::test_the_rate_holds_for_groups_and_costs_no_lease",
    ),
    mutant(
        "a-rate-for-each-instead-of-all",
        "each of many flushers gives the database what all of them together may",
        "flushers/total_rate.py",
        "self._hits.hit_at(self._key, self._limits, units, count=True)",
        'self._hits.hit_at(f"{self._key}:{id(self)}", self._limits, units, count=True)',
        "tests/integration/test_total_rate.py::test_two_flushers_share_a_rate",
    ),
    mutant(
        "a-burst-nobody-counts",
        "a writer that is faster than looks at the memory fills Redis to the brim",
        "engine/adapters/memory.py",
        "self._room_bytes -= payload_bytes * BYTES_PER_PAYLOAD_BYTE",
        "self._room_bytes -= 0",
        f"{PRESSED}::test_a_burst_between_two_looks",
    ),
    mutant(
        "one-set-for-all-rates",
        "while the shared rate is changed, flushers with the lower one never have a turn",
        "engine/core/keys.py",
        ':flushed:{rows_per_second}"',
        ':flushed"',
        "tests/integration/test_total_rate.py::test_flushers_of_two_rates_do_not_lock_each_other_out",
    ),
    mutant(
        "an-old-answer-counts",
        "a write is said to be lost that a flusher had in hand and SQL has, and is written again",
        "engine/adapters/confirmer.py",
        "elif asked.began_at_seconds - asked.missed_at_seconds >= CERTAIN_AFTER_SECONDS:",
        "elif time.monotonic() - asked.missed_at_seconds >= CERTAIN_AFTER_SECONDS:",
        "tests/unit/test_confirmer.py::test_an_answer_from_before_is_none",
    ),
    mutant(
        "one-frozen-look-after-the-other",
        "a batch over many partitions waits for minutes where Redis answers nothing",
        "engine/confirmations.py",
        "                if pauses and time.monotonic() >= until_seconds + GRACE_SECONDS:\n                    break",
        "                if False:\n                    break",
        "tests/unit/test_confirmer.py::test_not_one_look_after_the_other",
    ),
    mutant(
        "the-rate-waited-for-through-a-lease",
        "partitions change hands whenever the database is given much at a time",
        PACING,
        "return min(self._wait_max, max(WAIT_SECONDS_MIN, -saved / self._rate))",
        "return max(WAIT_SECONDS_MIN, -saved / self._rate)",
        f"{PRESSED}::test_the_rate_holds_for_groups_and_costs_no_lease",
    ),
    mutant(
        "fenced-off-by-a-full-redis",
        "a write is said not to be written, and arrives later",
        APPENDER,
        "held, fenced_off = Held(OUT_OF_MEMORY, 0, 0), False",
        "held = Held(OUT_OF_MEMORY, 0, 0)",
        f"{PRESSED}::test_a_lost_write_that_finds_redis_full_is_not_known",
    ),
    Mutant(
        name="let-go-before-the-entry",
        harm="a full Redis takes more and more: the first write is one that it never refuses",
        edits=[
            Edit(path=APPEND, old="if held and ARGV[7] ~= '' then redis.call('HDEL', meta, 'held') end\n", new=""),
            Edit(
                path=APPEND,
                old="local epoch = known[2] .. '-*'\n",
                new="if held and ARGV[7] ~= '' then redis.call('HDEL', meta, 'held') end\n"
                "local epoch = known[2] .. '-*'\n",
            ),
        ],
        tests=[f"{PRESSED}::test_a_full_redis_tells_writers_that_it_is_drained"],
    ),
    mutant(
        "offset-refused-by-a-full-redis",
        "writers are held for ever by a backlog that was flushed while Redis was full",
        PUBLISH,
        "redis.call('XTRIM', log, 'MINID', below)",
        "if below ~= '0-1' then redis.call('XTRIM', log, 'MINID', below) end",
        f"{PRESSED}::test_a_full_redis_tells_writers_that_it_is_drained",
    ),
    mutant(
        "held-with-an-empty-backlog",
        "where flushing cannot free memory nobody may write any more",
        APPEND,
        "  if backlog > 0 then\n",
        "  if backlog >= 0 then\n",
        f"{PRESSED}::test_a_redis_short_of_memory_gets_no_more_than_is_flushed",
    ),
    mutant(
        "who-takes-over-trims-nothing",
        "a Redis full of flushed entries is never drained once their flusher is gone",
        CURSOR,
        "            self.milestones.append((now, position))",
        "            pass",
        f"{PRESSED}::test_a_full_redis_is_freed_by_who_takes_over[0.9]",
    ),
    mutant(
        "no-half",
        "a writer at the limit comes and goes with every entry that is flushed",
        APPEND,
        "local share = held and 0.5 or 1",
        "local share = 1",
        f"{PRESSED}::test_it_resumes_below_half_of_the_limit",
    ),
]

LIMITING = [
    mutant(
        "hits-of-one-moment-are-one",
        "two hits in one microsecond count as one: more are admitted than the limit",
        HIT,
        "string.format('%016.0f:%.0f', sum, units)",
        "string.format('%016.0f:%.0f', at, units)",
        f"{LIMITED}::test_hits_at_the_same_moment",
    ),
    mutant(
        "a-window-without-its-first-hit",
        "a hit is forgotten a moment too early: a window has one more than the limit",
        HIT,
        "redis.call('ZCOUNT', key, '-inf', whole(now - window))",
        "redis.call('ZCOUNT', key, '-inf', whole(now - window + 1))",
        f"{LIMITED_AT_ALL_TIMES}::test_a_steady_clock",
    ),
    mutant(
        "a-window-and-a-moment",
        "who waits as long as was said is refused again",
        HIT,
        "redis.call('ZCOUNT', key, '-inf', whole(now - window))",
        "redis.call('ZCOUNT', key, '-inf', '(' .. whole(now - window))",
        f"{LIMITED_AT_ALL_TIMES}::test_a_steady_clock",
    ),
    mutant(
        "hits-counted-by-a-clock-that-steps-back",
        "after a failover to a replica behind, hits pass before their window does",
        HIT,
        "total, now = sum, math.max(clock, newest)",
        "total, now = sum, clock",
        f"{LIMITED_AT_ALL_TIMES}::test_a_clock_that_is_set_back",
    ),
    mutant(
        "who-is-refused-is-counted",
        "a subject that knocks too often is never admitted again",
        HIT,
        "if admitted and ARGV[2] == '1' then",
        "if ARGV[2] == '1' then",
        f"{LIMITED}::test_several_limits_admit_together_or_not_at_all",
    ),
    mutant(
        "the-last-limit-alone",
        "of several limits only one holds",
        HIT,
        "  left = math.min(left, limit - units)",
        "  left = limit - units",
        f"{LIMITED_AT_ALL_TIMES}::test_a_steady_clock",
    ),
    Mutant(
        name="removed-before-the-hit",
        harm="a full Redis takes more and more: the first write is one that it never refuses",
        edits=[
            Edit(path=HIT, old="  if gone > 0 then redis.call('ZREMRANGEBYRANK', key, 0, gone - 1) end\n", new=""),
            Edit(
                path=HIT,
                old="  add(total + cost, cost, now)\n",
                new="  if gone > 0 then redis.call('ZREMRANGEBYRANK', key, 0, gone - 1) end\n"
                "  add(total + cost, cost, now)\n",
            ),
        ],
        tests=[f"{LIMITED}::test_a_full_redis_counts_nothing"],
    ),
    mutant(
        "hits-for-ever",
        "each subject that was ever seen takes memory for ever",
        HIT,
        "  redis.call('PEXPIREAT', key, whole(math.ceil((at + longest) / 1000)))",
        "  return whole(at)",
        f"{LIMITED}::test_after_the_wait_there_is_room",
    ),
]


CACHED = [
    mutant(
        "fill-without-its-generation",
        "a slow loader puts back what was invalidated while it loaded",
        CACHE_FILL,
        "entry[1] ~= ARGV[2] or ",
        "",
        f"{LEASES_OF_CACHES}::test_nothing_loaded_before_an_invalidation_is_kept[invalidated]",
    ),
    mutant(
        "version-not-compared",
        "a process goes on with the version that it knows, whatever is invalidated elsewhere",
        CACHE_STORE,
        "            if version == expected:\n",
        "            if version is not None:\n",
        f"{CACHE}::test_a_load_that_began_before_an_invalidation[invalidate_all]",
    ),
    mutant(
        "lease-for-everybody",
        "every reader of a cold key loads it",
        CACHE_LOOK,
        "local leased = entry[4] and lease_until and lease_until > now\n",
        "local leased = false\n",
        CACHE_MACHINE,
    ),
    mutant(
        "generation-for-each-lease",
        "loads that take longer than their lease are never cached: each is overtaken by the next",
        CACHE_LOOK,
        "if not (generation and number) then",
        "if true then",
        f"{LEASES_OF_CACHES}::test_loads_that_take_longer_than_their_lease",
    ),
    mutant(
        "generation-ends-with-its-lease",
        "the same, because nothing is left of the first lease when the second one is taken",
        CACHE_LOOK,
        "if redis.call('PEXPIRE', key, ARGV[6], 'GT') == 0 then redis.call('PEXPIRE', key, ARGV[6], 'NX') end\n",
        "if redis.call('PEXPIRE', key, ARGV[2], 'GT') == 0 then redis.call('PEXPIRE', key, ARGV[2], 'NX') end\n",
        f"{LEASES_OF_CACHES}::test_loads_that_take_longer_than_their_lease",
    ),
    mutant(
        "older-load-over-a-newer-one",
        "a load that hung for long replaces what was loaded since",
        CACHE_FILL,
        " or (filled and filled >= tonumber(ARGV[3]))",
        "",
        f"{LEASES_OF_CACHES}::test_loads_that_take_longer_than_their_lease",
    ),
    mutant(
        "stale-for-ever",
        "while its loader fails, a value is given long after stale_seconds",
        CACHE_LOOK,
        "if value and fresh_until + tonumber(ARGV[4]) > now then",
        "if value and tonumber(ARGV[4]) > 0 then",
        f"{LEASES_OF_CACHES}::test_an_expired_value_is_given_for_stale_seconds_and_no_longer",
    ),
    mutant(
        "early-refresh-at-any-price",
        "with early_refresh a loader's failure reaches callers for whom there is a fresh value",
        CACHE_LOOK,
        "number + 1, fresh and value, entry",
        "number + 1, false, entry",
        f"{LEASES_OF_CACHES}::test_an_early_refresh_that_fails",
    ),
    mutant(
        "copy-with-a-void-ticket",
        "what was read before an announcement is kept after it",
        LOCAL_ENTRIES,
        "        if ticket != self.ticket(text):\n            return False\n",
        "",
        "tests/unit/test_caching.py::test_nothing_read_before_an_invalidation_is_kept_after_it",
    ),
    mutant(
        "copies-count-without-a-beat",
        "a half-open connection leaves old values in the process for as long as they live",
        LOCAL_CACHE,
        "            return self._entries.get(text, now) if now < self._valid_until else None",
        "            return self._entries.get(text, now)",
        f"{COPIES}::test_a_half_open_connection_is_noticed",
    ),
]

AWAITED = [
    mutant(
        "under-way-called-not-sent",
        "a caller that was cancelled writes again what goes on without it",
        PARCELS,
        "        if self.sent:\n",
        "        if self.told is None:\n",
        f"{AWAITING}::test_cancelled_under_way",
    ),
    mutant(
        "not-sent-and-sent",
        "what was said not to be sent is written",
        LANES,
        "        elif (lane := self._lanes[parcel.partition]).remove(parcel):\n",
        "        elif (lane := self._lanes[parcel.partition]) is None:\n",
        f"{AWAITING}::test_cancelled_under_way",
    ),
    mutant(
        "calls-of-a-partition-side-by-side",
        "the writes of a key overtake each other",
        LANE,
        "        return not self.busy and bool(self.queue)",
        "        return bool(self.queue)",
        f"{AWAITING}::test_order_of_a_key",
    ),
    mutant(
        "put-back-the-wrong-way-round",
        "writes that had to wait for room are written in another order",
        LANE,
        "        for parcel in reversed(list(parcels)):\n",
        "        for parcel in list(parcels):\n",
        f"{AWAITING}::test_a_refused_write_fails_alone",
    ),
    mutant(
        "mates-fail-together",
        "a write fails because another task's cannot be done",
        LANES,
        "        if len(parcels) == 1:\n",
        "        if parcels:\n",
        f"{AWAITING}::test_a_refused_write_fails_alone",
    ),
    mutant(
        "divided-by-the-kind-of-error",
        "writes whose reply was lost are made a second time, because the error is one of a refusal",
        LANES,
        "            elif isinstance(result, Exception):\n                self._fail(lane, parcels, result)\n",
        "            elif isinstance(result, Exception):\n"
        "                self._refused(lane, parcels, Refused('ERR', str(result)))\n",
        f"{AWAITING}::test_a_call_whose_reply_is_lost_is_not_divided",
    ),
    mutant(
        "mates-of-other-policies",
        "a write that may wait is rejected because another task's may not",
        LANE,
        " or parcel.policy is not first.policy",
        "",
        f"{AWAITING}::test_policies_do_not_share_a_call",
    ),
    mutant(
        "closed-under-way",
        "what is under way when an engine is closed fails, or is left to itself",
        LANES,
        "            await self._over.wait()\n",
        "            break\n",
        f"{AWAITING}::test_cancelled_under_way",
    ),
    mutant(
        "a-lane-that-all-have-left",
        "the writers of other partitions are never told, and their writes never sent",
        LANES,
        "            if lane.ready():\n",
        "            if lane is not None:\n",
        f"{LANED}::test_the_only_writer_of_a_lane_that_is_ready_leaves",
    ),
    mutant(
        "unclear-writes-sent-along",
        "a write is sent at a level that the servers cannot give",
        LANE,
        " or parcel.clearance is not None:\n",
        ":\n",
        f"{AWAITING}::test_a_level_that_cannot_be_given_is_refused_alone",
    ),
    mutant(
        "sent-before-the-start",
        "writes are sent to a server that was not checked, or at a level that it cannot give",
        LANE,
        " and bool(self.queue) and self.queue[0].clearance is None\n",
        " and bool(self.queue)\n",
        f"{AWAITING}::test_order_of_a_key_at_the_first_use_of_a_level",
    ),
    mutant(
        "unclear-writes-overtaken",
        "a later write of a key stands first, because the level of the earlier one was being checked",
        "engine/async_writing.py",
        "        with self._lanes.kept_open():\n            parcel = Parcel(",
        "        await self._clearances.wait(level)\n        with self._lanes.kept_open():\n"
        "            parcel = Parcel(",
        f"{AWAITING}::test_order_of_a_key_at_the_first_use_of_a_level",
    ),
    mutant(
        "batches-broken-into",
        "a later write of a key stands before the rest of a batch",
        LANES,
        "                lane.put_back([parcel])\n",
        "                lane.queue.append(parcel)\n",
        f"{AWAITING}::test_order_of_a_key_in_a_batch",
    ),
    mutant(
        "gone-in-a-division",
        "a write that was told to go on is dropped for its neighbour's fault",
        LANE,
        "        for parcel in reversed(list(parcels)):\n",
        "        for parcel in reversed([each for each in parcels if not each.told.done()]):\n",
        f"{LANED}::test_a_write_under_way_survives_its_neighbours_fault",
    ),
    mutant(
        "a-round-for-the-first",
        "a write is called durable because an earlier one is",
        "engine/rounds.py",
        "        joined.last = max(joined.last, entry_id)\n",
        "        joined.last = min(joined.last, entry_id)\n",
        "tests/unit/test_rounds.py::test_one_asks_for_all",
    ),
    mutant(
        "a-round-for-all-where-it-is-not",
        "a write is called durable although SQL refuses it",
        "engine/rounds.py",
        "        return joined.covers.done() and joined.covers.result()\n",
        "        return joined.covers.done()\n",
        "tests/unit/test_rounds.py::test_where_one_does_not_answer_for_all",
    ),
    mutant(
        "passed-before-the-offset-has",
        "a write is called persisted because an earlier one is",
        "engine/following.py",
        "        while self.waiting and self.waiting[0][0] <= passed.last:\n",
        "        while self.waiting:\n",
        "tests/unit/test_following.py::test_one_looks_for_all_however_long",
    ),
    mutant(
        "passed-with-dead-letters",
        "a write is called persisted although SQL may refuse it",
        "engine/following.py",
        "                answer.set_result(not passed.letters)\n",
        "                answer.set_result(True)\n",
        "tests/unit/test_following.py::test_where_there_are_dead_letters",
    ),
]

READ = [
    mutant(
        "lease-outlives-a-write",
        "what was loaded before a write is put over it",
        RECORD_FILL,
        "found[1] == state and found[2] == ARGV[2] and (found[3] or '') == version",
        "found[2] == ARGV[2]",
        f"{READS}::test_what_happens_under_a_slow_load[threads-put]",
    ),
    mutant(
        "renewal-outlives-a-write",
        "a row that was loaded again is put over what was written meanwhile",
        RECORD_FILL,
        " and (found[3] or '') == version",
        "",
        f"{FILLED}::test_a_write_overtakes_a_renewal",
    ),
    mutant(
        "overtaken-loader-fills",
        "a loader whose lease has run out fills in what is older than what the next one loads",
        RECORD_FILL,
        " and found[2] == ARGV[2]",
        "",
        f"{FILLED}::test_an_overtaken_loader",
    ),
    mutant(
        "late-fill-in-another-history",
        "a promoted replica, which has the lease and not the write that had cancelled it, takes the old row in",
        RECORD_FILL,
        "(known[1] or '') .. ' ' .. (known[2] or '') ~= ARGV[1]",
        "false",
        f"{FILLED}::test_a_fill_in_another_history",
    ),
    mutant(
        "old-loads-believed",
        "what a replica had loaded before it was promoted is given although SQL has later writes",
        READING,
        "loaded is not None and loaded.epoch < floor",
        "False",
        f"{FILLED}::test_a_replica_is_promoted[record]",
    ),
    mutant(
        "no-row-over-an-insert",
        "a row that was inserted is said not to exist for as long as that was remembered",
        READ_THROUGH,
        "known = inserted <= (loaded_at(fields) or ORIGIN)",
        "known = True",
        f"{FILLED}::test_an_insert_before_the_lease",
    ),
    mutant(
        "no-row-of-a-key-that-the-database-makes",
        "a row that was inserted from another partition is said not to exist",
        "engine/adapters/reader.py",
        "self._keeps_negative and not declared.plan.database_makes_keys",
        "self._keeps_negative",
        f"{FILLED}::test_an_insert_that_nobody_knows_the_key_of",
    ),
    mutant(
        "stale-where-nobody-allowed-it",
        "records are given beyond their time",
        "engine/adapters/reader.py",
        "stale_ms=int(1000 * settings.stale_seconds)",
        "stale_ms=int(1000 * settings.stale_seconds) or 60_000",
        "tests/unit/test_read_counts.py::test_lifetimes",
    ),
    mutant(
        "overlay-of-an-earlier-look",
        "columns of a record that was partial once are laid over the row that it has become",
        READ_THROUGH,
        'wanted.version, wanted.overlay = fields.get(b":version", b""), {}',
        'wanted.version = fields.get(b":version", b"")',
        f"{FILLED}::test_what_was_partial_is_loaded_again",
    ),
    mutant(
        "lease-of-a-failed-load",
        "readers wait for somebody who has given up",
        READ_THROUGH,
        "                yield Release(granted, taken)\n",
        "                pass\n",
        f"{READS}::test_sql_away[threads]",
    ),
]

MUTANTS = (
    *WRITING,
    *WRITING_THROUGH,
    *RETRIES,
    *FLUSHING,
    *HOLDING,
    *ROLLED_BACK,
    *COALESCED,
    *SET_ASIDE,
    *PRESSURE,
    *LIMITING,
    *CACHED,
    *AWAITED,
    *READ,
)
