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
COALESCING = "engine/core/coalescing.py"
CONFIRMER = "engine/adapters/confirmer.py"
CONTIGUITY = "engine/core/contiguity.py"
CURSOR = "flushers/cursor.py"
FLUSH = "flushers/flush.py"
FLUSHER = "flushers/flusher.py"
FSYNC = "engine/adapters/fsync.py"
HOLDINGS = "flushers/holdings.py"
INTAKE = "flushers/intake.py"
ISOLATION = "flushers/isolation.py"
LEASES = "flushers/leases.py"
LETTERS = "flushers/letters.py"
LINKS = "engine/adapters/links.py"
LOG = "engine/adapters/log.py"
MERGING = "flushers/merging.py"
OPEN_EPOCH = "engine/adapters/lua/open_epoch.lua"
PACING = "flushers/pacing.py"
PAYLOAD = "engine/core/payload.py"
PUBLISH = "engine/adapters/lua/publish.lua"
QUARANTINE = "flushers/quarantine.py"
READER = "engine/adapters/reader.py"
REWRITING = "engine/adapters/rewriting.py"
ROWS = "engine/adapters/rows.py"
SENDING = "engine/sending.py"
SETTLE = "engine/adapters/lua/settle.lua"
SIFTING = "flushers/sifting.py"
TAKEOVER = "recovery/takeover.py"
TRANSACTION = "flushers/transaction.py"

FAULTS = "tests/integration/test_known_faults.py"
ENGINE = "tests/integration/test_engine.py"
LOST = "tests/integration/test_lost_replies.py"
PRESSED = "tests/integration/test_pressure.py"
REFUSED = "tests/integration/test_dead_letters.py"
REFUSED_FAULTS = "tests/integration/test_dead_letter_faults.py"
DOUBTS = "tests/integration/test_doubts.py"
RETENTION = "tests/integration/test_retention.py"
ROLLBACKS = "tests/integration/test_rollbacks.py"

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
        READER,
        "if needed > watermark and not",
        "if state is Standing.OVERLAY and needed > watermark and not",
        f"{ENGINE}::test_a_cold_increment_is_read_after_its_flush",
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
        "  if redis.call('HGET', KEYS[i], ':version') == ARGV[i + 2] then",
        "  if redis.call('HGET', KEYS[i], ':version') then",
        f"{ENGINE}::test_a_record_written_since_its_flush_does_not_expire",
    ),
    mutant(
        "removed-whatever-the-version",
        "a record deleted or patched since the batch was read is forgotten before it is in SQL",
        SETTLE,
        "  if known[1] == ARGV[i + 2] then",
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
        READER,
        "and version.epoch < floors[wanted.partition]",
        "and False",
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
        "engine/adapters/log.py",
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
        READER,
        "                    or is_ghost(version, lineages[wanted.partition])",
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
        "                where = places or [entry_id]",
        "                where = [entry_id]",
        f"{RETENTION}::test_a_dead_letter_that_redis_lost",
    ),
    mutant(
        "persisted-in-doubt",
        "a receipt says that SQL has a write that was passed over",
        "engine/adapters/confirmer.py",
        "            if in_doubt and self._rows.in_doubt(",
        "            if False and self._rows.in_doubt(",
        f"{DOUBTS}::test_what_nobody_can_know_is_told[increment-not executed before]",
    ),
    mutant(
        "others-vouch-for-a-doubt",
        "a batch says that SQL has a write that was passed over",
        "engine/write_behind.py",
        "                if all(covered) and not receipt.in_doubt:",
        "                if all(covered):",
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
        "            if passed and not letters and not in_doubt:",
        "            if passed:",
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
        "engine/write_behind.py",
        "            self._confirm_all(through, Durability.PERSISTED)\n",
        "            self._confirm_all([] if failure else through, Durability.PERSISTED)\n",
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

MUTANTS = (*WRITING, *RETRIES, *FLUSHING, *HOLDING, *ROLLED_BACK, *COALESCED, *SET_ASIDE, *PRESSURE)
