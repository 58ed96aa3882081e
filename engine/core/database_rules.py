"""What the facts of a database and of a namespace mean.

Each rule looks at one thing and returns one finding, or None where the thing does not arise.
"""

from collections.abc import Callable
from typing import Final

from writebehind.engine.core.facts import NamespaceFacts, SqlFacts
from writebehind.engine.core.finding import Finding, Severity, ask

__all__ = ["NAMESPACE_RULES", "SQL_RULES", "namespace_settings", "unsafe_tables"]

MYSQL: Final = frozenset({"mysql", "mariadb"})
CLOCK_SECONDS_MAX: Final = 1.0
LAG_SECONDS_MAX: Final = 60.0


def _sql_standby(sql: SqlFacts) -> Finding | None:
    if sql.standby is None:
        if sql.dialect == "sqlite":
            return None
        return Finding(
            "sql-role", Severity.UNKNOWN, "The database does not tell whether it takes writes.",
            "A standby refuses what flushers bring.", "allow the user to read its settings",
        )  # fmt: skip
    if not sql.standby:
        return Finding("sql-role", Severity.OK, "The database takes writes.", "It is no standby.")
    return Finding(
        "sql-role", Severity.FAILURE, f"{sql.address or 'The database'} is a standby, or set to read only.",
        "Flushers try again until it takes writes; meanwhile the backlog grows.",
        "give the URL of the primary (PostgreSQL: target_session_attrs=read-write finds it)",
    )  # fmt: skip


def _commits(sql: SqlFacts) -> Finding:
    code = "sql-commits"
    if sql.dialect == "sqlite":
        if sql.in_memory:
            return Finding(
                code, Severity.FAILURE, "The database lives in this process's memory.",
                "Flushers refuse it: it ends with the process.", "give a file: sqlite:///path/to/file",
            )  # fmt: skip
        mode = sql.settings.get("journal_mode", "unknown")
        return Finding(
            code, Severity.OK, f"The database is a file, its journal_mode now {mode}.",
            "Flushers write it with journal_mode WAL and synchronous FULL: a commit is on disk.",
        )  # fmt: skip
    if sql.dialect == "postgresql":
        return _postgresql_commits(sql)
    if sql.dialect in MYSQL:
        return _mysql_commits(sql)
    return Finding(
        code, Severity.UNKNOWN, f"What a crash of {sql.dialect} leaves of a commit is not known here.",
        "Flushed writes may be lost with it.", "see its manual on durable commits",
    )  # fmt: skip


def _postgresql_commits(sql: SqlFacts) -> Finding:
    code = "sql-commits"
    settings = {name: sql.settings.get(name) for name in ("fsync", "full_page_writes", "synchronous_commit")}
    for name in ("fsync", "full_page_writes"):
        if settings[name] == "off":
            return Finding(
                code, Severity.FAILURE, f"PostgreSQL runs with {name} = off.",
                "A crash of its host can damage the database beyond repair, offsets and rows alike.",
                f"ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf()",
            )  # fmt: skip
    if None in settings.values():
        hidden = ", ".join(name for name, value in settings.items() if value is None)
        return Finding(
            code, Severity.UNKNOWN, f"PostgreSQL does not tell {hidden}.",
            "A commit may not survive a crash.", ask(hidden, "SHOW"),
        )  # fmt: skip
    if settings["synchronous_commit"] == "off":
        return Finding(
            code, Severity.NOTE, "synchronous_commit is off.",
            "Flushers turn it on for their own sessions: what they commit is on disk. Other programs' commits are not.",
        )  # fmt: skip
    return Finding(
        code, Severity.OK,
        f"synchronous_commit is {settings['synchronous_commit']}, fsync and full_page_writes are on.",
        "A commit is on disk.",
    )  # fmt: skip


def _mysql_commits(sql: SqlFacts) -> Finding:
    code = "sql-commits"
    flushes, binary = sql.settings.get("innodb_flush_log_at_trx_commit"), sql.settings.get("sync_binlog")
    logs = sql.settings.get("log_bin")
    if flushes is None:
        return Finding(
            code, Severity.UNKNOWN, "The database does not tell innodb_flush_log_at_trx_commit.",
            "A commit may not survive a crash.", ask("innodb_flush_log_at_trx_commit", "SHOW VARIABLES"),
        )  # fmt: skip
    if flushes not in {"1", "3"}:
        return Finding(
            code, Severity.WARNING, f"innodb_flush_log_at_trx_commit is {flushes}.",
            "A crash takes about the last second of commits; flushers replay it from the log while it is retained.",
            "SET GLOBAL innodb_flush_log_at_trx_commit = 1, and the same in my.cnf",
        )  # fmt: skip
    if logs == "1" and binary not in {"1", None}:
        return Finding(
            code, Severity.NOTE, f"sync_binlog is {binary}.",
            "A commit is on disk here; after a crash of the host, standbys may not get the last ones.",
            "SET GLOBAL sync_binlog = 1, and the same in my.cnf",
        )  # fmt: skip
    return Finding(code, Severity.OK, f"innodb_flush_log_at_trx_commit is {flushes}.", "A commit is on disk.")


def unsafe_tables(sql: SqlFacts) -> Finding | None:
    """Exactly once rests on transactions."""
    code = "sql-engines"
    if sql.dialect not in MYSQL:
        return None
    if sql.unsafe_tables is None:
        return Finding(
            code, Severity.UNKNOWN, "The database does not tell the storage engines of the tables.",
            "Exactly once needs one that knows transactions.", "SHOW TABLE STATUS; use ENGINE=InnoDB",
        )  # fmt: skip
    if not sql.unsafe_tables:
        return Finding(code, Severity.OK, "All tables know transactions.", "Rows and offset move together.")
    named = ", ".join(f"{table} ({engine})" for table, engine in sorted(sql.unsafe_tables.items()))
    return Finding(
        code, Severity.FAILURE, f"These tables know no transactions: {named}.",
        "A batch that is cut off half way stays half written and is applied again: nothing is exactly once.",
        "; ".join(f"ALTER TABLE {table} ENGINE=InnoDB" for table in sorted(sql.unsafe_tables)),
    )  # fmt: skip


def _missing_tables(sql: SqlFacts) -> Finding:
    code = "sql-tables"
    if sql.missing_tables is None:
        return Finding(
            code, Severity.UNKNOWN, "The database does not tell its tables.", "Flushers halt where one is missing.",
            "allow the user to read its catalogue",
        )  # fmt: skip
    if not sql.missing_tables:
        return Finding(code, Severity.OK, "All declared tables are there.", "Flushers find what they write to.")
    return Finding(
        code, Severity.FAILURE, f"The database has no table {', '.join(sql.missing_tables)}.",
        "Partitions with writes to it halt until it is there; nothing is lost.",
        "create it, or run 'writebehind init --create-tables'",
    )  # fmt: skip


def _triggers(sql: SqlFacts) -> Finding | None:
    if sql.triggers is None:
        return Finding(
            "sql-triggers", Severity.UNKNOWN, "The database does not tell its triggers.",
            "One that changes a row makes Redis and SQL differ; one that swallows an error loses a write.",
            "allow the user to read its catalogue",
        )  # fmt: skip
    if not sql.triggers:
        return None
    return Finding(
        "sql-triggers", Severity.WARNING, f"There are triggers: {', '.join(sql.triggers)}.",
        "One that changes a row makes Redis and SQL differ; one that swallows an error loses a write. Several changes "
        "of a row in one batch fire it once.",
        "see that they neither change the row being written nor hide errors; else drop them",
    )  # fmt: skip


def _cascades(sql: SqlFacts) -> Finding | None:
    if sql.cascades is None:
        return Finding(
            "sql-cascades", Severity.UNKNOWN, "The database does not tell its foreign keys.",
            "One with ON DELETE CASCADE changes rows that Redis does not hear of.",
            "allow the user to read its catalogue",
        )  # fmt: skip
    if not sql.cascades:
        return None
    return Finding(
        "sql-cascades", Severity.WARNING, f"Foreign keys change other declared rows: {', '.join(sql.cascades)}.",
        "Redis does not hear of it: it goes on showing the rows as they were.",
        "declare them ON DELETE RESTRICT, and write the children's changes yourself in one atomic group",
    )  # fmt: skip


def _standbys(sql: SqlFacts) -> Finding | None:
    if not sql.standbys:
        return None
    names = sql.settings.get("synchronous_standby_names")
    if names:
        return Finding(
            "sql-standbys", Severity.OK, f"Commits wait for a standby: synchronous_standby_names is {names!r}.",
            "Its promotion takes no flushed write.",
        )  # fmt: skip
    return Finding(
        "sql-standbys", Severity.NOTE, f"{sql.standbys} standbys follow, and commits do not wait for them.",
        "The promotion of one takes what it does not have yet; it is replayed from the log while it is retained.",
    )  # fmt: skip


def _sql_clock(sql: SqlFacts) -> Finding | None:
    ahead = sql.clock_ahead_seconds
    if ahead is None:
        return None
    what = f"The database's clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this machine's."
    if abs(ahead) <= CLOCK_SECONDS_MAX:
        return Finding("sql-clock", Severity.OK, what, "Lag is shown rightly.")
    return Finding(
        "sql-clock", Severity.WARNING, what,
        "Order, leases and exactly-once do not rest on it agreeing with others; ages in SQL look wrong by it.",
        "synchronise the clocks (chrony, ntpd)",
    )  # fmt: skip


def _control_tables(namespace: NamespaceFacts) -> Finding:
    code = "control-tables"
    if namespace.missing_control_tables is None:
        return Finding(
            code, Severity.UNKNOWN, "The product's own tables cannot be looked for.", "Flushers need them.",
            "allow the user to read the database's catalogue",
        )  # fmt: skip
    if not namespace.missing_control_tables:
        return Finding(code, Severity.OK, "The product's own tables are there.", "Flushers can work.")
    return Finding(
        code, Severity.FAILURE, f"The database has no {', '.join(namespace.missing_control_tables)}.",
        "No flusher can start: accepted writes stay in Redis.", "run 'writebehind init'",
    )  # fmt: skip


def namespace_settings(namespace: NamespaceFacts, in_redis: int | None) -> Finding:
    """All processes of a namespace agree on its partitions.

    Args:
        namespace: what SQL has.
        in_redis: the partitions that Redis has; 0 for none, None where it is not known.
    """
    code = "namespace"
    wanted, in_sql = namespace.partitions_wanted, namespace.partitions
    for found, where in ((in_sql, "SQL"), (in_redis, "Redis")):
        if found and found != wanted:
            return Finding(
                code, Severity.FAILURE, f"The namespace has {found} partitions in {where}, not {wanted}.",
                "Engines and flushers refuse to start.",
                f"give partitions={found}; the number is fixed for the lifetime of a namespace",
            )  # fmt: skip
    if in_sql is None or in_redis is None:
        return Finding(
            code, Severity.UNKNOWN, "The namespace's registration cannot be read everywhere.",
            "Engines and flushers refuse to start where it differs.", "see the findings on Redis and SQL",
        )  # fmt: skip
    if in_sql == 0:
        return Finding(
            code, Severity.FAILURE, "The namespace is not registered in SQL.",
            "No flusher can start: accepted writes stay in Redis.", "run 'writebehind init'",
        )  # fmt: skip
    return Finding(code, Severity.OK, f"The namespace has {wanted} partitions.", "Application, Redis and SQL agree.")


def _flushing(namespace: NamespaceFacts) -> Finding:
    code = "flushers"
    alive, backlog, unheld = namespace.flushers, namespace.backlog_entries, namespace.unheld
    if alive is None or unheld is None:
        return Finding(
            code, Severity.UNKNOWN, "It cannot be told whether a flusher is alive.",
            "Without one, accepted writes stay in Redis.", "see 'writebehind status'",
        )  # fmt: skip
    if alive == 0:
        return Finding(
            code, Severity.WARNING if backlog else Severity.NOTE, "No flusher is alive.",
            "Accepted writes stay in Redis, where each crash may take them.", "writebehind run",
        )  # fmt: skip
    if unheld:
        return Finding(
            code, Severity.WARNING, f"{alive} flushers are alive, and nobody holds {unheld} partitions.",
            "A dead flusher's partitions are taken over after its lease has run out, usually 5 s.",
            "look again; if it stays so, see the flushers' logs",
        )  # fmt: skip
    return Finding(code, Severity.OK, f"{alive} flushers are alive.", "Every partition is held.")


def _halted(namespace: NamespaceFacts) -> Finding | None:
    if namespace.halted is None:
        return Finding(
            "halted-partitions", Severity.UNKNOWN, "It cannot be told whether partitions are halted.",
            "Writes to a halted one stay in Redis.", "see 'writebehind status'",
        )  # fmt: skip
    if not namespace.halted:
        return None
    reasons = "; ".join(f"partition {number}: {reason}" for number, reason in sorted(namespace.halted.items()))
    return Finding(
        "halted-partitions", Severity.FAILURE, f"{len(namespace.halted)} partitions are halted: {reasons}.",
        "Nothing is lost, but their writes stay in Redis and their readers may wait.",
        "mend the cause that is named; flushing resumes by itself",
    )  # fmt: skip


def _lost(namespace: NamespaceFacts) -> Finding | None:
    if namespace.lost_entries is None:
        return Finding(
            "lost-entries", Severity.UNKNOWN, "It cannot be told whether entries were lost.",
            "Flushers count in SQL what they find missing.", "see 'writebehind status' and the flushers' logs",
        )  # fmt: skip
    if not namespace.lost_entries:
        return None
    return Finding(
        "lost-entries", Severity.FAILURE,
        f"{namespace.lost_entries} accepted entries were found missing from the log, or passed over in doubt.",
        "They are in neither Redis nor SQL; those in doubt may be in SQL.",
        "see 'DATA LOSS' in the flushers' logs, and 'writebehind status'",
    )  # fmt: skip


def _missing_rows(namespace: NamespaceFacts) -> Finding | None:
    if not namespace.missing_rows:
        return None
    return Finding(
        "missing-rows", Severity.NOTE, f"{namespace.missing_rows} patches found no row to change.",
        "A patch of a record that does not exist has no effect.",
    )  # fmt: skip


def _backlog(namespace: NamespaceFacts) -> Finding:
    entries, lag = namespace.backlog_entries, namespace.lag_seconds
    if entries is None or lag is None:
        return Finding(
            "backlog", Severity.UNKNOWN, "The backlog cannot be told.",
            "What is in Redis only is what most faults can take.", "see the findings on Redis and SQL",
        )  # fmt: skip
    what = f"{entries:,} entries are not in SQL yet, the oldest for {lag:.1f} s."
    if not entries:
        return Finding("backlog", Severity.OK, "SQL has every accepted write.", "Nothing is in Redis only.")
    if lag <= LAG_SECONDS_MAX:
        return Finding("backlog", Severity.OK, what, "Flushing keeps up.")
    return Finding(
        "backlog", Severity.WARNING, what, "What is in Redis only is what most faults can take.",
        "see 'writebehind status' for the partitions that hang; more flushers: writebehind run --processes N",
    )  # fmt: skip


def _retention(namespace: NamespaceFacts) -> Finding | None:
    seconds = namespace.retention_seconds
    if seconds is None:
        return Finding(
            "log-retention", Severity.UNKNOWN, "How long flushers retain flushed entries was not said.",
            "That long a rollback of SQL (a promoted standby, a restored backup) can be replayed.",
            "give what 'writebehind run --retention-seconds' has",
        )  # fmt: skip
    if seconds == 0:
        return Finding(
            "log-retention", Severity.WARNING, "Flushed entries are not retained.",
            "What a rollback of SQL (a promoted standby, a restored backup) takes cannot be replayed.",
            "writebehind run --retention-seconds 60",
        )  # fmt: skip
    return Finding(
        "log-retention", Severity.OK, f"Flushed entries are retained for {seconds:g} s.",
        "A rollback of SQL by less than that is replayed exactly.",
    )  # fmt: skip


SQL_RULES: Final[tuple[Callable[[SqlFacts], Finding | None], ...]] = (
    _sql_standby,
    _commits,
    unsafe_tables,
    _missing_tables,
    _triggers,
    _cascades,
    _standbys,
    _sql_clock,
)
NAMESPACE_RULES: Final[tuple[Callable[[NamespaceFacts], Finding | None], ...]] = (
    _control_tables,
    _flushing,
    _halted,
    _lost,
    _missing_rows,
    _backlog,
    _retention,
)
