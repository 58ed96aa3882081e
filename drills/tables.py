"""The tables that a drill writes to. What each is for stands beside it; ``checkers`` knows how to read them."""

import sqlalchemy as sa

__all__ = ["TABLES", "accounts", "counters", "guardians", "lists", "metadata", "probes", "records", "sets", "wards"]

metadata = sa.MetaData()

sets = sa.Table(
    "wb_drill_sets",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("op", sa.BigInteger, nullable=False),
    comment="One row for each operation that inserts; no unique key but the database's own: a row written twice stays.",
)

lists = sa.Table(
    "wb_drill_lists",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("list", sa.BigInteger, nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    comment="Lists that only grow, each in one partition: what SQL has of one is a beginning of it, at any moment.",
    info={"writebehind": {"partition_by": "list"}},
)

counters = sa.Table(
    "wb_drill_counters",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("n", sa.BigInteger, nullable=False, default=0),
    comment="Sums of increments.",
)

records = sa.Table(
    "wb_drill_records",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("born", sa.BigInteger, nullable=False),
    comment="Put, patched, deleted: the version is that of the last write, born that of the last put.",
)

accounts = sa.Table(
    "wb_drill_accounts",
    metadata,
    sa.Column("bank", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("account", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("balance", sa.BigInteger, nullable=False),
    comment="Money that atomic groups move about inside a bank: each bank's sum never changes.",
    info={"writebehind": {"partition_by": "bank"}},
)

probes = sa.Table(
    "wb_drill_probes",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("beat", sa.BigInteger, nullable=False),
    comment="One record in each partition, by which the drill sees whether the partition is served.",
)

guardians = sa.Table(
    "wb_drill_guardians",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    comment="The parents of wards.",
)

wards = sa.Table(
    "wb_drill_wards",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("code", sa.BigInteger, nullable=False, unique=True),
    sa.Column("level", sa.Integer, sa.CheckConstraint("level >= 0"), nullable=False),
    sa.Column("guardian", sa.ForeignKey("wb_drill_guardians.id")),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("steps", sa.Integer, nullable=False),
    comment="Rows that SQL refuses in several ways: what of them is set aside and what is not, stories say.",
)

TABLES = (sets, lists, counters, records, accounts, probes, guardians, wards)
"""All of them, as ``WriteBehind`` wants them."""
