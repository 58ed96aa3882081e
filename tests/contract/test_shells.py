"""One suite for both shells: what a service in threads is promised, one in an event loop is promised, too."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from running import flushing
from shells import Awaited, Blocking, Shell
from writebehind.engine import (
    BacklogFull,
    Backpressure,
    ConfigurationError,
    Durability,
    DurabilityTimeout,
    EngineSettings,
    PoisonEntryError,
    RedisUnavailable,
    ValidationError,
    WriteBehindError,
    WritePolicy,
    WriteThroughTimeout,
)
from writebehind.engine.adapters.control_tables import partitions
from writebehind.engine.core.partitioning import partition_of
from writebehind.flushers import FlusherSettings, drain, initialise

metadata = sa.MetaData()
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("owner", sa.String(100), nullable=False, default=""),
    sa.Column("balance", sa.BigInteger, nullable=False, default=0),
)
events = sa.Table(
    "events", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("kind", sa.String(20), nullable=False)
)
urgent = sa.Table(
    "urgent",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    info={"writebehind": {"backpressure": "reject"}},
)

payments = sa.Table(
    "payments",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("amount", sa.BigInteger, sa.CheckConstraint("amount >= 0", name="positive"), default=0),
    info={"writebehind": {"policy": "write_through"}},
)

Make = Callable[..., Shell]

BIGGEST = 2**63 - 1


@pytest.fixture(params=[Blocking, Awaited])
def make(request: pytest.FixtureRequest, redis_url: str, namespace: str, sqlite_url: str) -> Iterator[Make]:
    """A factory of engines of both kinds in turn, on an initialised database."""
    made: list[Shell] = []

    def start(**settings: Any) -> Shell:
        given: dict[str, Any] = {"redis": redis_url, "database": sqlite_url, "namespace": namespace, "partitions": 3}
        shell: Shell = request.param(tables=[accounts, events, urgent, payments], **(given | settings))
        made.append(shell)
        if "redis" not in settings:
            initialise(shell.core, create_tables=True)
        return shell

    yield start
    for shell in made:
        shell.close()


def rows(shell: Shell, table: sa.Table) -> list[Any]:
    """Return what SQL has, after all is flushed."""
    drain(shell.core, 30)
    with shell.core.database.connect() as connection:
        return [tuple(row) for row in connection.execute(sa.select(table).order_by(sa.text("1")))]


def test_each_kind_of_write(make: Make) -> None:
    """Put, patch, increment, delete and insert are read at once and land in SQL."""
    shell = make()
    receipt = shell("put", accounts, {"id": 1, "owner": "Ada", "balance": 10})
    assert receipt.durability is Durability.ACCEPTED
    assert shell("patch", accounts, 1, {"owner": "Grace"}).entry_id > receipt.entry_id
    shell("increment", accounts, 1, {"balance": 5})
    shell("put", accounts, {"id": 2, "owner": "Alan"})
    shell("delete", accounts, 2)
    shell("insert", events, {"kind": "login"})
    assert shell("get", accounts, 1) == {"id": 1, "owner": "Grace", "balance": 15}
    assert shell("get_many", accounts, [1, 2]) == {1: {"id": 1, "owner": "Grace", "balance": 15}, 2: None}
    assert rows(shell, accounts) == [(1, "Grace", 15)]
    assert rows(shell, events) == [(1, "login")]


def test_a_batch(make: Make) -> None:
    """All is accepted when the block ends, in the order of each key, and its receipts say where it stands."""
    shell = make(settings=EngineSettings(call_entries_max=4))
    receipts: list[Any] = []

    def many(batch: Any) -> None:
        receipts.extend(batch.put(accounts, {"id": number % 10, "balance": number}) for number in range(30))
        assert all(receipt.durability is None for receipt in receipts)

    shell.batch(many)
    assert len({(receipt.partition, receipt.entry_id) for receipt in receipts}) == 30
    assert len({receipt.mutation_id for receipt in receipts}) == 30
    assert [row[2] for row in rows(shell, accounts)] == list(range(20, 30))


def test_a_batch_that_fails_in_part(make: Make) -> None:
    """What was accepted has a receipt, the rest has none, and the error counts both."""
    shell = make(settings=EngineSettings(call_entries_max=2))
    receipts: list[Any] = []

    def many(batch: Any) -> None:
        receipts.extend(batch.put(accounts, {"id": number, "balance": 0}) for number in range(12))
        receipts.append(batch.increment(accounts, 3, {"balance": BIGGEST}))
        receipts.append(batch.increment(accounts, 3, {"balance": BIGGEST}))

    with pytest.raises(ValidationError, match=r"of 14 writes of a batch are accepted: .*balance"):
        shell.batch(many)
    accepted = [receipt for receipt in receipts if receipt.durability is not None]
    assert 0 < len(accepted) < 14
    assert len({(receipt.partition, receipt.entry_id) for receipt in accepted}) == len(accepted)
    assert receipts[-1].durability is None
    with pytest.raises(WriteBehindError, match="not known to be accepted"):
        shell.wait(receipts[-1], Durability.PERSISTED)


def test_what_raises_in_a_batch_discards_it(make: Make) -> None:
    """Nothing of it is sent."""
    shell = make()

    def half(batch: Any) -> None:
        batch.put(accounts, {"id": 1})
        raise KeyError("the application's own")

    with pytest.raises(KeyError):
        shell.batch(half)
    with pytest.raises(KeyError):
        shell.atomic(accounts, 1, half)
    assert shell("get", accounts, 1) is None


def test_an_atomic_group(make: Make) -> None:
    """It is one entry, with one receipt; a member that is refused is refused before anything is sent."""
    shell = make(partitions=1)

    def transfer(group: Any) -> None:
        group.put(accounts, {"id": 1, "balance": 1})
        group.put(accounts, {"id": 2, "balance": 2})

    receipt = shell.atomic(accounts, 1, transfer)
    assert receipt.entry_id.sequence == 0
    with pytest.raises(ValidationError):
        shell.atomic(accounts, 1, lambda group: [group.put(accounts, {"id": 3, "balance": each}) for each in (3, "x")])
    with pytest.raises(ValidationError, match="range"):
        shell.atomic(
            accounts, 1, lambda group: [group.increment(accounts, each, {"balance": BIGGEST}) for each in (1, 2)]
        )
    assert rows(shell, accounts) == [(1, "", 1), (2, "", 2)]


def test_receipts_wait_for_sql(make: Make) -> None:
    """They say so when SQL has the write, and that it is accepted where that takes too long."""
    shell = make(settings=EngineSettings(write_timeout_seconds=0.2))
    receipt = shell("put", accounts, {"id": 1})
    with pytest.raises(DurabilityTimeout, match="accepted, but not PERSISTED"):
        shell.wait(receipt, Durability.PERSISTED, 0.05)
    with pytest.raises(DurabilityTimeout, match="accepted"):
        shell("put", accounts, {"id": 2}, durability=Durability.PERSISTED)
    drain(shell.core, 30)
    assert shell.wait(receipt, Durability.PERSISTED) is receipt
    assert receipt.durability is Durability.PERSISTED
    assert len(rows(shell, accounts)) == 2


def test_a_level_that_the_server_cannot_give(make: Make, redis_url: str) -> None:
    """It is refused, not weakened, and nothing is written."""
    shell = make()
    with pytest.raises(ConfigurationError):
        shell("put", accounts, {"id": 1}, durability=Durability.REPLICATED)
    assert shell("get", accounts, 1) is None


def test_what_does_not_fit_its_table(make: Make) -> None:
    """A wrong value, an unknown column and a table that was not declared are refused; nothing is written."""
    shell = make()
    with pytest.raises(ValidationError):
        shell("put", accounts, {"id": 1, "balance": "many"})
    with pytest.raises(ValidationError):
        shell("patch", accounts, 1, {"colour": "red"})
    with pytest.raises(ConfigurationError, match="not declared"):
        shell("put", sa.Table("other", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True)), {"id": 1})
    shell("put", accounts, {"id": 1, "balance": BIGGEST})
    with pytest.raises(ValidationError, match="range"):
        shell("increment", accounts, 1, {"balance": 1})
    assert shell("get", accounts, 1)["balance"] == BIGGEST


def test_backpressure(make: Make) -> None:
    """Where there is no room a write waits, or is refused, as its table says; flushing makes room."""
    shell = make(partitions=1, settings=EngineSettings(backlog_entries_max=3, write_timeout_seconds=0.2))
    for number in range(3):
        shell("put", accounts, {"id": number})
    with pytest.raises(BacklogFull) as refused:
        shell("put", accounts, {"id": 3})
    assert refused.value.retry_after_seconds > 0
    with pytest.raises(BacklogFull):
        shell("put", urgent, {"id": 3})
    with pytest.raises(BacklogFull):
        shell.batch(lambda batch: batch.put(accounts, {"id": 3}))
    drain(shell.core, 30)
    shell("put", accounts, {"id": 4})
    assert [row[0] for row in rows(shell, accounts)] == [0, 1, 2, 4]


def test_writing_through(make: Make) -> None:
    """What is accepted beyond the limit returns when SQL has it, and says so where that takes too long."""
    settings = EngineSettings(backlog_entries_max=1, write_timeout_seconds=0.2, backpressure=Backpressure.WRITE_THROUGH)
    shell = make(partitions=1, settings=settings)
    shell("put", accounts, {"id": 1})
    with pytest.raises(DurabilityTimeout):
        shell("put", accounts, {"id": 2})
    with pytest.raises(DurabilityTimeout):
        shell.batch(lambda batch: batch.put(accounts, {"id": 3}))
    assert [row[0] for row in rows(shell, accounts)] == [1, 2, 3]


@pytest.fixture(params=[True, False], ids=["a flusher", "no flusher"])
def flushed(request: pytest.FixtureRequest) -> Callable[[Shell], contextlib.AbstractContextManager[object]]:
    """What runs a flusher beside a block, or none: then the service's own one does the work."""

    def beside(shell: Shell) -> contextlib.AbstractContextManager[object]:
        return flushing(shell.core, FlusherSettings(linger_seconds=0)) if request.param else contextlib.nullcontext()

    return beside


def test_write_through_by_policy(
    make: Make, flushed: Callable[[Shell], contextlib.AbstractContextManager[object]]
) -> None:
    """SQL has a write, and what stood before it, when the call, the batch or the group returns."""
    shell, other = make(), make()

    def in_sql(table: sa.Table) -> list[tuple[Any, ...]]:
        with shell.core.database.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.select(table).order_by(table.c.id))]

    with flushed(shell):
        other("increment", accounts, 1, {"balance": 10})
        receipt = shell("increment", accounts, 1, {"balance": 1}, policy=WritePolicy.WRITE_THROUGH)
        assert receipt.durability is Durability.PERSISTED
        assert in_sql(accounts) == [(1, "", 11)]
        other("put", payments, {"id": 1, "amount": 1}, policy=WritePolicy.WRITE_BEHIND)
        shell("patch", payments, 1, {"amount": 2})
        assert in_sql(payments) == [(1, 2)]
        shell("delete", payments, 1)
        assert in_sql(payments) == []
        shell("insert", events, {"kind": "login"}, policy=WritePolicy.WRITE_THROUGH)
        assert in_sql(events) == [(1, "login")]
        receipts: list[Any] = []

        def many(batch: Any) -> None:
            receipts.extend(batch.put(payments, {"id": number, "amount": number}) for number in range(9))
            receipts.append(batch.put(accounts, {"id": 99}))

        shell.batch(many)
        assert {each.durability for each in receipts[:9]} == {Durability.PERSISTED}
        assert receipts[9].durability is Durability.ACCEPTED
        assert in_sql(payments) == [(number, number) for number in range(9)]
        shell.batch(lambda batch: batch.put(accounts, {"id": 2}), policy=WritePolicy.WRITE_THROUGH)
        assert (2, "", 0) in in_sql(accounts)
        group = shell.atomic(payments, 1, lambda group: group.patch(payments, 1, {"amount": 50}))
        assert group.durability is Durability.PERSISTED
        assert (1, 50) in in_sql(payments)
        with pytest.raises(PoisonEntryError, match="positive"):
            shell("put", payments, {"id": 1, "amount": -1})
        with pytest.raises(ConfigurationError, match="policy"):
            shell("put", payments, {"id": 1}, policy="around")


@pytest.mark.parametrize("stuck_first", [True, False])
def test_failures_of_several_partitions(make: Make, *, stuck_first: bool) -> None:
    """Who is late is named and nobody else, in whatever order; what SQL refuses goes before what is late."""
    shell = make(partitions=2, settings=EngineSettings(write_timeout_seconds=2.5))
    stuck, free = ([key for key in range(40) if partition_of(str(key), 2) == number][:4] for number in (0, 1))
    keys = stuck + free if stuck_first else free + stuck
    with shell.core.database.begin() as connection:
        # A flusher that does nothing has the one.
        connection.execute(
            sa.update(partitions)
            .where(partitions.c.namespace == shell.core.keys.namespace, partitions.c.partition == 0)
            .values(holder="another", lease_until_ms=2**50)
        )
    receipts: dict[int, Any] = {}

    def through(batch: Any, **refused: int) -> None:
        receipts.update({key: batch.put(payments, {"id": key, "amount": refused.get(f"key_{key}", 1)}) for key in keys})

    with pytest.raises(WriteThroughTimeout) as late:
        shell.batch(through)
    assert {each.mutation_id for each in late.value.receipts} == {receipts[key].mutation_id for key in stuck}
    for key in keys:
        assert receipts[key].durability is (Durability.ACCEPTED if key in stuck else Durability.PERSISTED)

    with pytest.raises(PoisonEntryError, match="positive") as refused:
        shell.batch(lambda batch: through(batch, **{f"key_{free[1]}": -1}))
    assert "not PERSISTED in time" in "".join(refused.value.__notes__)
    for key in keys:
        settled = key in free and key != free[1]
        assert receipts[key].durability is (Durability.PERSISTED if settled else Durability.ACCEPTED)
    with pytest.raises(DurabilityTimeout):
        shell.wait(receipts[stuck[0]], Durability.PERSISTED, 0)


def test_write_through_that_takes_too_long(make: Make) -> None:
    """The error has the receipts of what is accepted and SQL gets later, once; nobody else is named."""
    shell = make(partitions=1, settings=EngineSettings(write_timeout_seconds=0.5))
    with shell.core.database.begin() as connection:
        connection.execute(sa.text("ALTER TABLE payments RENAME TO away"))
    with pytest.raises(WriteThroughTimeout, match="accepted") as late:
        shell("put", payments, {"id": 1, "amount": 3})
    (receipt,) = late.value.receipts
    assert receipt.durability is Durability.ACCEPTED
    with pytest.raises(WriteThroughTimeout) as late:
        shell.batch(lambda batch: [batch.put(payments, {"id": 2, "amount": 4}), batch.put(payments, {"id": 3})])
    assert len(late.value.receipts) == 2
    with shell.core.database.begin() as connection:
        connection.execute(sa.text("ALTER TABLE away RENAME TO payments"))
    assert rows(shell, payments) == [(1, 3), (2, 4), (3, 0)]
    assert shell.wait(receipt, Durability.PERSISTED).durability is Durability.PERSISTED


def test_a_redis_that_is_away(make: Make) -> None:
    """The error says that nothing was written."""
    shell = make(
        redis="redis://127.0.0.1:1/0", settings=EngineSettings(write_timeout_seconds=0.1, redis_timeout_seconds=0.1)
    )
    with pytest.raises(RedisUnavailable):
        shell("put", accounts, {"id": 1})


def test_a_closed_engine(make: Make) -> None:
    """It takes nothing more; closing it again is harmless."""
    shell = make()
    shell("put", accounts, {"id": 1})
    if isinstance(shell, Awaited):
        shell.do(shell.engine.close())
        shell.do(shell.engine.close())
    else:
        shell.close()
        shell.close()
    with pytest.raises(WriteBehindError, match="closed"):
        shell("put", accounts, {"id": 2})
    with pytest.raises(WriteBehindError, match="closed"):
        shell("get", accounts, 1)


def test_caches_and_limiters(make: Make) -> None:
    """They are the same, too: a value is loaded once until it is invalidated, a subject has its limit."""
    shell = make()
    cache, limiter = _parts(shell)
    assert [cache("get_or_load", 1, lambda key: [key]) for _ in range(3)] == [[1], [1], [1]]
    cache("invalidate", 1)
    assert cache("get_or_load", 1, lambda: None) is None
    assert [limiter("hit", "me").allowed for _ in range(3)] == [True, True, False]
    assert not limiter("peek", "me").allowed
    limiter("reset", "me")
    assert limiter("hit", "me").allowed


def _parts(shell: Shell) -> tuple[Callable[..., Any], Callable[..., Any]]:
    engine: Any = shell.engine if isinstance(shell, Awaited) else shell.core
    parts = engine.cache("profile", ttl_seconds=60), engine.rate_limiter("api", limit=2, window_seconds=60)

    def calling(part: Any) -> Callable[..., Any]:
        def call(name: str, *arguments: Any) -> Any:
            called = getattr(part, name)(*arguments)
            return shell.do(called) if isinstance(shell, Awaited) else called

        return call

    return calling(parts[0]), calling(parts[1])


def test_a_log_has_each_write_once(make: Make, redis_url: str, namespace: str) -> None:
    """What both wrote is what is in the logs."""
    shell = make()
    ids = {shell("put", accounts, {"id": number}).mutation_id for number in range(20)}
    with redis.Redis.from_url(redis_url) as client:
        entries = [fields for log in shell.core.keys.logs for _, fields in client.xrange(log)]
    assert sorted(fields[b"m"].decode() for fields in entries) == sorted(ids)
