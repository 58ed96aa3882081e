"""Making a namespace: the engine's own tables and rows in SQL, and its settings in Redis."""

import sqlalchemy as sa

from writebehind.engine import WriteBehind
from writebehind.engine.adapters.control_tables import (
    CONTROL_VERSION,
    control,
    missing_in,
    namespaces,
    other_release,
    partitions,
    require_version,
)
from writebehind.engine.adapters.shared import agree
from writebehind.engine.adapters.sql_reasons import sql_reason
from writebehind.engine.config import WIRE_VERSION
from writebehind.engine.errors import DatabaseUnavailable

__all__ = ["initialise"]

COLLISIONS_MAX = 10
"""More than there are tables to make."""


def initialise(app: WriteBehind, *, create_tables: bool = False) -> list[str]:
    """Create what is missing; return what was done.

    Args:
        app: the engine whose namespace to make.
        create_tables: whether to create the user's own tables too.

    Durability: committed on return. Repeat: does nothing more. Crash: a repetition completes it.

    Raises:
        ConfigurationError: the namespace exists with other settings.
        DatabaseUnavailable, RedisUnavailable: a server cannot be reached.
    """
    agree(app.links, app.keys, app.namespace_settings)
    collisions = 0
    while True:
        try:
            return _create(app, create_tables=create_tables)
        except (sa.exc.IntegrityError, sa.exc.ProgrammingError, sa.exc.OperationalError) as error:
            # Others may make the same at the same moment: what is there by then is left as it is.
            collisions += 1
            if collisions < COLLISIONS_MAX:
                continue
            if isinstance(error, sa.exc.OperationalError):
                raise DatabaseUnavailable(
                    f"the database cannot be reached: {sql_reason(error)}", "check the URL and the server"
                ) from error
            raise


def _create(app: WriteBehind, *, create_tables: bool) -> list[str]:
    done: list[str] = []
    settings = app.namespace_settings
    app.rows.check(settings)
    present = set(sa.inspect(app.database).get_table_names())
    control.create_all(app.database)
    done += [f"created table {table.name}" for table in control.sorted_tables if table.name not in present]
    if create_tables:
        for declared in app.tables.values():
            exists = sa.inspect(app.database).has_table(declared.table.name, schema=declared.table.schema)
            done += [] if exists else [f"created table {declared.entity.name}"]
        metadatas = {declared.table.metadata for declared in app.tables.values()}
        for metadata in metadatas:
            metadata.create_all(
                app.database,
                tables=[each.table for each in app.tables.values() if each.table.metadata is metadata],
            )
    done += _rows(app)
    return done


def _rows(app: WriteBehind) -> list[str]:
    settings = app.namespace_settings
    done = []
    with app.database.begin() as connection:
        missing_parts = missing_in(connection)
        if missing_parts:
            raise other_release(f"{', '.join(missing_parts)} is missing")
        known = connection.execute(
            sa.select(namespaces.c.control_version).where(namespaces.c.namespace == settings.namespace)
        ).scalar_one_or_none()
        if known is None:
            connection.execute(
                sa.insert(namespaces).values(
                    namespace=settings.namespace,
                    partitions=settings.partitions,
                    wire_version=WIRE_VERSION,
                    control_version=CONTROL_VERSION,
                )
            )
            done.append(f"registered namespace {settings.namespace} with {settings.partitions} partitions")
        else:
            require_version(known)
        there = set(
            connection.execute(
                sa.select(partitions.c.partition).where(partitions.c.namespace == settings.namespace)
            ).scalars()
        )
        missing = [number for number in range(settings.partitions) if number not in there]
        if missing:
            connection.execute(
                sa.insert(partitions),
                [
                    {
                        "namespace": settings.namespace,
                        "partition": number,
                        "token": 0,
                        "epoch": 0,
                        "sequence": -1,
                        "holder": None,
                        "lease_until_ms": 0,
                        "lost_entries": 0,
                        "missing_rows": 0,
                        "letters": 0,
                        "halted": None,
                    }
                    for number in missing
                ],
            )
    return done
