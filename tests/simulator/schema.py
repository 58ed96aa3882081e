"""The tables of all histories."""

from typing import Any

import sqlalchemy as sa

from writebehind.engine.adapters.declaration import DeclaredTable, declare

__all__ = ["TABLES", "accounts", "counters", "declared_of", "events", "orders"]

metadata = sa.MetaData()
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("owner", sa.String(20), nullable=False),
    sa.Column("balance", sa.BigInteger, nullable=False, default=0),
    sa.Column("note", sa.Text),
)
counters = sa.Table(
    "counters",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("hits", sa.BigInteger, nullable=False, default=0),
    sa.Column("note", sa.Text),
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String(20), nullable=False),
)
orders = sa.Table(
    "orders",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("account", sa.ForeignKey("accounts.id"), nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False, default=0),
    sa.Column("note", sa.Text),
)
"""Written only where SQL refuses rows."""

TABLES: dict[str, DeclaredTable] = {
    table.name: declare(table, "postgresql") for table in (accounts, counters, events, orders)
}
"""Declared once: a declaration costs more than a history's writes."""


def declared_of(table: Any, _dialect: str, **_: Any) -> DeclaredTable:
    """Stand for ``declare``."""
    return TABLES[table.name]
