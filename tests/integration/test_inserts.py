"""A row inserted where Redis still has the record of before."""

import sqlalchemy as sa

from writebehind.engine import WriteBehind
from writebehind.flushers import FlusherSettings, drain, initialise

TABLE = sa.Table("things", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.Text))


def test_an_insert_over_a_tombstone_is_seen(redis_url: str, namespace: str, database_url: str) -> None:
    """A record deleted and inserted again is read from SQL, before and after its tombstone would have gone."""
    with WriteBehind(redis=redis_url, database=database_url, tables=[TABLE], namespace=namespace) as engine:
        initialise(engine, create_tables=True)
        engine.put(TABLE, {"id": 1, "name": "old"})
        engine.delete(TABLE, 1)
        assert engine.get(TABLE, 1) is None
        with engine.batch() as batch:
            batch.insert(TABLE, {"id": 1, "name": "new"})
            batch.delete(TABLE, 2)
            batch.insert(TABLE, {"id": 2, "name": "other"})
        assert drain(engine, 20, FlusherSettings(linger_seconds=0)).backlog == 0
        assert engine.get_many(TABLE, [1, 2]) == {1: {"id": 1, "name": "new"}, 2: {"id": 2, "name": "other"}}
        engine.patch(TABLE, 1, {"name": "patched"})
        assert engine.get(TABLE, 1) == {"id": 1, "name": "patched"}
