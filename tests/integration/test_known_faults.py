"""What well-known mistakes of write-behind systems would break, each seen alone and quickly."""

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from writebehind.engine import DataLossDetected, EngineSettings, RedisUnavailable, ValidationError, WriteBehind
from writebehind.engine.adapters.control_tables import dead_letters, flushers, partitions
from writebehind.engine.adapters.fsync import Fsync, confirm, waitaof_waits
from writebehind.engine.adapters.links import Links
from writebehind.engine.adapters.log import GROUP, Acknowledgement, Log
from writebehind.engine.core.durability import Durability
from writebehind.engine.core.positions import EntryID
from writebehind.engine.errors import LeaseLost
from writebehind.flushers import Flusher, FlusherSettings, drain, initialise, status
from writebehind.flushers.batch import Batch
from writebehind.flushers.flush import Begin, Commit, Fence, Write
from writebehind.flushers.flusher import Effect
from writebehind.flushers.flusher import Reply as FlushReply
from writebehind.flushers.leases import Leases
from writebehind.flushers.letters import Letters

QUICK = FlusherSettings(linger_seconds=0, lease_ttl_seconds=2, retention_seconds=0, halt_retry_seconds=0.2)
DRAIN_SECONDS = 10
FAR_EPOCH = 2**52

metadata = sa.MetaData()
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("balance", sa.Integer, sa.CheckConstraint("balance <> 666"), nullable=False, default=0),
    sa.Column("note", sa.String(20)),
)
users = sa.Table(
    "users",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.String(20), nullable=False, unique=True),
)


class Killed(BaseException):
    """The flusher's process is no more."""


class Stepped(Flusher):
    """A flusher that is driven step by step, and dies instead of doing a given effect."""

    def __init__(self, app: WriteBehind, dies_at: type[Effect] | None = None) -> None:
        super().__init__(app, QUICK)
        self.dies_at = dies_at

    def perform(self, effect: Effect) -> FlushReply:
        """Do an effect, to its end."""
        if self.dies_at is not None and isinstance(effect, self.dies_at):
            raise Killed
        reply = super().perform(effect)
        self._settlement.collect(everything=True)
        return reply

    def serve(self) -> None:
        """Take leases, and take the partitions over."""
        self.holdings._tended_at = float("-inf")
        self._tend()

    def read(self, entries_max: int = 100) -> Batch:
        """Read a batch."""
        if not self.holdings.cursors:
            self.serve()
        batch = self._intake.read(list(self.holdings.cursors.values()), entries_max, 0)
        assert batch is not None
        return batch

    def commit(self, batch: Batch) -> None:
        """Commit a batch and note it, or raise what went wrong."""
        self._attempt(batch)
        self.holdings.note(batch)

    def attempt(self, batch: Batch) -> None:
        """Commit a batch without noting it."""
        self._attempt(batch)

    def settle(self) -> None:
        """Wait for what is being acknowledged."""
        self._settlement.collect(everything=True)

    def die(self) -> None:
        """Leave leases and pending entries as they are."""
        self._settlement.close()
        self._reading.shutdown()
        self._transaction.roll_back()
        self._links.close()
        self._engine.dispose()


@pytest.fixture
def app(redis_url: str, sqlite_url: str, namespace: str) -> Iterator[WriteBehind]:
    """An initialised engine of one partition."""
    with engine(redis_url, sqlite_url, namespace) as made:
        initialise(made, create_tables=True)
        yield made


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    """A plain client of the shared Redis."""
    with redis.Redis.from_url(redis_url) as plain:
        yield plain


@pytest.fixture
def flusher(app: WriteBehind) -> Iterator[Callable[..., Stepped]]:
    """Make flushers, which all die in the end."""
    made: list[Stepped] = []

    def make(dies_at: type[Effect] | None = None) -> Stepped:
        made.append(Stepped(app, dies_at))
        return made[-1]

    yield make
    for each in made:
        each.die()


def engine(redis_url: str, database: str, namespace: str, **settings: Any) -> WriteBehind:
    """Make an engine of one partition."""
    return WriteBehind(
        redis=redis_url,
        database=database,
        tables=[accounts, users],
        namespace=namespace,
        partitions=1,
        settings=EngineSettings(write_timeout_seconds=0.5, read_timeout_seconds=0.5, **settings),
    )


def expire(app: WriteBehind) -> None:
    """Let the leases of the dead run out."""
    with app.database.begin() as connection:
        connection.execute(sa.update(partitions).values(lease_until_ms=0))
        connection.execute(sa.update(flushers).values(seen_until_ms=0))


def finish(app: WriteBehind) -> None:
    """Drain after all leases have run out, and check that nothing is left, lost or halted."""
    expire(app)
    last = drain(app, DRAIN_SECONDS, QUICK)
    assert (last.backlog, last.lost_entries, last.halted) == (0, 0, [])


def balances(app: WriteBehind) -> dict[int, int]:
    """What SQL holds."""
    with app.database.connect() as connection:
        return {row.id: row.balance for row in connection.execute(sa.select(accounts))}


def increment(app: WriteBehind, times: int) -> None:
    """Write entries that show when one is applied twice or never."""
    for _ in range(times):
        app.increment(accounts, 1, {"balance": 1})


def pending(client: Any, app: WriteBehind) -> int:
    """How many entries the group waits for."""
    return int(client.xpending(app.keys.logs[0], GROUP)["pending"])


def watermark(client: Any, app: WriteBehind) -> Any:
    """The offset as published."""
    return client.hget(app.keys.metas[0], "watermark")


# The flush


@pytest.mark.parametrize("effect", [Begin, Fence, Write, Commit])
def test_nothing_shows_before_the_commit(
    app: WriteBehind, client: Any, flusher: Callable[..., Stepped], effect: type[Effect]
) -> None:
    """A flusher killed before its commit has acknowledged, published and stored nothing; the next one does it all."""
    increment(app, 3)
    victim = flusher(effect)
    with pytest.raises(Killed):
        victim.commit(victim.read())
    assert pending(client, app) == 3
    assert watermark(client, app) is None
    assert balances(app) == {}
    finish(app)
    assert balances(app) == {1: 3}


def test_a_batch_committed_before_is_not_applied_again(app: WriteBehind, flusher: Callable[..., Stepped]) -> None:
    """After a commit whose outcome was unknown the same batch is found in SQL."""
    increment(app, 3)
    only = flusher()
    batch = only.read()
    only.attempt(batch)
    only.attempt(batch)
    assert balances(app) == {1: 3}


def test_another_offset_is_no_earlier_commit(app: WriteBehind, client: Any, flusher: Callable[..., Stepped]) -> None:
    """Where SQL was rolled back, a batch is neither applied on top nor acknowledged."""
    increment(app, 3)
    only = flusher()
    only.commit(only.read())
    with app.database.begin() as connection:
        connection.execute(sa.update(partitions).values(epoch=0, sequence=-1))
        connection.execute(sa.delete(accounts))
    increment(app, 2)
    batch = only.read()
    with pytest.raises(LeaseLost):
        only.attempt(batch)
    assert pending(client, app) == 2
    assert balances(app) == {}


def test_the_watermark_never_leads(app: WriteBehind, client: Any, flusher: Callable[..., Stepped]) -> None:
    """What is published is what SQL has, batch after batch."""
    increment(app, 4)
    only = flusher()
    for _ in range(2):
        batch = only.read(2)
        only.commit(batch)
        assert watermark(client, app).decode() == str(batch.segments[0].end)
        assert status(app).partitions[0].offset == str(batch.segments[0].end)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_refused_row_costs_its_key_only(
    request: pytest.FixtureRequest, redis_url: str, namespace: str, database: str
) -> None:
    """What stands around a row that the database refuses lands; what comes after it for its key waits."""
    url = request.getfixturevalue(f"{database}_url")
    with engine(redis_url, url, namespace) as app:
        initialise(app, create_tables=True)
        increment(app, 3)
        app.put(accounts, {"id": 2, "balance": 666})
        app.put(accounts, {"id": 3, "balance": 1})
        finish(app)
        app.patch(accounts, 2, {"balance": 2})
        finish(app)
        assert balances(app) == {1: 3, 3: 1}
        with app.database.connect() as connection:
            found = connection.execute(sa.select(dead_letters).order_by(dead_letters.c.place)).all()
        assert [(row.record_key, row.failure) for row in found] == [("2", "poison"), ("2", "")]


def test_a_lock_that_is_not_granted_in_time_skips_nothing(redis_url: str, mariadb_url: str, namespace: str) -> None:
    """Where MariaDB gives up on one statement only (1205), the whole batch is tried again."""
    with engine(redis_url, mariadb_url, namespace) as app:
        initialise(app, create_tables=True)
        app.put(accounts, {"id": 1, "balance": 5})
        finish(app)
        increment(app, 3)
        blocker = app.database.connect()
        blocker.execute(sa.update(accounts).values(note="mine"))
        # Longer than the flusher's sessions wait for a lock: twice the time to live of a lease.
        timer = threading.Timer(1.5 * 2 * QUICK.lease_ttl_seconds, blocker.rollback)
        timer.start()
        try:
            finish(app)
        finally:
            timer.join()
            blocker.close()
        assert balances(app) == {1: 8}


def test_a_row_is_not_overwritten_by_another_keys(app: WriteBehind) -> None:
    """A record with the unique value of another one is refused by SQL, and the other one stays as it is."""
    app.put(users, {"id": 1, "name": "Ada"})
    app.put(users, {"id": 2, "name": "Ada"})
    finish(app)
    with app.database.connect() as connection:
        assert connection.execute(sa.select(users)).all() == [(1, "Ada")]


def test_a_change_after_the_batch_survives_its_settlement(
    app: WriteBehind, client: Any, flusher: Callable[..., Stepped]
) -> None:
    """What was patched since the batch was read is still read after its commit."""
    app.put(accounts, {"id": 1})
    finish(app)
    client.delete(app.keys.record(0, "accounts", "1"))
    app.patch(accounts, 1, {"balance": 5})
    only = flusher()
    batch = only.read()
    app.patch(accounts, 1, {"note": "new"})
    only.commit(batch)
    assert app.get(accounts, 1) == {"id": 1, "balance": 5, "note": "new"}


# Leases


def test_a_holder_that_was_succeeded_commits_nothing(app: WriteBehind, flusher: Callable[..., Stepped]) -> None:
    """A frozen flusher goes on after another one took over, and before that one has moved the offset."""
    increment(app, 3)
    zombie, successor = flusher(), flusher()
    batch = zombie.read()
    expire(app)
    successor.serve()
    with pytest.raises(LeaseLost):
        zombie.commit(batch)
    assert balances(app) == {}
    successor.commit(successor.read())
    assert balances(app) == {1: 3}


def test_a_lease_that_lives_is_left_alone(app: WriteBehind, flusher: Callable[..., Stepped]) -> None:
    """Another flusher takes nothing while the holder renews."""
    holder, other = flusher(), flusher()
    holder.serve()
    other.serve()
    assert list(holder.holdings.cursors) == [0]
    assert list(other.holdings.cursors) == []


def test_a_lease_of_another_is_not_released(app: WriteBehind, flusher: Callable[..., Stepped]) -> None:
    """A holder that was succeeded hands back nothing that is not its own any more."""
    old, new = flusher(), flusher()
    old.serve()
    expire(app)
    new.serve()
    leases = Leases(app.database, app.keys.namespace, old.holder, 2, Letters(app.keys.namespace, 0, {}))
    leases.release({0: old.holdings.cursors[0].token})
    leases.release({0: new.holdings.cursors[0].token})
    assert status(app).partitions[0].holder == new.holder


def test_tokens_grow_though_redis_forgets(app: WriteBehind, client: Any, flusher: Callable[..., Stepped]) -> None:
    """A Redis that lost everything hands out no token for the second time."""
    tokens = []
    for _ in range(3):
        each = flusher()
        each.serve()
        tokens.append(each.holdings.cursors[0].token)
        expire(app)
        client.delete(*client.keys(f"wb:{{{app.keys.namespace}*"))
    assert tokens == sorted(set(tokens))


# Takeover


def test_what_the_dead_had_read_is_replayed(app: WriteBehind, client: Any, flusher: Callable[..., Stepped]) -> None:
    """Entries delivered to a killed flusher stay pending until they are in SQL, and nothing has to follow them."""
    increment(app, 5)
    victim = flusher()
    victim.commit(victim.read(2))
    victim.read(2)
    victim.die()
    expire(app)
    successor = flusher()
    successor.serve()
    assert pending(client, app) == 2
    assert [consumer["name"] for consumer in client.xinfo_consumers(app.keys.logs[0], GROUP)] == [
        successor.holder.encode()
    ]
    successor.commit(successor.read())
    assert pending(client, app) == 0
    finish(app)
    assert balances(app) == {1: 5}


def test_what_was_committed_and_not_acknowledged_is_acknowledged(
    app: WriteBehind, client: Any, flusher: Callable[..., Stepped], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A takeover finds in SQL what the dead holder could not say any more, and says it."""
    increment(app, 3)
    victim = flusher()
    batch = victim.read()
    monkeypatch.setattr(victim._settlement, "submit", lambda *_: None)
    victim.commit(batch)
    assert (pending(client, app), watermark(client, app)) == (3, None)
    expire(app)
    flusher().serve()
    assert (pending(client, app), watermark(client, app).decode()) == (0, str(batch.segments[0].end))


def test_a_group_that_is_gone_is_rebuilt_where_sql_stands(
    app: WriteBehind, client: Any, flusher: Callable[..., Stepped]
) -> None:
    """Entries that came before the new group are delivered, those that SQL has are not applied again."""
    increment(app, 2)
    finish(app)
    increment(app, 3)
    client.xgroup_destroy(app.keys.logs[0], GROUP)
    only = flusher()
    only.serve()
    (group,) = client.xinfo_groups(app.keys.logs[0])
    assert group["last-delivered-id"].decode() == status(app).partitions[0].offset
    only.commit(only.read())
    assert balances(app) == {1: 5}
    assert pending(client, app) == 0
    finish(app)


# The log


def test_the_log_keeps_what_is_not_flushed(app: WriteBehind, client: Any) -> None:
    """However many entries wait, none gives way to a newer one."""
    with app.batch() as batch:
        for _ in range(300):
            batch.increment(accounts, 1, {"balance": 1})
    assert client.xlen(app.keys.logs[0]) == 300
    finish(app)
    assert balances(app) == {1: 300}


def test_only_what_sql_has_is_trimmed(app: WriteBehind, client: Any, flusher: Callable[..., Stepped]) -> None:
    """A flusher that reads ahead and dies leaves what it has not committed in the log."""
    increment(app, 6)
    victim = flusher()
    first, second = victim.read(2), victim.read(2)
    victim.commit(first)
    victim.read(2)
    victim.commit(second)
    victim.die()
    assert 2 <= client.xlen(app.keys.logs[0]) < 6
    finish(app)
    assert balances(app) == {1: 6}


def test_an_idle_log_is_trimmed(app: WriteBehind, client: Any, flusher: Callable[..., Stepped]) -> None:
    """What is flushed goes after the retention, also where nothing new is written."""
    increment(app, 3)
    idle = flusher()
    idle.commit(idle.read())
    assert client.xlen(app.keys.logs[0]) == 3
    idle.serve()
    idle.settle()
    assert client.xlen(app.keys.logs[0]) == 0


def test_a_late_settlement_leaves_another_history_alone(app: WriteBehind, client: Any) -> None:
    """A commit acknowledged after a failover neither trims nor moves the watermark of the new primary."""
    increment(app, 3)
    late = Acknowledgement(
        partition=0,
        ids=(),
        offset=EntryID(FAR_EPOCH, 5),
        whole=(),
        other=(),
        ttl_ms=0,
        trim_below=EntryID(FAR_EPOCH, 6),
        flushed_rows=1,
        letters=False,
    )
    Log(app.links, app.keys, "late").acknowledge([late])
    assert client.xlen(app.keys.logs[0]) == 3
    assert watermark(client, app) is None
    finish(app)
    assert balances(app) == {1: 3}


def test_a_removed_entry_is_counted(app: WriteBehind, client: Any) -> None:
    """What a stranger deletes from the log is reported as lost, exactly."""
    increment(app, 5)
    second, third = (entry for entry, _ in client.xrange(app.keys.logs[0])[1:3])
    client.xdel(app.keys.logs[0], second, third)
    assert drain(app, DRAIN_SECONDS, QUICK).lost_entries == 2
    assert balances(app) == {1: 3}


@pytest.mark.parametrize("delivered", [False, True])
def test_a_history_with_smaller_numbers_is_flushed(
    app: WriteBehind, client: Any, flusher: Callable[..., Stepped], *, delivered: bool
) -> None:
    """Entries whose IDs are below the offset in SQL, because they are of another history, all land."""
    increment(app, 1)
    client.hset(app.keys.metas[0], mapping={"epoch": FAR_EPOCH, "identity": "another primary"})
    increment(app, 9)
    finish(app)
    assert EntryID.parse(status(app).partitions[0].offset).epoch > FAR_EPOCH
    client.delete(*client.keys(f"wb:{{{app.keys.namespace}*"))
    increment(app, 4)
    if delivered:
        flusher().read()
    finish(app)
    assert balances(app) == {1: 14}


def test_a_lost_write_is_not_called_persisted(
    redis_url: str, app: WriteBehind, client: Any, sqlite_url: str, namespace: str
) -> None:
    """What another history has in SQL says nothing about a write that was lost with its own."""
    increment(app, 1)
    client.hset(app.keys.metas[0], mapping={"epoch": FAR_EPOCH, "identity": "another primary"})
    increment(app, 1)
    finish(app)
    with engine(redis_url, sqlite_url, namespace, retained_bytes_max=0) as other:
        lost = other.increment(accounts, 1, {"balance": 1})
    client.delete(*client.keys(f"wb:{{{app.keys.namespace}*"))
    increment(app, 5)
    finish(app)
    assert balances(app) == {1: 7}
    with pytest.raises(DataLossDetected):
        lost.wait(Durability.PERSISTED, 1)


def test_an_emptied_redis_opens_an_epoch_that_never_was(app: WriteBehind, client: Any) -> None:
    """What is written to a Redis that lost everything is not taken for what SQL has."""
    increment(app, 5)
    finish(app)
    for _ in range(2):
        client.delete(*client.keys(f"wb:{{{app.keys.namespace}*"))
        increment(app, 3)
        finish(app)
    assert balances(app) == {1: 11}


def test_another_primary_opens_an_epoch(app: WriteBehind, client: Any) -> None:
    """An entry is never appended under an epoch that began elsewhere."""
    before = app.increment(accounts, 1, {"balance": 1}).entry_id
    client.hset(app.keys.metas[0], "identity", "another primary")
    after = app.increment(accounts, 1, {"balance": 1}).entry_id
    assert after.epoch > before.epoch
    assert after.sequence == 0
    finish(app)
    assert balances(app) == {1: 2}


def test_histories_that_begin_at_once_are_no_twins(
    app: WriteBehind, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number that tells them apart is one of a million, and what the largest one begins is flushed, too."""
    drawn: list[int] = []

    def largest(count: int) -> int:
        drawn.append(count)
        return count - 1

    monkeypatch.setattr("secrets.randbelow", largest)
    epochs = []
    for _ in range(3):
        client.hset(app.keys.metas[0], "identity", "another primary")
        epochs.append(app.increment(accounts, 1, {"balance": 1}).entry_id.epoch)
    finish(app)
    assert min(drawn) >= 2**20
    assert epochs == sorted(set(epochs))
    assert epochs[-1] < 2**52
    assert balances(app) == {1: 3}


# Writing


def test_a_call_is_not_overtaken_by_the_next_one(redis_url: str, sqlite_url: str, namespace: str, client: Any) -> None:
    """Where the first script call of a batch is refused, the partition's later ones are not sent."""
    with engine(redis_url, sqlite_url, namespace, call_entries_max=2) as app:
        initialise(app, create_tables=True)
        app.put(accounts, {"id": 1, "balance": 2**63 - 1})
        batch = app.batch()
        batch.put(accounts, {"id": 2})
        batch.increment(accounts, 1, {"balance": 1})
        batch.put(accounts, {"id": 3})
        with pytest.raises(ValidationError, match="nothing was written"):
            batch.flush()
        assert client.xlen(app.keys.logs[0]) == 1
        assert app.get_many(accounts, [2, 3]) == {2: None, 3: None}


def test_receipts_of_a_batch_name_their_own_entries(app: WriteBehind, client: Any) -> None:
    """Each receipt has the ID and the mutation ID of its very entry."""
    with app.batch() as batch:
        receipts = [batch.put(accounts, {"id": number}) for number in range(5)]
    assert [(str(receipt.entry_id).encode(), receipt.mutation_id.encode()) for receipt in receipts] == [
        (entry, fields[b"m"]) for entry, fields in client.xrange(app.keys.logs[0])
    ]


def test_a_connection_is_tried_once() -> None:
    """Whether and when to try again is decided above the client, which would do so on its own."""
    tried = 0
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            nonlocal tried
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connection.close()
                tried += 1

        thread = threading.Thread(target=hang_up)
        thread.start()
        links = Links(f"redis://127.0.0.1:{server.getsockname()[1]}/0", 1.0)
        with pytest.raises(RedisUnavailable), links.link():
            pass
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert tried == 1


# Confirming


class Answers:
    """A connection to a server that gives these answers at once to WAITAOF and WAIT."""

    identity = b"primary"

    def __init__(self, waitaof: list[int], wait: int) -> None:
        self._answers = {"WAITAOF": waitaof, "WAIT": wait}

    def pipeline(self, commands: Sequence[Sequence[Any]], _: float | None = None) -> list[Any]:
        """Answer."""
        return [self._answers.get(command[0], b"OK") for command in commands]


@pytest.mark.parametrize(
    ("level", "waitaof", "wait", "confirmed"),
    [
        (Durability.FSYNCED, [1, 0], 0, True),
        (Durability.FSYNCED, [0, 0], 0, False),
        (Durability.REPLICATED, [1, 0], 2, True),
        (Durability.REPLICATED, [1, 0], 1, False),
        (Durability.REPLICATED, [0, 0], 2, False),
    ],
)
def test_a_confirmation_is_compared_with_what_was_asked(
    level: Durability,
    waitaof: list[int],
    wait: int,
    confirmed: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """WAIT and WAITAOF return normally when time runs out: only their numbers tell."""
    link: Any = Answers(waitaof, wait)
    done = confirm(link, "meta", b"primary", level, fsync=Fsync.WAITAOF, replicas=2, seconds=0.05)
    assert done is confirmed


def test_a_waitaof_that_answers_at_once_is_not_trusted() -> None:
    """A server that confirms before any fsync is found out."""
    link: Any = Answers([1, 0], 0)
    assert not waitaof_waits(link, "scratch")
