"""Asking a database for the facts.

Nothing is written. What the user may not read stays unknown; each question has a transaction of its own, so that a
refusal spoils no other.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from writebehind.engine.adapters.control_tables import control, now_ms
from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.engine.adapters.sql_reasons import sql_reason
from writebehind.engine.core.database_rules import unsafe_tables as judge
from writebehind.engine.core.facts import SqlFacts
from writebehind.engine.core.finding import Severity
from writebehind.engine.errors import ConfigurationError, DatabaseUnavailable

__all__ = ["require_transactions", "sql_facts"]

MYSQL: Final = frozenset({"mysql", "mariadb"})
CHANGES_CHILDREN: Final = frozenset({"CASCADE", "SET NULL", "SET DEFAULT"})

_POSTGRESQL_SETTINGS: Final = sa.text(
    "SELECT name, setting FROM pg_settings"
    " WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit', 'synchronous_standby_names')"
)
_POSTGRESQL_STANDBY: Final = sa.text(
    "SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only') = 'on'"
)
_POSTGRESQL_STANDBYS: Final = sa.text(
    # Without the right to see more, a standby's columns are NULL; when it has caught up, only its lag is.
    "SELECT count(*) AS standbys, count(flush_lsn) AS visible,"
    " CAST(COALESCE(max(EXTRACT(EPOCH FROM flush_lag)), 0) AS float) AS lag FROM pg_stat_replication"
)
_POSTGRESQL_TRIGGERS: Final = sa.text(
    "SELECT n.nspname AS schema, c.relname AS name, t.tgname AS trigger FROM pg_trigger t"
    " JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE NOT t.tgisinternal AND t.tgenabled <> 'D' AND c.relname IN :names"
).bindparams(sa.bindparam("names", expanding=True))
_MYSQL_TRIGGERS: Final = sa.text(
    "SELECT event_object_schema AS `schema`, event_object_table AS name, trigger_name AS `trigger`"
    " FROM information_schema.triggers WHERE event_object_table IN :names"
).bindparams(sa.bindparam("names", expanding=True))
_SQLITE_TRIGGERS: Final = sa.text(
    "SELECT NULL AS schema, tbl_name AS name, name AS trigger FROM sqlite_master"
    " WHERE type = 'trigger' AND tbl_name IN :names"
).bindparams(sa.bindparam("names", expanding=True))
_MYSQL_SETTINGS: Final = sa.text(
    "SHOW GLOBAL VARIABLES WHERE variable_name IN"
    " ('innodb_flush_log_at_trx_commit', 'sync_binlog', 'log_bin', 'read_only')"
)
_MYSQL_ENGINES: Final = sa.text(
    "SELECT t.table_schema AS `schema`, t.table_name AS name, t.engine AS engine FROM information_schema.tables t"
    " JOIN information_schema.engines e ON e.engine = t.engine"
    " WHERE t.table_name IN :names AND e.transactions <> 'YES'"
).bindparams(sa.bindparam("names", expanding=True))

Answer = TypeVar("Answer")


def sql_facts(engine: sa.Engine, tables: Mapping[str, DeclaredTable]) -> SqlFacts:
    """Ask a database for everything that bears on a diagnosis.

    Args:
        engine: the database.
        tables: the declared tables, by name.

    Raises:
        DatabaseUnavailable: it cannot be reached.
    """
    dialect = engine.dialect.name
    before = time.time()
    try:
        with engine.connect() as connection:
            clock = int(connection.execute(sa.select(now_ms())).scalar_one()) / 1000
            here = (before + time.time()) / 2
            version = ".".join(map(str, engine.dialect.server_version_info or ()))
    except sa.exc.SQLAlchemyError as error:
        raise DatabaseUnavailable(
            f"the database cannot be reached: {sql_reason(error)}", "check the URL and the server"
        ) from error
    url = engine.url
    in_memory = dialect == "sqlite" and url.database in {None, "", ":memory:"}
    settings = _ask(engine, _settings) or {}
    standby, standbys, lag = _standby(engine, settings)
    return SqlFacts(
        address=url.database or "memory" if dialect == "sqlite" else f"{url.host or 'localhost'}/{url.database}",
        dialect=dialect,
        version=version or None,
        in_memory=in_memory,
        settings=settings,
        standby=standby,
        standbys=standbys,
        standby_lag_seconds=lag,
        missing_tables=_ask(engine, lambda connection: _missing(connection, tables)),
        unsafe_tables=_ask(engine, lambda connection: _unsafe(connection, tables)),
        triggers=_ask(engine, lambda connection: _triggers(connection, tables)),
        cascades=_ask(engine, lambda connection: _cascades(connection, tables)),
        clock_ahead_seconds=None if dialect == "sqlite" else clock - here,
    )


def require_transactions(engine: sa.Engine, tables: Mapping[str, DeclaredTable]) -> None:
    """Refuse tables whose storage engine knows no transactions; one query on MySQL and MariaDB, none elsewhere.

    Args:
        engine: the database.
        tables: the declared tables, by name; the product's own are looked at too.

    Raises:
        ConfigurationError: there are such tables.
        sqlalchemy.exc.SQLAlchemyError: the database cannot be asked.
    """
    if engine.dialect.name not in MYSQL:
        return
    with engine.connect() as connection:
        finding = judge(SqlFacts(dialect=engine.dialect.name, unsafe_tables=_unsafe(connection, tables)))
    if finding is not None and finding.severity is Severity.FAILURE:
        raise ConfigurationError(finding.what.rstrip("."), finding.remedy)


def _ask(engine: sa.Engine, question: Callable[[sa.Connection], Answer]) -> Answer | None:
    """Return the answer, or None where the database refuses it."""
    try:
        with engine.connect() as connection:
            return question(connection)
    except sa.exc.SQLAlchemyError:
        return None


def _settings(connection: sa.Connection) -> dict[str, str]:
    match connection.dialect.name:
        case "postgresql":
            return {name: value for name, value in connection.execute(_POSTGRESQL_SETTINGS)}  # noqa: C416 - rows
        case "mysql" | "mariadb":
            truths = {"ON": "1", "OFF": "0"}
            return {str(name).lower(): truths.get(value, value) for name, value in connection.execute(_MYSQL_SETTINGS)}
        case "sqlite":
            return {"journal_mode": str(connection.exec_driver_sql("PRAGMA journal_mode").scalar_one())}
        case _:
            return {}


def _standby(engine: sa.Engine, settings: Mapping[str, str]) -> tuple[bool | None, int | None, float | None]:
    """Tell whether this is a standby, how many it has itself, and how far those are behind."""
    if engine.dialect.name in MYSQL:
        read_only = settings.get("read_only")
        return None if read_only is None else read_only == "1", None, None
    if engine.dialect.name != "postgresql":
        return None, None, None
    standby = _ask(engine, lambda connection: bool(connection.execute(_POSTGRESQL_STANDBY).scalar_one()))
    row = _ask(engine, lambda connection: connection.execute(_POSTGRESQL_STANDBYS).one())
    if row is None:
        return standby, None, None
    return standby, int(row.standbys), float(row.lag) if row.visible == row.standbys else None


def _missing(connection: sa.Connection, tables: Mapping[str, DeclaredTable]) -> tuple[str, ...]:
    inspector = sa.inspect(connection)
    return tuple(
        name
        for name, declared in tables.items()
        if not inspector.has_table(declared.table.name, schema=declared.table.schema)
    )


def _unsafe(connection: sa.Connection, tables: Mapping[str, DeclaredTable]) -> dict[str, str]:
    if connection.dialect.name not in MYSQL:
        return {}
    every = [*(declared.table for declared in tables.values()), *control.sorted_tables]
    rows = connection.execute(_MYSQL_ENGINES, {"names": [table.name for table in every]})
    return {_named(table): row.engine for row in rows for table in _found(connection, row, every)}


def _triggers(connection: sa.Connection, tables: Mapping[str, DeclaredTable]) -> tuple[str, ...]:
    queries = {
        "postgresql": _POSTGRESQL_TRIGGERS, "mysql": _MYSQL_TRIGGERS, "mariadb": _MYSQL_TRIGGERS,
        "sqlite": _SQLITE_TRIGGERS,
    }  # fmt: skip
    every = [declared.table for declared in tables.values()]
    rows = connection.execute(queries[connection.dialect.name], {"names": [table.name for table in every]})
    return tuple(sorted(f"{_named(table)}.{row.trigger}" for row in rows for table in _found(connection, row, every)))


def _cascades(connection: sa.Connection, tables: Mapping[str, DeclaredTable]) -> tuple[str, ...]:
    inspector = sa.inspect(connection)
    default = inspector.default_schema_name
    declared = {(table.table.schema or default, table.table.name) for table in tables.values()}
    found = []
    for child in (each.table for each in tables.values()):
        if not inspector.has_table(child.name, schema=child.schema):
            continue
        for key in inspector.get_foreign_keys(child.name, schema=child.schema):
            parent = (key["referred_schema"] or child.schema or default, key["referred_table"])
            action = str(key.get("options", {}).get("ondelete", "")).upper()
            if parent in declared and action in CHANGES_CHILDREN:
                found.append(f"{_named(child)}.{', '.join(key['constrained_columns'])} ON DELETE {action}")
    return tuple(sorted(found))


def _found(connection: sa.Connection, row: Any, tables: Iterable[sa.Table]) -> list[sa.Table]:
    """Return which of some tables a row of the catalogue speaks of."""
    default = connection.dialect.default_schema_name
    return [
        table for table in tables if table.name == row.name and (table.schema or default) == (row.schema or default)
    ]


def _named(table: sa.Table) -> str:
    return str.__str__(table.fullname)
