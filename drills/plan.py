"""Plans: everything that is decided before a drill begins."""

from collections.abc import Sequence
from dataclasses import dataclass

from writebehind.drills.fault import Fault, Need
from writebehind.engine import Durability

__all__ = ["Plan"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is played, on which servers.

    Attributes:
        name: of the drill.
        summary: what happens, in one line.
        promise: what must hold.
        faults: what happens, in this order.
        seed: decides about moments and victims, as far as a seed can.
        replay: the command that plays it again.
        redis_kind: the make of the drill's own Redis.
        sql_kind: the kind of the drill's own database.
        appendfsync: the fsync policy of the drill's own Redis.
        level: durability level of the writes.
        rate: operations a second that the service tries.
        load_seconds: how long it writes before each fault, and after the last.
        redis_url, database_url: the user's own servers.
        namespace: to be used on them, instead of one that nobody else has.
        also_needs: what the faults do not need, and the plan has all the same.
        replace: drop tables of the drills' names even where they have rows.
    """

    name: str
    summary: str
    promise: str
    faults: Sequence[Fault]
    seed: int
    replay: str
    redis_kind: str | None = None
    sql_kind: str = "sqlite"
    appendfsync: str = "everysec"
    level: Durability = Durability.ACCEPTED
    rate: float = 1_500.0
    load_seconds: float = 2.0
    redis_url: str | None = None
    database_url: str | None = None
    namespace: str | None = None
    replace: bool = False
    also_needs: frozenset[Need] = frozenset()

    @property
    def needs(self) -> frozenset[Need]:
        """What its servers must allow."""
        return self.also_needs.union(*(fault.needs for fault in self.faults))

    @property
    def redis_settings(self) -> dict[str, str | int]:
        """What redis.conf has to say."""
        return {"appendfsync": self.appendfsync}
