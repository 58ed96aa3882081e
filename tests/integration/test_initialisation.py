"""Making a namespace, also by several processes that start together."""

import threading

import pytest
import sqlalchemy as sa

from writebehind.engine import WriteBehind
from writebehind.engine.adapters.control_tables import namespaces, partitions
from writebehind.engine.adapters.namespace_facts import ask_sql
from writebehind.engine.errors import ConfigurationError
from writebehind.flushers import drain, initialise

STARTERS = 4
PARTITIONS = 8


def test_several_may_start_together(redis_url: str, database_url: str, namespace: str) -> None:
    """Whoever comes second finds what is there, and all end with the namespace made once."""
    begin = threading.Barrier(STARTERS)
    failed: list[BaseException] = []

    def start() -> None:
        items = sa.Table("items", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))
        app = WriteBehind(
            redis=redis_url, database=database_url, tables=[items], namespace=namespace, partitions=PARTITIONS
        )
        begin.wait()
        try:
            initialise(app, create_tables=True)
        except BaseException as error:  # noqa: BLE001 - shown below
            failed.append(error)
        app.close()

    threads = [threading.Thread(target=start) for _ in range(STARTERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    engine = sa.create_engine(database_url)
    with engine.connect() as connection:
        found = connection.execute(sa.select(partitions.c.partition).where(partitions.c.namespace == namespace)).all()
    engine.dispose()
    assert len(found) == PARTITIONS


def test_control_tables_of_another_release(redis_url: str, database_url: str, namespace: str) -> None:
    """What is missing is named by whoever would need it, also for a new namespace, and nothing begins."""
    things = sa.Table("things", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))
    with WriteBehind(redis=redis_url, database=database_url, tables=[things], namespace=namespace, partitions=1) as app:
        initialise(app, create_tables=True)
        with app.database.begin() as connection:
            connection.execute(sa.text("ALTER TABLE writebehind_losses DROP COLUMN in_doubt"))
        assert "writebehind_losses.in_doubt" in str(ask_sql(app.database, app.keys).facts.missing_control_tables)
        with pytest.raises(ConfigurationError, match=r"another release: writebehind_losses\.in_doubt is missing"):
            initialise(app)
        with app.database.begin() as connection:
            connection.execute(sa.text("ALTER TABLE writebehind_losses ADD COLUMN in_doubt BIGINT NOT NULL DEFAULT 0"))
            connection.execute(sa.update(namespaces).values(control_version=2))
        with pytest.raises(ConfigurationError, match=r"another release: version 2"):
            initialise(app)
        app.put(things, {"id": 1})
        with pytest.raises(ConfigurationError, match=r"another release: version 2"):
            drain(app, 5)
