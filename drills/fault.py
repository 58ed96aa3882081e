"""What a fault is, and what it needs."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from writebehind.drills.sql_servers import SQL_KINDS

if TYPE_CHECKING:
    from writebehind.drills.stage import Stage

__all__ = ["Fault", "Need"]


class Need(StrEnum):
    """What a fault needs of the servers, in words for whoever has not got it."""

    OWN_REDIS = "kills or reconfigures Redis: needs embedded servers"
    REPLICA = "needs a Redis with a replica: needs embedded servers"
    OWN_SQL = "kills or rolls back the database: needs embedded servers"
    REDIS_LINE = "speaks to Redis through a proxy, so by plain TCP"
    SQL_LINE = "speaks to the database through a proxy, so by plain TCP"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Something that happens to real processes, servers or connections.

    Attributes:
        name: short, unique.
        summary: what happens, in one line.
        strike: makes it happen and mends it: on return the servers are as they should be, the product may not be yet.
        needs: what the servers must allow.
        sql: on which databases it can happen.
        appendfsync: under which of Redis's policies it is worth while; all where empty.
    """

    name: str
    summary: str
    strike: "Callable[[Stage], None]"
    needs: frozenset[Need] = frozenset()
    sql: tuple[str, ...] = SQL_KINDS
    appendfsync: tuple[str, ...] = ()
