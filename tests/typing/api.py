"""What type checkers see of the public names; checked by mypy, never run."""

from typing import Any, assert_type

import redis
import redis.asyncio
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from writebehind.engine import (
    AsyncAtomicGroup,
    AsyncBatch,
    AsyncCache,
    AsyncRateLimiter,
    AsyncReceipt,
    AsyncWriteBehind,
    AtomicGroup,
    Batch,
    Cache,
    Durability,
    EngineSettings,
    Hit,
    RateLimiter,
    Receipt,
    WriteBehind,
    WritePolicy,
)
from writebehind.flushers import FlusherSettings, Status, drain, metadata, status


class Base(DeclarativeBase):
    """Declared classes."""


class Thing(Base):
    """A thing."""

    __tablename__ = "others"
    id: Mapped[int] = mapped_column(primary_key=True)


table = sa.Table("things", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
engine = WriteBehind(
    redis=redis.Redis(),
    database=sa.create_engine("sqlite://"),
    tables=[table],
    namespace="shop",
    partitions=16,
    durability=Durability.FSYNCED,
    settings=EngineSettings(replicas=2, record_ttl_seconds=None),
)
receipt = engine.put(table, {"id": 1}, durability=Durability.PERSISTED)
assert_type(receipt, Receipt)
assert_type(engine.insert(table, {"id": 2}, policy=WritePolicy.WRITE_THROUGH), Receipt)
assert_type(engine.batch(policy=WritePolicy.WRITE_THROUGH), Batch)
assert_type(receipt.wait(Durability.REPLICATED, timeout=5), Receipt)
assert_type(receipt.durability, Durability | None)
assert_type(engine.get(table, 1) is None, bool)
assert_type(engine.get(table, 1), dict[str, Any] | None)
assert_type(engine.get(Thing, 1, as_model=True), Thing | None)
assert_type(engine.get_many(Thing, [1], as_model=True), dict[Any, Thing | None])
assert_type(engine.read_counts()["things"].hit_rate, float | None)
assert_type(engine.batch(), Batch)
limiter = engine.rate_limiter("api", limit=100, window_seconds=60)
assert_type(limiter, RateLimiter)
assert_type(limiter.hit("user:1", cost=2), Hit)
assert_type(limiter.hit("user:1").retry_after_seconds, float)
assert_type(engine.rate_limiter("api", limits=[(10, 1.0), (100, 60)]), RateLimiter)
assert_type(engine.atomic(table, (1, "a")), AtomicGroup)
cache = engine.cache("profile", ttl_seconds=60, local_entries_max=10, serializer="json", type=list[int])
assert_type(cache, Cache)
assert_type(cache.counts.load_seconds, float)


@cache.cached(key=lambda user: user)
def profile(user: int) -> str:
    """Return something."""
    return str(user)


@cache.cached()
async def awaited(user: int) -> str:
    """Return something."""
    return str(user)


async def use() -> None:
    """Use it."""
    assert_type(await awaited(1), str)


async def use_awaited() -> None:
    """Use the engine for event loops."""
    client: redis.asyncio.Redis = redis.asyncio.Redis.from_url("redis://")
    database = create_async_engine("sqlite+aiosqlite://")
    AsyncWriteBehind(redis="", database="", tables=[table], namespace="shop", blocking_database="sqlite://")
    async with AsyncWriteBehind(redis=client, database=database, tables=[table], namespace="shop") as loop_engine:
        receipt = await loop_engine.put(table, {"id": 1}, durability=Durability.PERSISTED)
        assert_type(await loop_engine.delete(table, 1, policy=WritePolicy.WRITE_THROUGH), AsyncReceipt)
        assert_type(receipt, AsyncReceipt)
        assert_type(await receipt.wait(Durability.REPLICATED, timeout=5), AsyncReceipt)
        assert_type(await loop_engine.get(table, 1), dict[str, Any] | None)
        assert_type(await loop_engine.get(Thing, 1, as_model=True), Thing | None)
        assert_type(await loop_engine.get_many(Thing, [1], as_model=True), dict[Any, Thing | None])
        assert_type(loop_engine.read_counts()["things"].hit_rate, float | None)
        async with loop_engine.batch() as batch:
            assert_type(batch, AsyncBatch)
            assert_type(batch.put(table, {"id": 1}), AsyncReceipt)
        async with loop_engine.atomic(table, 1) as group:
            assert_type(group, AsyncAtomicGroup)
        assert_type(group.receipt, AsyncReceipt)
        limiter = loop_engine.rate_limiter("api", limit=100, window_seconds=60)
        assert_type(limiter, AsyncRateLimiter)
        assert_type(await limiter.hit("user:1", cost=2), Hit)
        cache = loop_engine.cache("profile", ttl_seconds=60)
        assert_type(cache, AsyncCache)

        @cache.cached(key=lambda user: user)
        async def profile(user: int) -> str:
            return str(user)

        assert_type(await profile(1), str)
        assert_type(loop_engine.blocking, WriteBehind)
        await loop_engine.put(table, [1])  # type: ignore[arg-type]


assert_type(profile(1), str)
assert_type(drain(engine, 5, FlusherSettings(linger_seconds=0)), Status)
assert_type(status(engine).backlog, int)
assert_type(metadata, sa.MetaData)

limiter.hit(1)  # type: ignore[arg-type]
profile("1")  # type: ignore[arg-type]
engine.cache("profile", ttl_seconds=60, ttl=1)  # type: ignore[call-arg]
engine.put(table, [1])  # type: ignore[arg-type]
engine.put(table, {"id": 1}, durability="fsynced")  # type: ignore[arg-type]
WriteBehind("redis://", "sqlite://", [table], "shop")  # type: ignore[call-arg]
