"""The campaign: rounds of random faults on random servers, under load, for as long as told.

Each round has servers of its own (databases are kept running, and given an empty database), one load, several faults
one after the other, and all checkers in the end. Everything that chance decides in a round, its own seed decides:
round ``n`` of a campaign with seed ``s`` is the first round of one with seed ``s + n``.
"""

import contextlib
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from writebehind.drills.fault import Fault, Need
from writebehind.drills.faults import flushers, network, redis, replicas, rows, schema, service, sql
from writebehind.drills.plan import Plan
from writebehind.drills.redis_servers import REDIS_KINDS
from writebehind.drills.result import Result
from writebehind.drills.runner import play
from writebehind.drills.sql_servers import SQL_KINDS, SqlServer, can_have, own_sql
from writebehind.engine import Durability
from writebehind.engine.errors import ConfigurationError

__all__ = ["FAULTS", "Combination", "campaign", "plan_round"]

FAULTS: Sequence[Fault] = (
    flushers.KILLED,
    *flushers.KILLED_AT_EACH_STEP,
    flushers.KILLED_IN_RECOVERY,
    flushers.ZOMBIE,
    flushers.ZOMBIE_IN_TRANSACTION,
    service.KILLED,
    redis.KILLED,
    redis.POWER_LOSS,
    redis.POWER_LOSS_WITH_SERVICE,
    redis.FULL,
    redis.DISK_FULL,
    redis.SCRIPTS_GONE,
    redis.EMPTIED,
    replicas.FAILOVER,
    replicas.SPLIT_BRAIN,
    sql.KILLED,
    sql.COMMIT_CUT_BEFORE,
    sql.COMMIT_CUT_AFTER,
    sql.ROLLED_BACK,
    sql.DEADLOCK,
    sql.LOCK_TIMEOUT,
    rows.REFUSED,
    schema.DRIFTED,
    network.REDIS_CUT,
    network.REDIS_SLOW,
    network.REDIS_HALF_OPEN,
    network.SQL_CUT,
    network.SQL_SLOW,
    network.SQL_HALF_OPEN,
)
"""What may happen."""

ROUND_FAULTS = 20
FAULT_SECONDS = 2.5
"""About as long as one takes, its share of the round's beginning and end included."""
LOAD_SECONDS = 0.3
RATE = 800.0
POLICIES = ("always", "everysec", "no")


@dataclass(frozen=True, slots=True)
class Combination:
    """The servers of a round."""

    redis: str
    sql: str


def campaign(
    *, faults: int, seconds: float, seed: int, rounds: int | None, done: Callable[[Result], None]
) -> list[Result]:
    """Play rounds until there were so many faults, or time is up.

    Args:
        faults: how many to inject.
        seconds: how long to go on at the most; a round that has begun is finished.
        seed: of the first round.
        rounds: how many rounds at the most; None for any number.
        done: called with each round's result.

    Raises:
        ConfigurationError: no server of one of the two kinds is to be had.
    """
    combinations = available()
    deadline = time.monotonic() + seconds
    results: list[Result] = []
    struck = 0
    with _databases() as databases:
        while struck < faults and time.monotonic() < deadline and (rounds is None or len(results) < rounds):
            wanted = min(ROUND_FAULTS, faults - struck, max(1, int((deadline - time.monotonic()) / FAULT_SECONDS)))
            plan = plan_round(seed + len(results), wanted, combinations)
            result = play(plan, databases(plan.sql_kind))
            results.append(result)
            struck += len(result.incidents)
            done(result)
            if not result.incidents:
                raise ConfigurationError(f"a round cannot be played: {result.reason}", "look at the servers")
    return results


def available() -> list[Combination]:
    """Return the combinations of servers that are to be had here.

    Raises:
        ConfigurationError: there is none.
    """
    makes = [kind for kind, find in REDIS_KINDS.items() if (binary := find()) is not None and binary.exists()]
    kinds = [kind for kind in SQL_KINDS if can_have(kind)]
    if not makes:
        raise ConfigurationError("no Redis server found", "install Redis, or pip install 'writebehind[embedded]'")
    return [Combination(make, kind) for make in makes for kind in kinds]


def plan_round(seed: int, faults: int, combinations: Sequence[Combination]) -> Plan:
    """Plan a round.

    Args:
        seed: decides about servers, settings, faults and moments.
        faults: how many; fewer are the first of more.
        combinations: servers to choose from.
    """
    chance = random.Random(f"round {seed}")  # noqa: S311 - decides about faults, not about secrets
    servers = combinations[seed % len(combinations)]  # all in turn, whatever the seed
    policy = chance.choice(POLICIES)
    possible = [
        fault for fault in FAULTS if servers.sql in fault.sql and (not fault.appendfsync or policy in fault.appendfsync)
    ]
    chosen: list[Fault] = []
    while len(chosen) < faults:
        chosen += chance.sample(possible, len(possible))
    return Plan(
        name=f"round-{seed}",
        summary=f"{faults} random faults under one load, appendfsync {policy}",
        promise="nothing acknowledged is lost while the service lives, nothing is doubled, order is kept",
        faults=chosen[:faults],
        seed=seed,
        replay=f"writebehind drill campaign --seed {seed} --rounds 1 --faults {faults}",
        redis_kind=servers.redis,
        sql_kind=servers.sql,
        appendfsync=policy,
        level=Durability.FSYNCED if policy == "always" else Durability.ACCEPTED,
        rate=RATE,
        load_seconds=LOAD_SECONDS,
        also_needs=frozenset({Need.REPLICA, Need.REDIS_LINE, Need.SQL_LINE}),
    )


@contextlib.contextmanager
def _databases() -> Iterator[Callable[[str], SqlServer]]:
    """Give a function that returns a database of a kind, empty each time, its server kept running."""
    running: dict[str, SqlServer] = {}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="writebehind-campaign-")))

        def database(kind: str) -> SqlServer:
            if kind in running:
                running[kind].renew()
            else:
                running[kind] = stack.enter_context(own_sql(kind, directory))
            return running[kind]

        yield database
