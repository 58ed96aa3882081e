"""Hand-written drains to compare with: what the servers and Python allow without the engine's guarantees.

They read the very logs that the engine wrote, for the one table that they know. Each reads, decodes and coalesces the
next batch in a thread while the database commits. None of them can take over from another, survives a rollback of
Redis or notices a gap, has leases, poison handling or more than one table, or lets records become clean.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING, Any

import redis
import sqlalchemy as sa
from msgspec import Struct
from msgspec.msgpack import Decoder
from msgspec.structs import asdict, astuple
from sqlalchemy.dialects import postgresql

if TYPE_CHECKING:
    import psycopg

__all__ = ["CopyLoop", "ExecutemanyLoop", "Loop", "RowLoop"]

GROUP = "bare"
COLUMNS = {
    "id": "int8",
    "owner": "text",
    "email": "text",
    "balance": "int8",
    "score": "float8",
    "updated_at": "timestamptz",
}
NAMES = ", ".join(COLUMNS)
UPSERT = "ON CONFLICT (id) DO UPDATE SET " + ", ".join(f"{name} = EXCLUDED.{name}" for name in COLUMNS if name != "id")


class Account(Struct, gc=False):
    """A record of ``workload.account_table``, decoded without a detour over a dict."""

    id: int
    owner: str
    email: str | None
    balance: int
    score: float
    updated_at: datetime


_decode = Decoder(tuple[int, int, str, str, Account]).decode


class Loop(ABC):
    """Read, coalesce, commit with the offsets, acknowledge.

    Args:
        redis_url: where the logs are.
        database_url: where the table is.
        logs: the logs' names.
        table: the table.
        batch_entries: entries of one transaction.
    """

    def __init__(
        self, redis_url: str, database_url: str, logs: Sequence[str], table: sa.Table, batch_entries: int
    ) -> None:
        self._client = redis.Redis.from_url(redis_url, protocol=2)
        self._reader: Any = self._client.connection_pool.get_connection()
        self._engine = sa.create_engine(database_url)
        self._logs = list(logs)
        self._share = max(1, batch_entries // len(self._logs))
        self.table = table
        self.offsets = f"{table.name}_offsets"

    def prepare(self) -> None:
        """Make the consumer groups and the table of offsets."""
        for log in self._logs:
            self._client.xgroup_create(log, GROUP, "0", mkstream=True)
        with self._engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE TABLE {self.offsets} (log text PRIMARY KEY, entry text NOT NULL)")
            for log in self._logs:
                connection.execute(sa.text(f"INSERT INTO {self.offsets} VALUES (:log, '0-0')"), {"log": log})  # noqa: S608

    def drain(self, entries: int) -> None:
        """Flush until so many entries are committed and acknowledged."""
        done = 0
        with ThreadPoolExecutor(1) as reading, self._engine.connect() as connection:
            upcoming = reading.submit(self._read)
            while done < entries:
                rows, ids = upcoming.result()
                upcoming = reading.submit(self._read)
                self.write(connection, rows, {log: listed[-1].decode() for log, listed in ids.items()})
                pipeline = self._client.pipeline(transaction=False)
                for log, listed in ids.items():
                    pipeline.xack(log, GROUP, *listed)
                pipeline.execute()
                done += sum(map(len, ids.values()))

    def close(self) -> None:
        """Close the connections and drop the table of offsets."""
        self._client.connection_pool.release(self._reader)
        self._client.close()
        with self._engine.begin() as connection:
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {self.offsets}")
        self._engine.dispose()

    def _entries(self) -> Any:
        # hiredis parses; redis-py's own conversion of the reply would cost more than all the rest.
        self._reader.send_command(
            "XREADGROUP", "GROUP", GROUP, "one", "COUNT", self._share, "STREAMS", *self._logs, *">" * len(self._logs)
        )
        return self._reader.read_response(disable_decoding=True) or ()

    def _read(self) -> tuple[list[Account], dict[str, list[bytes]]]:
        rows: dict[int, Account] = {}
        ids: dict[str, list[bytes]] = {}
        for log, found in self._entries():
            ids[log.decode()] = [entry[0] for entry in found]
            for entry in found:
                account = _decode(entry[1][3])[4]
                rows[account.id] = account
        return list(rows.values()), ids

    @abstractmethod
    def write(self, connection: sa.Connection, rows: list[Account], offsets: dict[str, str]) -> None:
        """Commit a batch."""

    def move(self, cursor: "psycopg.Cursor[Any]", offsets: dict[str, str]) -> None:
        """Move the offsets, all in one statement."""
        source = "unnest(%s::text[], %s::text[]) AS n(log, entry)"
        statement = f"UPDATE {self.offsets} AS o SET entry = n.entry FROM {source} WHERE o.log = n.log"  # noqa: S608 - our own names
        cursor.execute(statement, [list(offsets), list(offsets.values())])


class CopyLoop(Loop):
    """The roofline: binary COPY into a temporary table, one upsert from it, psycopg without SQLAlchemy."""

    def write(self, connection: sa.Connection, rows: list[Account], offsets: dict[str, str]) -> None:
        """Commit a batch."""
        driver: Any = connection.connection.driver_connection
        table = self.table.name
        with driver.cursor() as cursor:
            fields = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
            cursor.execute(f"CREATE TEMPORARY TABLE IF NOT EXISTS staged ({fields}) ON COMMIT DELETE ROWS")
            with cursor.copy(f"COPY staged ({NAMES}) FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(list(COLUMNS.values()))
                for row in rows:
                    copy.write_row(astuple(row))
            cursor.execute(f"INSERT INTO {table} ({NAMES}) SELECT {NAMES} FROM staged ORDER BY id {UPSERT}")  # noqa: S608 - our own names
            self.move(cursor, offsets)
        driver.commit()


class ExecutemanyLoop(Loop):
    """What one writes first: an upsert through SQLAlchemy with a list of dicts."""

    def write(self, connection: sa.Connection, rows: list[Account], offsets: dict[str, str]) -> None:
        """Commit a batch."""
        insert = postgresql.insert(self.table)
        sets = {column.name: insert.excluded[column.name] for column in self.table.columns if not column.primary_key}
        upsert = insert.on_conflict_do_update(index_elements=["id"], set_=sets)
        connection.execute(upsert, [asdict(row) for row in rows])
        driver: Any = connection.connection.driver_connection
        with driver.cursor() as cursor:
            self.move(cursor, offsets)
        connection.commit()


class RowLoop(Loop):
    """No batches: each entry is upserted, committed and acknowledged by itself; it has no offset to move."""

    def drain(self, entries: int) -> None:
        """Flush so many entries at least."""
        places = ", ".join(["%s"] * len(COLUMNS))
        upsert = f"INSERT INTO {self.table.name} ({NAMES}) VALUES ({places}) {UPSERT}"  # noqa: S608 - our own names
        done = 0
        with self._engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            with driver.cursor() as cursor:
                while done < entries:
                    for log, found in self._entries():
                        for entry, fields in found:
                            cursor.execute(upsert, astuple(_decode(fields[3])[4]))
                            driver.commit()
                            self._client.xack(log, GROUP, entry)
                        done += len(found)

    def write(self, connection: sa.Connection, rows: list[Account], offsets: dict[str, str]) -> None:
        """Not used: rows are written one by one."""
        raise NotImplementedError
