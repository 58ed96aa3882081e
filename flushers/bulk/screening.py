"""Finding the rows that a table's CHECK and NOT NULL constraints refuse, before they are written.

An error of the database costs the whole statement and does not name the row. So rows that wait in a temporary table are
asked first, by the constraints' own expressions from the catalog: for 5,000 rows that takes less than a millisecond.
Only where the row is written as it stands: not where a trigger may change it first. What is found is a suspicion: the
row is written alone before it counts as refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
import sqlalchemy as sa

from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.flushers.bulk.staging import POSITION, Staging, run

__all__ = ["Check", "checks_of", "refused"]

_CONSTRAINTS: Final = sa.text(
    "SELECT c.conname AS name, pg_get_expr(c.conbin, c.conrelid) AS expression,"
    " ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.conrelid AND a.attnum = ANY(c.conkey)"
    " ORDER BY a.attnum) AS columns"
    " FROM pg_constraint c WHERE c.contype = 'c' AND c.conrelid = to_regclass(:name)"
    # From release 18 on there are some that are not enforced.
    " AND to_jsonb(c) ->> 'conenforced' IS DISTINCT FROM 'false'"
    " UNION ALL SELECT a.attname || ' is not null', quote_ident(a.attname) || ' IS NOT NULL', ARRAY[a.attname::text]"
    " FROM pg_attribute a WHERE a.attrelid = to_regclass(:name) AND a.attnum > 0 AND a.attnotnull"
    " AND NOT a.attisdropped AND a.attname = ANY(:nullable) ORDER BY 1"
)
_CHANGED_FIRST: Final = sa.text(
    "WITH RECURSIVE own AS (SELECT to_regclass(:name)::oid AS id"
    " UNION SELECT i.inhrelid FROM pg_inherits i JOIN own ON i.inhparent = own.id)"
    " SELECT EXISTS (SELECT 1 FROM pg_trigger JOIN own ON tgrelid = own.id WHERE NOT tgisinternal AND tgtype & 2 = 2)"
)
_TYPES: Final = sa.text(
    "SELECT attname::text AS name, format_type(atttypid, atttypmod) AS type,"
    " CASE WHEN l.oid IS NULL THEN '' ELSE ' COLLATE ' || quote_ident(n.nspname) || '.' || quote_ident(l.collname) END"
    " AS collation FROM pg_attribute LEFT JOIN pg_collation l ON l.oid = attcollation"
    " LEFT JOIN pg_namespace n ON n.oid = l.collnamespace"
    " WHERE attrelid = to_regclass(:name) AND attnum > 0 AND NOT attisdropped"
)


@dataclass(frozen=True, slots=True)
class Check:
    """One constraint.

    Attributes:
        name: as the database calls it.
        expression: SQL from the catalog, over the plain names of columns.
        columns: of each column that it is about, its name, its type, and its collation as a clause.
    """

    name: str
    expression: str
    columns: tuple[tuple[str, str, str], ...]


def checks_of(connection: sa.Connection, declared: DeclaredTable, name: str) -> tuple[Check, ...]:
    """Return the constraints that each row has to fulfil by itself; none where a trigger may change it first.

    Args:
        connection: to ask with.
        declared: the table.
        name: its quoted name.
    """
    if connection.execute(_CHANGED_FIRST, {"name": name}).scalar_one():
        return ()
    types = {row.name: (row.type, row.collation) for row in connection.execute(_TYPES, {"name": name})}
    own = {column.name for column in declared.entity.columns}
    # What the declaration does not let be NULL is never NULL in the log.
    nullable = [column.name for column in declared.entity.columns if column.nullable]
    found = (
        Check(row.name, row.expression, tuple((column, *types[column]) for column in row.columns))
        for row in connection.execute(_CONSTRAINTS, {"name": name, "nullable": nullable}).all()
        if row.columns and own.issuperset(row.columns)
    )
    return tuple(check for check in found if _can_be_asked(connection, check))


def _can_be_asked(connection: sa.Connection, check: Check) -> bool:
    """Tell whether a constraint can be asked of single columns: not one about the row as a whole."""
    quote = connection.dialect.identifier_preparer.quote
    fields = [
        f"CAST(NULL AS {kind}){collation} AS {quote(name).replace('%%', '%')}"
        for name, kind, collation in check.columns
    ]
    driver_connection: Any = connection.connection.driver_connection
    savepoint = connection.begin_nested()
    try:
        with driver_connection.cursor() as cursor:
            query = f"SELECT 1 FROM (SELECT {', '.join(fields)}) AS t WHERE ({check.expression}) IS FALSE"  # noqa: S608
            run(connection, cursor, query)
    except sa.exc.DBAPIError:
        savepoint.rollback()
        return False
    savepoint.commit()
    return True


def refused(
    connection: sa.Connection, cursor: psycopg.Cursor[Any], staging: Staging, checks: Sequence[Check]
) -> dict[int, str]:
    """Take the rows out of a numbered temporary table that constraints refuse; return positions and constraints.

    Args:
        connection: with the open transaction.
        cursor: the driver's, on it.
        staging: the temporary table.
        checks: constraints about columns that it has.
    """
    fields = [
        f"CAST(s.{staging.columns[name]} AS {kind}){collation} AS {staging.columns[name]}"
        for name, kind, collation in dict.fromkeys(column for check in checks for column in check.columns)
    ]
    rows = f"SELECT s.{POSITION}, {', '.join(fields)} FROM {staging.name} AS s"  # noqa: S608 - names are quoted
    fails = [f"({check.expression}) IS FALSE" for check in checks]
    which = " ".join(f"WHEN {fail} THEN {number}" for number, fail in enumerate(fails))
    query = f"SELECT {POSITION}, CASE {which} END FROM ({rows}) AS t WHERE {' OR '.join(fails)}"  # noqa: S608
    run(connection, cursor, query)
    found = {position: checks[number].name for position, number in cursor.fetchall()}
    if found:
        places = ", ".join(map(str, found))
        run(connection, cursor, f"DELETE FROM {staging.name} WHERE {POSITION} IN ({places})")  # noqa: S608
    return found
