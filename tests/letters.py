"""Dead letters put into the database by hand, as a flusher would."""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from writebehind.engine import WriteBehind
from writebehind.engine.adapters.control_tables import dead_letters, now_ms
from writebehind.engine.core.partitioning import partition_of
from writebehind.engine.core.payload import Op, encode, encode_group

__all__ = ["damaged", "place_letter"]

Mutation = tuple[Op, str, str, Mapping[str, Any]]


def place_letter(
    app: WriteBehind,
    place: int,
    *mutations: Mutation,
    partition: int | None = None,
    failure: str = "poison",
    error: str = "CHECK constraint failed: balance_positive",
    retry_seconds: float = 0,
    ago_seconds: float = 0,
) -> int:
    """Put a letter into the database; return its partition: the first key's, unless another is given."""
    op, table, key, values = mutations[0]
    payload = encode(op, table, key, values) if len(mutations) == 1 else encode_group(mutations)
    number = partition_of(key, app.keys.partitions) if partition is None else partition
    _insert(app, (number, place), payload, (table, key), (failure, error, retry_seconds, ago_seconds))
    return number


def damaged(app: WriteBehind, place: int, partition: int, payload: bytes = b"\xff\x00nonsense") -> None:
    """Put a letter into the database that nobody can read."""
    _insert(app, (partition, place), payload, ("", ""), ("unreadable", "it is not in the wire format", 0, 0))


def _insert(
    app: WriteBehind,
    where: tuple[int, int],
    payload: bytes,
    about: tuple[str, str],
    trouble: tuple[str, str, float, float],
) -> None:
    failure, error, retry_seconds, ago_seconds = trouble
    with app.database.begin() as connection:
        connection.execute(
            sa.insert(dead_letters).values(
                namespace=app.keys.namespace,
                partition=where[0],
                place=where[1],
                entry_id=f"5-{where[1]}",
                mutation_id=f"0123456789a{where[1]}",
                table_name=about[0],
                record_key=about[1],
                payload=payload,
                failure=failure,
                error=error if failure else "",
                attempts=1 if failure else 0,
                made_ms=1_000,
                dead_ms=now_ms() - int(ago_seconds * 1000),
                retry_until_ms=now_ms() + int(retry_seconds * 1000) if retry_seconds else 0,
            )
        )
