"""A process with many threads that read one record at once; run as a program by test_read_through.py.

Arguments: Redis URL, database URL, namespace, threads, seconds that a query takes. It says "ready", begins when it is
told anything on its standard input, and prints what the threads were given and how many queries it has made.
"""

import json
import sys
import threading
import time
from typing import Any

import sqlalchemy as sa

from writebehind.engine import WriteBehind
from writebehind.engine.adapters.rows import Rows


def main() -> None:
    """Read."""
    redis_url, database_url, namespace, threads, load_seconds = sys.argv[1:]
    queries: list[Any] = []
    load = Rows.load

    def loading(rows: Rows, declared: Any, keys: Any) -> Any:
        queries.append(keys)
        time.sleep(float(load_seconds))
        return load(rows, declared, keys)

    Rows.load = loading  # type: ignore[assignment,method-assign]
    accounts = sa.Table("accounts", sa.MetaData(), autoload_with=sa.create_engine(database_url))
    engine = WriteBehind(
        redis=redis_url, database=database_url, tables=[accounts], namespace=namespace, partitions=2
    ).start()
    found: list[int | None] = []

    def read() -> None:
        barrier.wait()
        record = engine.get(accounts, 1)
        found.append(None if record is None else record["balance"])

    barrier = threading.Barrier(int(threads) + 1)
    readers = [threading.Thread(target=read) for _ in range(int(threads))]
    for reader in readers:
        reader.start()
    print("ready", flush=True)
    sys.stdin.readline()
    barrier.wait()
    for reader in readers:
        reader.join()
    engine.close()
    print(json.dumps({"found": found, "queries": len(queries)}), flush=True)


if __name__ == "__main__":
    main()
