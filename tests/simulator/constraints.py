"""What the model of SQL refuses: two CHECK constraints, and a foreign key between records of different partitions."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

__all__ = ["BAD", "HITS_MAX", "Constraints", "Refused", "refused"]

BAD = "bad"
"""No note and no kind may begin with it."""

HITS_MAX = 1_000_000
"""As many hits a counter may have at the most."""

Row = dict[str, Any]


class Refused(Exception):
    """What a driver raises for a row that is refused.

    Attributes:
        sqlstate: 23505 for a key that is taken, 23514 for a CHECK, 23503 for a foreign key.
    """

    def __init__(self, sqlstate: str, text: str) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


def refused(sqlstate: str, text: str) -> sa.exc.IntegrityError:
    """Return the error as SQLAlchemy raises it."""
    return sa.exc.IntegrityError("statement", {}, Refused(sqlstate, text))


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """The constraints of one history.

    Attributes:
        asked_first: a bulk path finds the puts that a CHECK refuses, and writes the others.
        deferred: foreign keys are checked by the commit.
    """

    asked_first: bool = False
    deferred: bool = False

    @staticmethod
    def check(table: str, row: Row) -> str | None:
        """Return the CHECK constraint that refuses a row, or None."""
        for name in ("note", "kind"):
            if str(row.get(name) or "").startswith(BAD):
                return f"{table}_{name}"
        return f"{table}_hits" if (row.get("hits") or 0) > HITS_MAX else None

    @staticmethod
    def orphan(
        changed: Iterable[tuple[str, str]],
        row: Callable[[str, str], Row | None],
        rows: Callable[[str], Mapping[str, Row]],
    ) -> str | None:
        """Return what refuses some changed records for want of a parent, or None.

        Args:
            changed: table and key of what was written or deleted.
            row: returns a row, or None.
            rows: returns all rows of a table.
        """
        for table, key in changed:
            if table == "orders":
                order = row(table, key)
                if order is not None and row("accounts", str(order["account"])) is None:
                    return f"order {key} has no account {order['account']}"
            elif (
                table == "accounts"
                and row(table, key) is None
                and any(str(order["account"]) == key for order in rows("orders").values())
            ):
                return f"account {key} has orders"
        return None
