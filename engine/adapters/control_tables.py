"""The engine's own SQL tables: offsets, leases, lineage.

``control`` is plain MetaData: hand it to Alembic beside your own, or let ``writebehind init`` create it.
The offset lives here, in the database that it speaks of, because only so can it move in the same transaction
as the rows. Leases live here too: fencing tokens minted in Redis go backwards after a failover.
"""

from typing import Any

from sqlalchemy import BigInteger, Column, Connection, Integer, LargeBinary, MetaData, String, Table, Text, inspect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from writebehind.engine.errors import ConfigurationError

__all__ = [
    "CONTROL_VERSION",
    "control",
    "dead_letters",
    "epochs",
    "flushers",
    "losses",
    "missing_in",
    "namespaces",
    "now_ms",
    "other_release",
    "partitions",
    "require_version",
    "rewritten",
]

CONTROL_VERSION = 3
"""Version of these tables' layout."""

control = MetaData()

namespaces = Table(
    "writebehind_namespaces",
    control,
    Column("namespace", String(32), primary_key=True),
    Column("partitions", Integer, nullable=False),
    Column("wire_version", Integer, nullable=False),
    Column("control_version", Integer, nullable=False),
    comment="What all processes of a namespace must agree on.",
)

partitions = Table(
    "writebehind_partitions",
    control,
    Column("namespace", String(32), primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("token", BigInteger, nullable=False, comment="fencing token; grows with every change of holder"),
    Column("epoch", BigInteger, nullable=False, comment="offset: epoch of the last applied entry"),
    Column("sequence", BigInteger, nullable=False, comment="offset: its sequence; -1 before the first"),
    Column("holder", String(128), nullable=True),
    Column("lease_until_ms", BigInteger, nullable=False, comment="on this database's clock"),
    Column("lost_entries", BigInteger, nullable=False, comment="entries missing from the log, or passed over in doubt"),
    Column("missing_rows", BigInteger, nullable=False, comment="patches that found no row"),
    Column(
        "letters",
        BigInteger,
        nullable=False,
        comment="moves with the dead letters; place of the next one: none is used twice",
    ),
    Column("halted", Text, nullable=True, comment="why the partition is not being flushed"),
    comment="Offset and lease of each partition.",
)

epochs = Table(
    "writebehind_epochs",
    control,
    Column("namespace", String(32), primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, nullable=False, comment="last applied entry of this earlier epoch"),
    Column("successor", BigInteger, nullable=False, comment="the epoch that followed"),
    Column("successor_base", String(48), nullable=False, comment="where Redis says this epoch ended"),
    comment="Earlier epochs: what was applied of each, and what came next.",
)

rewritten = Table(
    "writebehind_rewritten",
    control,
    Column("namespace", String(32), primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("applied_ms", BigInteger, nullable=False, comment="when, on this database's clock"),
    comment="Entries that Redis lost, that were written again elsewhere in the log, and that were applied there.",
)

losses = Table(
    "writebehind_losses",
    control,
    Column("namespace", String(32), primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("first_id", String(48), primary_key=True, comment="the first entry concerned"),
    Column("reporter", String(128), primary_key=True, comment="the flusher or the writer that found it"),
    Column("last_id", String(48), nullable=False),
    Column("entries", BigInteger, nullable=False, comment="entries in neither Redis nor SQL"),
    Column("rewritten", BigInteger, nullable=False, comment="entries that Redis lost and their writer wrote again"),
    Column(
        "in_doubt",
        BigInteger,
        nullable=False,
        server_default="0",
        comment="of those, passed over because nobody can know whether SQL has them; then all from first_id to last_id",
    ),
    Column("from_ms", BigInteger, nullable=False, comment="when the first one was made; 0 for unknown"),
    Column("until_ms", BigInteger, nullable=False),
    Column("found_ms", BigInteger, nullable=False, comment="on this database's clock"),
    Column("records", Text, nullable=False, comment="tables and keys concerned, where they are known"),
    comment="What Redis has lost, as flushers and writers found it.",
)

dead_letters = Table(
    "writebehind_dead_letters",
    control,
    Column("namespace", String(32), primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("place", BigInteger, primary_key=True, autoincrement=False, comment="counts up in the log's order"),
    Column("entry_id", String(48), nullable=False),
    Column("mutation_id", String(128), nullable=False),
    Column("table_name", String(255), nullable=False, comment="of its first mutation; empty where unreadable"),
    Column(
        "record_key", Text, nullable=False, comment="key text of its first mutation; empty for a key that SQL makes"
    ),
    Column("payload", LargeBinary(2**24 - 1), nullable=False, comment="as it stood in the log"),
    Column(
        "failure", String(32), nullable=False, comment="poison, foreign key, unreadable; empty: waits for one before it"
    ),
    Column("error", Text, nullable=False, comment="without values of rows"),
    Column("attempts", Integer, nullable=False),
    Column("made_ms", BigInteger, nullable=False, comment="on the writer's clock; 0 for unknown"),
    Column("dead_ms", BigInteger, nullable=False, comment="when it was set aside, on this database's clock"),
    Column("retry_until_ms", BigInteger, nullable=False, comment="until then a flusher tries again by itself; 0: no"),
    comment="Entries that SQL refuses, and later entries of the same keys, which wait behind them in order.",
)

flushers = Table(
    "writebehind_flushers",
    control,
    Column("namespace", String(32), primary_key=True),
    Column("holder", String(128), primary_key=True),
    Column("seen_until_ms", BigInteger, nullable=False, comment="counted as alive until then"),
    comment="Flushers that share the partitions among themselves.",
)


def missing_in(connection: Connection) -> list[str]:
    """Name the control tables, and columns of them, that a database does not have."""
    catalogue = inspect(connection)
    missing: list[str] = []
    for table in control.sorted_tables:
        if not catalogue.has_table(table.name):
            missing.append(table.name)
            continue
        there = {column["name"] for column in catalogue.get_columns(table.name)}
        missing += [f"{table.name}.{column.name}" for column in table.columns if column.name not in there]
    return missing


def require_version(known: int) -> None:
    """Refuse a namespace that was registered with control tables of another version.

    Raises:
        ConfigurationError: it was.
    """
    if known != CONTROL_VERSION:
        raise other_release(f"version {known}, and this one wants {CONTROL_VERSION}")


def other_release(found: str) -> ConfigurationError:
    """Return the error for control tables that another release has made."""
    return ConfigurationError(
        f"the control tables in SQL are those of another release: {found}",
        "use one release for all flushers and writers; where this one is the newer, add what is missing "
        "(ALTER TABLE ... ADD COLUMN ... NOT NULL DEFAULT 0) and set control_version in writebehind_namespaces",
    )


class now_ms(FunctionElement[int]):  # noqa: N801 - an SQL function is written in lower case
    """Milliseconds since 1970 on the database's own clock, also inside a long transaction."""

    type = BigInteger()
    inherit_cache = True


@compiles(now_ms)
def _other(_element: now_ms, compiler: Any, **_: Any) -> str:
    raise ConfigurationError(
        f"the database's clock cannot be read on {compiler.dialect.name}",
        "use PostgreSQL, MySQL, MariaDB or SQLite",
    )


@compiles(now_ms, "postgresql")
def _postgresql(_element: now_ms, _compiler: Any, **_: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"


@compiles(now_ms, "mysql")
@compiles(now_ms, "mariadb")
def _mysql(_element: now_ms, _compiler: Any, **_: Any) -> str:
    return "CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000 AS SIGNED)"


@compiles(now_ms, "sqlite")
def _sqlite(_element: now_ms, _compiler: Any, **_: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"
