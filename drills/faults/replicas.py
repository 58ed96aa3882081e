"""Faults of a Redis with a replica: promoted although it lags, and two primaries at a time."""

from writebehind.drills.fault import Fault, Need
from writebehind.drills.journal import Journal
from writebehind.drills.lines import FLUSHERS, PROBE, SERVICE, Lines
from writebehind.drills.redis_servers import OwnRedis
from writebehind.drills.stage import Stage
from writebehind.drills.workload import Workload
from writebehind.engine.errors import ConfigurationError

__all__ = ["FAILOVER", "SPLIT_BRAIN"]

LAG_SECONDS = (0.2, 0.7)
SPLIT_SECONDS = 0.8
OTHER_SIDE_WRITES = 150


def failover(stage: Stage) -> None:
    """Cut the replica's link, promote it a while later, and kill the primary; it comes back as the replica."""
    old, new, link, lines = _pair(stage)
    stage.hit("the replica's link is cut")
    link["link"].refuse()
    stage.load(stage.chance.uniform(*LAG_SECONDS))
    stage.hit("the lagging replica is promoted, the primary killed")
    new.promote()
    lines.retarget(new.port)
    old.server.kill()
    _swap(stage, old, new)
    old.server.start()
    _rejoin(old, new, link)


def split_brain(stage: Stage) -> None:
    """Promote the replica while the primary lives: each has half the clients until the old one has to follow."""
    old, new, link, lines = _pair(stage)
    stage.hit("the replica's link is cut")
    link["link"].refuse()
    stage.load(stage.chance.uniform(*LAG_SECONDS))
    stage.hit("two primaries")
    new.promote()
    lines.retarget(new.port, (PROBE, FLUSHERS[1]))
    path = stage.directory / f"service-{len(stage.journals) + 1}.jsonl"
    stage.journals.append(path)
    with Journal(path) as journal:
        other_side = Workload(stage.app, journal, run=len(stage.journals), thread=0, seed=stage.plan.seed)
        for _ in range(OTHER_SIDE_WRITES):
            other_side.write_one()
        journal.end()
    stage.load(SPLIT_SECONDS)
    stage.hit("the old primary has to follow")
    lines.retarget(new.port, (SERVICE, FLUSHERS[0]))
    _swap(stage, old, new)
    _rejoin(old, new, link)


def _pair(stage: Stage) -> tuple[OwnRedis, OwnRedis, Lines, Lines]:
    if stage.replica is None or stage.link is None or stage.redis_lines is None:
        raise ConfigurationError("this drill has no replica", "it is a mistake in the drill itself")
    stage.replica.await_link()  # an earlier fault may have cost the primary its file
    return stage.own_redis(), stage.replica, stage.link, stage.redis_lines


def _swap(stage: Stage, old: OwnRedis, new: OwnRedis) -> None:
    stage.redis, stage.replica = new, old


def _rejoin(old: OwnRedis, new: OwnRedis, link: Lines) -> None:
    link.retarget(new.port, ("link",))
    old.follow("127.0.0.1", link["link"].port)


NEEDS = frozenset({Need.OWN_REDIS, Need.REPLICA, Need.REDIS_LINE})
FAILOVER = Fault(
    name="failover",
    summary="a replica whose link was cut is promoted, the primary is killed",
    strike=failover,
    needs=NEEDS,
)
SPLIT_BRAIN = Fault(
    name="split-brain",
    summary="two primaries take writes until one has to follow the other, which discards what it took",
    strike=split_brain,
    needs=NEEDS,
)
