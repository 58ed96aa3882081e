"""What the facts of a Redis mean, but for its disk: version, role, permissions, memory, replicas, clock.

Each rule looks at one thing and returns one finding, or None where the thing does not arise.
"""

from collections.abc import Callable
from typing import Final

from writebehind.engine.core.advisory_rules import advisories
from writebehind.engine.core.facts import RedisFacts
from writebehind.engine.core.finding import Finding, Severity, ask

__all__ = ["REDIS_RULES", "eviction_policy", "redis_role", "redis_version", "replicas"]

OLDEST: Final = (7, 0)
MEMORY_SHARE_MAX: Final = 0.8
BUSY_MILLISECONDS_MIN: Final = 1000
CLOCK_SECONDS_MAX: Final = 1.0
REPLICA_LAG_SECONDS_MAX: Final = 5


def redis_version(redis: RedisFacts) -> Finding:
    """Entry IDs need the Redis of 2022."""
    code = "redis-version"
    if redis.compatible is None:
        return Finding(
            code, Severity.UNKNOWN, "Redis does not tell its version.", "It has to be 7.0 or newer.",
            ask("the version", "INFO"),
        )  # fmt: skip
    named = f"{redis.product or 'Redis'} {'.'.join(map(str, redis.version or redis.compatible))}"
    if redis.compatible < OLDEST:
        return Finding(
            code, Severity.FAILURE, f"The server is {named}.",
            "Before Redis 7.0 a stream cannot number entries inside an epoch: nothing can be written.",
            "upgrade to Redis 7.0 or newer, or to Valkey",
        )  # fmt: skip
    return Finding(code, Severity.OK, f"The server is {named}.", "It has everything that the log needs.")


def redis_role(redis: RedisFacts) -> Finding:
    """Only a primary takes writes."""
    code = "redis-role"
    if redis.role is None:
        return Finding(
            code, Severity.UNKNOWN, "Redis does not tell whether it is a primary.", "A replica cannot be written to.",
            ask("the role", "INFO"),
        )  # fmt: skip
    if redis.role != "master":
        return Finding(
            code, Severity.FAILURE, f"{redis.address or 'The server'} is a replica.",
            "It refuses writes, and what it shows may be old.",
            "give the URL of the primary, or a client made by redis.Sentinel.master_for, which follows it",
        )  # fmt: skip
    return Finding(code, Severity.OK, "The server is a primary.", "It takes writes.")


def _identity(redis: RedisFacts) -> Finding:
    code = "redis-identity"
    if redis.identified:
        return Finding(code, Severity.OK, "Redis tells its run ID.", "A restart and a failover are noticed.")
    return Finding(
        code, Severity.FAILURE, "Redis does not tell its run_id and master_replid.",
        "Without them a failover cannot be told from normal service, so nothing is written.",
        "allow the user INFO: ACL SETUSER <user> +info",
    )  # fmt: skip


def _cluster(redis: RedisFacts) -> Finding | None:
    if redis.cluster is None:
        return Finding(
            "cluster-mode", Severity.UNKNOWN, "Redis does not tell whether it runs in cluster mode.",
            "Redis Cluster is not supported.", ask("cluster-enabled", "INFO"),
        )  # fmt: skip
    if not redis.cluster:
        return None
    return Finding(
        "cluster-mode", Severity.FAILURE, "The server runs in cluster mode.",
        "The client side of Redis Cluster is not there yet: partitions on other nodes cannot be reached.",
        "use a Redis with cluster-enabled no",
    )  # fmt: skip


def _permissions(redis: RedisFacts) -> Finding:
    code = "permissions"
    if redis.denied is None:
        return Finding(
            code, Severity.UNKNOWN, "It could not be found out what this user may do.",
            "A script that is denied a command half way leaves a part of a write behind.",
            "allow the user ACL|WHOAMI and ACL|DRYRUN, or MULTI and DISCARD",
        )  # fmt: skip
    if not redis.denied:
        return Finding(code, Severity.OK, "The user may run every command of the product.", "No write stops half way.")
    places = "~wb:* &wb:*" if {"PUBLISH", "SUBSCRIBE"} & set(redis.denied) else "~wb:*"
    allowed = " ".join(f"+{command.lower()}" for command in redis.denied)
    return Finding(
        code, Severity.FAILURE, f"The user may not run {', '.join(redis.denied)} in the namespace.",
        "A script that is denied a command half way leaves a part of a write behind, and flushers cannot work.",
        f"ACL SETUSER <user> {places} {allowed}",
    )  # fmt: skip


def eviction_policy(redis: RedisFacts) -> Finding:
    """The log must never be evicted."""
    code = "eviction-policy"
    policy = redis.eviction_policy
    if policy is None:
        return Finding(
            code, Severity.UNKNOWN, "Redis does not tell its maxmemory-policy.",
            "One that begins with allkeys would evict accepted writes that are not in SQL yet.",
            ask("maxmemory-policy", "INFO or CONFIG|GET"),
        )  # fmt: skip
    if policy.startswith("allkeys"):
        return Finding(
            code, Severity.FAILURE, f"maxmemory-policy is {policy}.",
            "A full Redis evicts any key, the log too: accepted writes vanish before SQL has them, without any fault.",
            "CONFIG SET maxmemory-policy noeviction, and the same in redis.conf",
        )  # fmt: skip
    means = "The log is never evicted; " + (
        "a full Redis refuses new writes." if policy == "noeviction" else "only records that SQL has can be."
    )
    return Finding(code, Severity.OK, f"maxmemory-policy is {policy}.", means)


def _memory(redis: RedisFacts) -> Finding:
    code = "memory-limit"
    limit, used = redis.memory_max_bytes, redis.memory_used_bytes
    if limit is None or used is None:
        return Finding(
            code, Severity.UNKNOWN, "Redis does not tell how much memory it may use.",
            "When it is full, new writes are refused.", ask("maxmemory", "INFO"),
        )  # fmt: skip
    if limit == 0:
        return Finding(
            code, Severity.NOTE, "maxmemory is 0: there is no limit.",
            "A long backlog grows until the kernel ends Redis; with a limit it would refuse new writes instead.",
            "CONFIG SET maxmemory <bytes, well below the machine's memory>",
        )  # fmt: skip
    share = used / limit
    what = f"Redis uses {share:.0%} of maxmemory, {used / 2**20:,.0f} of {limit / 2**20:,.0f} MiB."
    if share < MEMORY_SHARE_MAX:
        return Finding(code, Severity.OK, what, "There is room for a backlog.")
    return Finding(
        code, Severity.WARNING, what,
        "When it is full, new writes are refused before they have any effect; flushing goes on and makes room.",
        "CONFIG SET maxmemory <more>; look at the backlog in 'writebehind status'",
    )  # fmt: skip


def replicas(redis: RedisFacts, wanted: int) -> Finding:
    """What is left when the host is gone, and whether REPLICATED can be had.

    Args:
        redis: the server.
        wanted: how many replicas the level needs.
    """
    code = "replicas"
    if redis.replicas is None:
        return Finding(
            code, Severity.UNKNOWN, "Redis does not tell its replicas.",
            "Without one, the loss of its host takes everything that SQL does not have.", ask("replicas", "INFO"),
        )  # fmt: skip
    online = [replica for replica in redis.replicas if replica.online]
    if len(online) < wanted:
        return Finding(
            code, Severity.FAILURE, f"Redis has {len(online)} replicas and REPLICATED needs {wanted}.",
            "The level is refused.", "attach replicas, or ask for FSYNCED",
        )  # fmt: skip
    if not online:
        gone = "; it had one not long ago" if redis.had_replicas else ""
        return Finding(
            code, Severity.WARNING if redis.had_replicas else Severity.NOTE, f"Redis has no replica{gone}.",
            "The loss of its host takes everything that SQL does not have.",
            "attach a replica, or see that the backlog stays short",
        )  # fmt: skip
    lag = max(replica.lag_seconds for replica in online)
    behind = max(replica.behind_bytes for replica in online)
    what = f"Redis has {len(online)} replicas, the last {lag} s and {behind:,} bytes behind."
    if lag > REPLICA_LAG_SECONDS_MAX:
        return Finding(
            code, Severity.WARNING, what, "A failover to that one takes what it does not have.",
            "see its log and its network; INFO replication shows master_link_status there",
        )  # fmt: skip
    return Finding(code, Severity.OK, what, "A failover takes what the promoted one does not have.")


def _split_brain(redis: RedisFacts) -> Finding | None:
    code = "split-brain"
    if not redis.replicas and not redis.had_replicas:
        return None
    if redis.replicas_min is None or redis.replicas_max_lag_seconds is None:
        return Finding(
            code, Severity.UNKNOWN, "Redis does not tell its min-replicas-to-write.",
            "Without it a primary that is cut off goes on accepting writes that are thrown away later.",
            ask("min-replicas-to-write", "CONFIG|GET"),
        )  # fmt: skip
    if redis.replicas_min and redis.replicas_max_lag_seconds:
        return Finding(
            code, Severity.OK,
            f"Redis stops accepting writes when fewer than {redis.replicas_min} replicas answered within "
            f"{redis.replicas_max_lag_seconds} s.", "That bounds what a failover can take.",
        )  # fmt: skip
    return Finding(
        code, Severity.WARNING, "min-replicas-to-write is 0.",
        "A primary that is cut off from its replicas goes on accepting writes, which are thrown away when it rejoins.",
        "CONFIG SET min-replicas-to-write 1 and min-replicas-max-lag 10, and the same in redis.conf",
    )  # fmt: skip


def _empty_primary(redis: RedisFacts) -> Finding | None:
    if redis.appendonly is not False or not redis.replicas:
        return None
    if redis.snapshots is None:
        return Finding(
            "empty-primary", Severity.UNKNOWN, "Redis does not tell whether it keeps snapshots.",
            "A primary that restarts empty empties its replicas too.", ask("save", "CONFIG|GET"),
        )  # fmt: skip
    if redis.snapshots:
        return Finding(
            "empty-primary", Severity.WARNING, "A primary with replicas keeps snapshots only.",
            "When it restarts before a failover, it and its replicas go back to the last snapshot.",
            "CONFIG SET appendonly yes, and the same in redis.conf",
        )  # fmt: skip
    return Finding(
        "empty-primary", Severity.FAILURE, "A primary with replicas keeps nothing on disk.",
        "When it restarts before a failover, it is empty and its replicas empty themselves too.",
        "CONFIG SET appendonly yes, and the same in redis.conf; or do not restart it automatically",
    )  # fmt: skip


def _busy(redis: RedisFacts) -> Finding | None:
    threshold = redis.busy_milliseconds
    if threshold is None:
        return Finding(
            "busy-threshold", Severity.UNKNOWN, "Redis does not tell its busy-reply-threshold.",
            "A script that runs for longer makes Redis refuse all clients.",
            ask("busy-reply-threshold", "CONFIG|GET"),
        )  # fmt: skip
    if threshold <= 0 or threshold >= BUSY_MILLISECONDS_MIN:
        return Finding(
            "busy-threshold", Severity.OK, f"busy-reply-threshold is {threshold} ms.", "No call comes near it."
        )
    return Finding(
        "busy-threshold", Severity.WARNING, f"busy-reply-threshold is {threshold} ms.",
        "A long call makes Redis refuse all clients, and Sentinel may begin a failover.",
        "CONFIG SET busy-reply-threshold 5000, and the same in redis.conf",
    )  # fmt: skip


def _clock(redis: RedisFacts) -> Finding | None:
    ahead = redis.clock_ahead_seconds
    if ahead is None:
        return None
    what = f"Redis's clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this machine's."
    if abs(ahead) <= CLOCK_SECONDS_MAX:
        return Finding("redis-clock", Severity.OK, what, "Lag is shown rightly.")
    return Finding(
        "redis-clock", Severity.WARNING, what,
        "Order and exactly-once do not rest on clocks; the lag that is shown and the ages of entries are wrong by it.",
        "synchronise the clocks (chrony, ntpd)",
    )  # fmt: skip


REDIS_RULES: Final[tuple[Callable[[RedisFacts], Finding | None], ...]] = (
    redis_version,
    advisories,
    redis_role,
    _identity,
    _cluster,
    _permissions,
    eviction_policy,
    _memory,
    _split_brain,
    _empty_primary,
    _busy,
    _clock,
)
