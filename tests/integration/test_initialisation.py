"""Making a namespace, also by several processes that start together."""

import threading

import sqlalchemy as sa

from writebehind.engine import WriteBehind
from writebehind.engine.adapters.control_tables import partitions
from writebehind.flushers import initialise

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
