"""Faults of one Redis: killed, without power, full, its disk full, its scripts or everything in it gone."""

import time
from collections.abc import Callable
from pathlib import Path

import redis as redis_client

from writebehind.drills import journal
from writebehind.drills.fault import Fault, Need
from writebehind.drills.forecast import power_loss_seconds
from writebehind.drills.journal import Acknowledged
from writebehind.drills.redis_servers import OwnRedis
from writebehind.drills.stage import Stage
from writebehind.engine.errors import TransientError, WriteBehindError
from writebehind.flushers import status

__all__ = ["DISK_FULL", "EMPTIED", "FULL", "KILLED", "POWER_LOSS", "POWER_LOSS_WITH_SERVICE", "SCRIPTS_GONE"]

DOWN_SECONDS = (0.1, 0.6)
UNSYNCED_SECONDS = {"everysec": 1.0, "no": 2.0}
"""What a power loss takes: everysec, what was written since the last fsync; no, what the kernel has not written yet."""
SPARE_BYTES = 96 * 1024
FULL_SECONDS_MAX = 15.0
FULL_SECONDS = 0.5
LITTLE_SECONDS = 2.0
FLUSHES, FLUSH_PAUSE_SECONDS = 40, 0.02
POLL_SECONDS = 0.02
LAST_WORDS_SECONDS = 0.1


def killed(stage: Stage) -> None:
    """SIGKILL Redis and start it again; the kernel keeps what it was given."""
    redis = stage.own_redis()
    stage.hit("SIGKILL Redis")
    redis.server.kill()
    stage.load(stage.chance.uniform(*DOWN_SECONDS))
    redis.server.start()


def power_loss(stage: Stage) -> None:
    """Kill Redis and cut its file to what an fsync had covered."""
    redis = stage.own_redis()
    sizes = _Sizes(redis, stage.plan.appendfsync)
    stage.hit("power loss of Redis")
    redis.server.kill()
    _cut(stage, redis, sizes)
    redis.server.start()


def power_loss_with_service(stage: Stage) -> None:
    """The same, and the service that could write it all again is gone too."""
    redis = stage.own_redis()
    sizes = _Sizes(redis, stage.plan.appendfsync)
    stage.incidents[-1].loss_seconds_max = power_loss_seconds(stage.app, stage.plan.level)
    stage.hit("power loss of Redis and service")
    redis.server.kill()
    stage.kill_service()
    _cut(stage, redis, sizes)
    redis.server.start()
    stage.start_service()
    stage.await_service()


class _Sizes:
    """How large the append-only file was, some time before the power goes."""

    def __init__(self, redis: OwnRedis, appendfsync: str) -> None:
        self.before = redis.append_only_file().stat().st_size
        time.sleep(UNSYNCED_SECONDS.get(appendfsync, 0.0))


def _cut(stage: Stage, redis: OwnRedis, sizes: _Sizes) -> None:
    """Cut the file as a power loss would: with ``always`` right behind the last acknowledged entry."""
    size = sizes.before
    if stage.plan.appendfsync == "always":
        time.sleep(LAST_WORDS_SECONDS)  # what was answered is on its way into the journal
        size = _end_of_acknowledged(redis.append_only_file(), stage.journals)
    cut = redis.cut(size)
    stage.hit(f"{cut} bytes cut off the file")


def _end_of_acknowledged(file: Path, journals: list[Path]) -> int:
    """Return where the transaction ends in the file that brought the last entry that anybody was told of."""
    content = file.read_bytes()
    last: dict[int, tuple[int, int]] = {}
    # Journals of other writers may be older than the one before them; and of two that are told at once, the entry that
    # came first may be told last.
    told = [line for line in journal.read(journals) if isinstance(line, Acknowledged)]
    for line in sorted(told, key=lambda line: line.at):
        epoch, sequence = last.get(line.partition, (0, 0))
        last[line.partition] = line.epoch, max(line.sequence, sequence if epoch == line.epoch else 0)
    ends = [0]
    for entry in (b"\r\n%d-%d\r\n" % at for at in last.values()):
        found = content.rfind(entry)
        end = content.find(b"EXEC\r\n", found)
        ends.append(end + len(b"EXEC\r\n") if found >= 0 and end >= 0 else len(content))
    return max(ends)


def full(stage: Stage) -> None:
    """Let Redis run out of memory under load; what it holds must be flushed all the same."""
    redis = stage.own_redis()
    with redis.client() as client:
        used = int(client.info("memory")["used_memory"])
        stage.hit("Redis may take no more memory")
        client.config_set("maxmemory", used // 2)
        _await(lambda: _refuses(client, redis_client.exceptions.OutOfMemoryError), "Redis is not full")
        _await(lambda: _drained(stage), "a full Redis is not drained")
        stage.hit("drained while full; a little memory")
        client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + SPARE_BYTES)
        stage.load(LITTLE_SECONDS)
        stage.hit("memory enough again")
        client.config_set("maxmemory", 0)


def disk_full(stage: Stage) -> None:
    """Let Redis's file grow no further: it refuses writes, or ends itself under ``always``."""
    redis = stage.own_redis()
    if redis.followed:
        # Seen on Redis 7.0.15, 8.2.3 and Valkey 8.1.8: a former replica remembers a wrong length of its file, to which
        # it cuts a write that failed half way; zeros are left in the file, with which no server starts again.
        redis.restart()
        stage.recover()
        stage.incidents[-1].recovered = None
    size = redis.append_only_file().stat().st_size
    stage.hit("Redis's disk is full")
    redis.limit_files(size + SPARE_BYTES)
    _await(lambda: not redis.server.running or _disk_refuses(redis), "Redis goes on writing")
    stage.load(FULL_SECONDS)
    if redis.server.running:
        redis.limit_files(None)
    else:
        stage.hit("Redis ended; started on a disk with room")
        redis.server.start()


def scripts_gone(stage: Stage) -> None:
    """SCRIPT FLUSH again and again while batches are being written and settled."""
    with stage.own_redis().client() as client:
        stage.hit("SCRIPT FLUSH")
        for _ in range(FLUSHES):
            client.script_flush()
            time.sleep(FLUSH_PAUSE_SECONDS)


def emptied(stage: Stage) -> None:
    """FLUSHALL under load."""
    with stage.own_redis().client() as client:
        stage.hit("FLUSHALL")
        client.flushall()


def _refuses(client: redis_client.Redis, kind: type[Exception]) -> bool:
    try:
        client.set("wb:drill:full", b"x")
        client.delete("wb:drill:full")
    except kind:
        return True
    return False


def _disk_refuses(redis: OwnRedis) -> bool:
    try:
        with redis.client() as client:
            client.set("wb:drill:full", b"x")
            client.delete("wb:drill:full")
    except redis_client.RedisError:
        return True
    return False


def _drained(stage: Stage) -> bool:
    try:
        return status(stage.app).backlog == 0
    except WriteBehindError:
        return False


def _await(condition: Callable[[], bool], failure: str) -> None:
    deadline = time.monotonic() + FULL_SECONDS_MAX
    while not condition():
        if time.monotonic() > deadline:
            raise TransientError(failure, "look at the servers' logs")
        time.sleep(POLL_SECONDS)


OWN = frozenset({Need.OWN_REDIS})
KILLED = Fault(name="redis-sigkill", summary="Redis is killed (SIGKILL) and started again", strike=killed, needs=OWN)
POWER_LOSS = Fault(
    name="redis-power-loss",
    summary="Redis loses power: its file is cut to what an fsync had covered; the service lives",
    strike=power_loss,
    needs=OWN,
)
POWER_LOSS_WITH_SERVICE = Fault(
    name="redis-and-service-power-loss",
    summary="Redis and the service lose power together",
    strike=power_loss_with_service,
    needs=OWN,
    appendfsync=("always", "everysec"),
)
FULL = Fault(name="redis-full", summary="Redis runs out of memory (maxmemory, noeviction)", strike=full, needs=OWN)
DISK_FULL = Fault(
    name="redis-disk-full", summary="Redis's disk is full: its append-only file grows no more", strike=disk_full,
    needs=OWN,
)  # fmt: skip
SCRIPTS_GONE = Fault(
    name="script-flush", summary="SCRIPT FLUSH, again and again, in mid-batch", strike=scripts_gone, needs=OWN
)
EMPTIED = Fault(name="flushall", summary="FLUSHALL while entries wait to be flushed", strike=emptied, needs=OWN)
