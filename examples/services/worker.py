"""Readings of sensors, from lines ``SENSOR,SECOND,VALUE``: ``python -m writebehind.examples.services.worker FILE``.

Ended or killed at any moment and started again, it goes on where it was. After a kill the lines of one batch may be
written once more: the same records with the same values.
"""

import itertools
import json
import signal
import sys
from os import environ
from pathlib import Path

import sqlalchemy as sa

from writebehind.engine import WriteBehind
from writebehind.flushers import status

metadata = sa.MetaData()
readings = sa.Table(
    "readings",
    metadata,
    sa.Column("sensor", sa.String(20), primary_key=True),
    sa.Column("second", sa.BigInteger, primary_key=True),
    sa.Column("value", sa.Float),
)
name, lines = sa.Column("file", sa.String(100), primary_key=True), sa.Column("lines", sa.BigInteger, default=0)
imports = sa.Table("imports", metadata, name, lines)
tables = [readings, imports]
wb = WriteBehind(redis=environ["REDIS_URL"], database=environ["DATABASE_URL"], tables=tables, namespace="plant")
stopped: list[int] = []


def work(path: Path) -> int:
    """Write what is left of a file, until its end or SIGTERM; return how many of its lines are written."""
    done = int((wb.get(imports, path.name) or {"lines": 0})["lines"])
    with path.open() as file:
        left = itertools.islice(file, done, None)
        while not stopped and (some := list(itertools.islice(left, 1000))):
            with wb.batch() as batch:
                for line in some:
                    sensor, second, value = line.split(",")
                    batch.put(readings, {"sensor": sensor, "second": int(second), "value": float(value)})
            done += len(some)
            wb.put(imports, {"file": path.name, "lines": done})  # after the lines: never ahead of them
    return done


def main() -> None:
    """Work; print how far it came, and what is on its way to SQL."""
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    with wb:
        done, found = work(Path(sys.argv[1])), status(wb)
    print(json.dumps({"lines": done, "backlog": found.backlog, "lag_seconds": found.lag_seconds}))


if __name__ == "__main__":
    main()
