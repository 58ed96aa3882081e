"""A write whose reply was lost in a failover, and is repeated while a flusher goes on with the old primary's entries.

Nobody can know whether the first attempt is among these: the repetition is passed over, never doubled, and told.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import redis
import sqlalchemy as sa

import servers
from writebehind.drills.proxy import Mishap, Proxy
from writebehind.engine import DataLoss, DataLossDetected, Durability, EngineSettings, WriteBehind
from writebehind.engine.adapters.scripts import APPEND
from writebehind.flushers import FlusherSettings, Status, drain, initialise, status

if TYPE_CHECKING:
    from conftest import OwnRedisFactory

DEADLINE_SECONDS = 15.0
SETTINGS = FlusherSettings(linger_seconds=0, lease_ttl_seconds=1)

metadata = sa.MetaData()
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("owner", sa.String(20)),
    sa.Column("balance", sa.Integer, nullable=False, default=0),
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String(20), nullable=False),
)


def _wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class World:
    """Two servers, of which the second is promoted while the first goes on for those who do not know yet.

    Attributes:
        old: an engine that stays with the first.
        new: one that is with the second.
        writer: one that is led from the first to the second.
        losses: what those that flush were told.
    """

    def __init__(self, urls: list[str], address: Proxy, database: str, namespace: str) -> None:
        self._urls, self._address = urls, address
        self._database, self._namespace = database, namespace
        self.losses: list[DataLoss] = []
        self.old, self.new = map(self.engine, urls)
        self.writer = self.engine(f"redis://127.0.0.1:{address.port}/0")
        initialise(self.old, create_tables=True)

    def engine(self, url: str) -> WriteBehind:
        """Make an engine."""
        return WriteBehind(
            redis=url,
            database=self._database,
            tables=[accounts, events],
            namespace=self._namespace,
            partitions=1,
            settings=EngineSettings(redis_timeout_seconds=2, write_timeout_seconds=10),
            on_data_loss=self.losses.append,
        )

    def follow(self) -> None:
        """Let the second server follow the first, which has another history from then on."""
        with redis.Redis.from_url(self._urls[1]) as second:
            plain: Any = second
            plain.replicaof("127.0.0.1", int(self._urls[0].rpartition(":")[2].partition("/")[0]))
            _wait(lambda: plain.info("replication")["master_link_status"] == "up")

    def promote(self) -> None:
        """Let the second server have what the first has so far, and go its own way from here."""
        log = self.old.keys.logs[0]
        with redis.Redis.from_url(self._urls[0]) as first, redis.Redis.from_url(self._urls[1]) as second:
            plain: Any = second
            _wait(lambda: plain.xlen(log) == first.xlen(log))
            plain.replicaof("NO", "ONE")

    def repeat(self, write: Callable[[], Any], mishap: Mishap) -> Any:
        """Do a write whose first attempt, at the first server, suffers a mishap; the second server accepts it."""
        done: list[Any] = []

        def run() -> None:
            try:
                done.append(write())
            except DataLossDetected as error:
                done.append(error)

        self._address.inject(mishap, APPEND.sha)
        thread = threading.Thread(target=run)
        thread.start()
        self._address.wait_for(mishap)
        self._address.retarget(int(self._urls[1].rpartition(":")[2].partition("/")[0]))
        log = self.new.keys.logs[0]
        with redis.Redis.from_url(self._urls[1]) as second:
            plain: Any = second
            _wait(lambda: any(b"o" in fields for _, fields in plain.xrange(log)))
        self.flush_old()
        self.flush()
        thread.join()
        return done[0]

    def flush_old(self) -> None:
        """Flush what the first server has, by a flusher that does not know of the second."""
        drain(self.old, DEADLINE_SECONDS, SETTINGS)

    def flush(self) -> Status:
        """Flush what the second server has."""
        return drain(self.new, DEADLINE_SECONDS, SETTINGS)

    def rows(self) -> dict[int, tuple[str | None, int]]:
        """What SQL has of the accounts."""
        with self.new.database.connect() as connection:
            return {row.id: (row.owner, row.balance) for row in connection.execute(sa.select(accounts))}

    def read(self) -> dict[int, tuple[str | None, int]]:
        """What a reader at the second server is told of them."""
        found = self.new.get_many(accounts, [1, 2])
        return {key: (row["owner"], row["balance"]) for key, row in found.items() if row is not None}


@pytest.fixture
def world(own_redis: "OwnRedisFactory", sqlite_url: str, namespace: str) -> Iterator[World]:
    """Two servers with the same record of one account, before anything goes wrong."""
    # Local ones: a container could not reach another's port on this machine.
    binary = servers.newest_redis_binary()
    urls = [own_redis({"repl-diskless-sync-delay": 0}, binary=binary).url for _ in range(2)]
    with Proxy(int(urls[0].rpartition(":")[2].partition("/")[0])) as address:
        made = World(urls, address, sqlite_url, namespace)
        with contextlib.closing(made.old), contextlib.closing(made.new), contextlib.closing(made.writer):
            made.follow()
            made.writer.put(accounts, {"id": 1, "owner": "Ada", "balance": 100})
            made.flush_old()
            made.promote()
            made.old.insert(events, {"kind": "lost"})
            yield made


def increment(writer: WriteBehind) -> Any:
    """Add to the account."""
    return writer.increment(accounts, 1, {"balance": 5})


def put(writer: WriteBehind) -> Any:
    """Write another record over the account."""
    return writer.put(accounts, {"id": 1, "owner": "Grace", "balance": 5})


@pytest.mark.parametrize("executed", [True, False], ids=["executed before", "not executed before"])
@pytest.mark.parametrize("write", [increment, put])
def test_what_nobody_can_know_is_told(
    world: World,
    write: Callable[[WriteBehind], Any],
    executed: bool,  # noqa: FBT001
) -> None:
    """The repetition is not applied, the loss is counted and named, the receipt says so, reads give what SQL has."""
    receipt = world.repeat(lambda: write(world.writer), Mishap.CUT_AFTER if executed else Mishap.CUT_BEFORE)
    after = ("Ada", 105) if write is increment else ("Grace", 5)
    assert world.rows() == {1: after if executed else ("Ada", 100)}
    assert world.read() == world.rows()
    (loss,) = world.losses
    place = str(receipt.entry_id)
    assert (loss.in_doubt, loss.lost, loss.first_id, loss.last_id, loss.keys) == (
        1,
        1,
        place,
        place,
        [("accounts", "1")],
    )
    with pytest.raises(DataLossDetected, match=r"passed over.*"):
        receipt.wait(Durability.PERSISTED, DEADLINE_SECONDS)
    receipt.wait(Durability.ACCEPTED)
    found = status(world.new)
    assert [(row.entries, row.in_doubt, row.first_id, row.records) for row in found.losses] == [
        (1, 1, place, "accounts 1")
    ]
    assert [row.lost_entries for row in found.partitions] == [1]
    world.new.increment(accounts, 1, {"balance": 1})
    world.flush()
    assert len(world.losses) == 1
    assert status(world.new).lost_entries == 1
    assert world.read() == world.rows() == {1: (world.rows()[1][0], (after[1] if executed else 100) + 1)}


def test_what_is_written_upon_a_doubt_is_not_shown(world: World) -> None:
    """A later write of the record takes effect by itself; nothing of the doubtful one is seen through it."""
    world.writer.start()

    def write() -> Any:
        receipt = put(world.writer)
        world.new.patch(accounts, 1, {"owner": "Eve"})
        return receipt

    assert world.repeat(write, Mishap.CUT_BEFORE).in_doubt
    world.flush()
    assert world.read() == world.rows() == {1: ("Eve", 100)}


def test_a_batch_in_doubt(world: World) -> None:
    """Each of its writes is told; who waits for SQL hears it where he waits."""

    def write() -> None:
        with world.writer.batch(durability=Durability.PERSISTED) as batch:
            batch.increment(accounts, 1, {"balance": 5})
            batch.put(accounts, {"id": 2, "owner": "Bob", "balance": 7})
            batch.insert(events, {"kind": "in doubt"})

    error = world.repeat(write, Mishap.CUT_BEFORE)
    assert isinstance(error, DataLossDetected)
    assert world.read() == world.rows() == {1: ("Ada", 100)}
    (loss,) = world.losses
    assert (loss.in_doubt, loss.keys) == (3, [("accounts", "1"), ("accounts", "2"), ("events", "")])
    (row,) = status(world.new).losses
    assert (row.entries, row.records) == (3, "accounts 1, accounts 2, events")


def test_a_doubt_without_ground(world: World) -> None:
    """Where no flusher goes on with the old primary the repetition is applied, and its receipt says so."""
    world.flush_old = lambda: None  # type: ignore[method-assign]
    receipt = world.repeat(lambda: increment(world.writer), Mishap.CUT_AFTER)
    assert receipt.in_doubt
    receipt.wait(Durability.PERSISTED, DEADLINE_SECONDS)
    assert world.read() == world.rows() == {1: ("Ada", 105)}
    assert world.losses == []
    assert status(world.new).lost_entries == 0
