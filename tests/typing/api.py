"""What type checkers see of the public names; checked by mypy, never run."""

from typing import assert_type

import redis
import sqlalchemy as sa

from writebehind.engine import AtomicGroup, Batch, Durability, EngineSettings, Receipt, WriteBehind
from writebehind.flushers import FlusherSettings, Status, drain, metadata, status

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
assert_type(receipt.wait(Durability.REPLICATED, timeout=5), Receipt)
assert_type(receipt.durability, Durability | None)
assert_type(engine.get(table, 1) is None, bool)
assert_type(engine.batch(), Batch)
assert_type(engine.atomic(table, (1, "a")), AtomicGroup)
assert_type(drain(engine, 5, FlusherSettings(linger_seconds=0)), Status)
assert_type(status(engine).backlog, int)
assert_type(metadata, sa.MetaData)

engine.put(table, [1])  # type: ignore[arg-type]
engine.put(table, {"id": 1}, durability="fsynced")  # type: ignore[arg-type]
WriteBehind("redis://", "sqlite://", [table], "shop")  # type: ignore[call-arg]
