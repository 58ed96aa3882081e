"""Writing coalesced batches to SQL by the fastest way that each database has.

::

    bulk_path ── GenericPath       any dialect: UPDATE, then INSERT of what is missing
                 ├── UpsertPath    SQLite, PostgreSQL through other drivers
                 │   └── CopyPath  PostgreSQL with psycopg: binary COPY
                 └── MySQLPath     MySQL, MariaDB

Invariants:

1. A row is overwritten only by a write to its own key; any other collision raises.
2. What a row does not name is not written.
3. Nothing is committed, rolled back or swallowed here.
"""

import sqlalchemy as sa

from writebehind.flushers.bulk.generic import GenericPath
from writebehind.flushers.bulk.mysql import MySQLPath
from writebehind.flushers.bulk.order import in_foreign_key_order
from writebehind.flushers.bulk.path import BulkPath
from writebehind.flushers.bulk.upsert import UpsertPath

__all__ = ["BulkPath", "bulk_path", "in_foreign_key_order"]


def bulk_path(connection_or_engine: sa.Connection | sa.Engine) -> BulkPath:
    """Return the fastest path that the database and its driver allow. Keep it: it caches statements."""
    dialect = connection_or_engine.dialect
    match dialect.name, dialect.driver:
        case "postgresql", "psycopg":
            # Imported here: psycopg is an optional dependency.
            from writebehind.flushers.bulk.postgresql import CopyPath  # noqa: PLC0415

            return CopyPath(dialect)
        case (("postgresql" | "sqlite"), _):
            return UpsertPath(dialect)
        case (("mysql" | "mariadb"), _):
            return MySQLPath(dialect)
        case _:
            return GenericPath(dialect)
