"""What is written: one table of six columns, and streams of keys, the same for the same seed."""

import itertools
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

__all__ = ["DISTRIBUTIONS", "account_table", "keys_of", "record"]

DISTRIBUTIONS = ("uniform", "zipf")
ZIPF_EXPONENT = 1.1
MADE_AT = datetime(2025, 1, 1, tzinfo=UTC)


def account_table(name: str, *more: sa.schema.SchemaItem) -> sa.Table:
    """Return a table with a whole number as its key, five columns of the usual kinds, and what else is given."""
    return sa.Table(
        name,
        sa.MetaData(),
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("owner", sa.String(80), nullable=False),
        sa.Column("email", sa.String(120)),
        sa.Column("balance", sa.BigInteger, nullable=False),
        sa.Column("score", sa.Double, nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        *more,
    )


def record(key: int, number: int) -> dict[str, Any]:
    """Return the record of a key as its ``number``-th write has it."""
    return {
        "id": key,
        "owner": f"owner of account {key}",
        "email": f"account-{key}@example.org",
        "balance": number,
        "score": number / 7,
        "updated_at": MADE_AT,
    }


def keys_of(distribution: str, entries: int, seed: int) -> Iterator[int]:
    """Yield one key for each entry, of as many keys as there are entries.

    Args:
        distribution: ``sequential``: each key once; ``uniform``; or ``zipf``: the n-th most frequent key has a share
            in proportion to 1 / n^1.1.
        entries: how many.
        seed: the same one yields the same keys.
    """
    if distribution == "sequential":
        return iter(range(entries))
    rng = random.Random(seed)
    if distribution == "uniform":
        return (rng.randrange(entries) for _ in range(entries))
    weights = itertools.accumulate((rank + 1) ** -ZIPF_EXPONENT for rank in range(entries))
    ranks = rng.choices(range(entries), cum_weights=list(weights), k=entries)
    # Frequent keys are not neighbours: they lie anywhere in the table.
    places = rng.sample(range(entries), entries)
    return (places[rank] for rank in ranks)
