"""What the facts of Redis's append-only file mean: what a restart and a power loss leave.

Each rule looks at one thing and returns one finding, or None where the thing does not arise. Numbers without a source
were measured on Redis 7.0.15, Redis 8.2.3 and Valkey 8.1.8.
"""

from collections.abc import Callable
from typing import Final, Protocol

from writebehind.engine.core.durability import Durability
from writebehind.engine.core.facts import RedisFacts
from writebehind.engine.core.finding import Finding, Severity, ask

__all__ = [
    "DISK_RULES",
    "LEVEL_RULES",
    "RECIPE",
    "append_only_file",
    "fsync_on_rewrite",
    "fsync_policy",
    "on_disk",
    "replay_drops",
    "script_replay",
]

RECIPE: Final = (
    "ACL SETUSER default off resetpass allkeys resetchannels nocommands +select +multi +exec +xadd +hset +hdel "
    "+hincrby +del +unlink +persist +pexpireat +xtrim +xdel +xgroup +xclaim +xack +zadd +zremrangebyrank +set"
)
"""Nobody can log in as ``default`` any more, and it keeps the permissions with which the append-only file is loaded."""


def on_disk(level: Durability) -> bool:
    """Tell whether a level rests on Redis's disk: PERSISTED rests on SQL alone."""
    return level in {Durability.FSYNCED, Durability.REPLICATED}


def append_only_file(redis: RedisFacts, *, rests: bool) -> Finding:
    """Without it a restart takes everything that SQL does not have."""
    code = "append-only-file"
    if redis.appendonly is None:
        return Finding(
            code, Severity.UNKNOWN, "Redis does not tell whether it keeps an append-only file.",
            "Without one its crash takes everything that SQL does not have.", ask("appendonly", "INFO or CONFIG|GET"),
        )  # fmt: skip
    if redis.appendonly:
        return Finding(code, Severity.OK, "Redis keeps an append-only file.", "It comes back with its data.")
    return Finding(
        code, Severity.FAILURE if rests else Severity.WARNING, "Redis keeps no append-only file.",
        "Its crash or restart takes every accepted write that SQL does not have.",
        "CONFIG SET appendonly yes, and the same in redis.conf; or ask for no more than ACCEPTED",
    )  # fmt: skip


def fsync_policy(redis: RedisFacts, *, rests: bool) -> Finding | None:
    """How much a power loss takes."""
    code = "fsync-policy"
    if redis.appendonly is False:
        return None
    if redis.appendfsync is None:
        return Finding(
            code, Severity.UNKNOWN, "Redis does not tell its appendfsync.",
            "Only 'always' has every write on disk before it is acknowledged.", ask("appendfsync", "CONFIG|GET"),
        )  # fmt: skip
    if redis.appendfsync == "always":
        return Finding(
            code, Severity.OK, "appendfsync is always.", "An acknowledged write is on disk: no crash of Redis takes it."
        )
    if redis.appendfsync == "everysec":
        return Finding(
            code, Severity.NOTE, "appendfsync is everysec.",
            "A power loss takes about the last second of acknowledged writes, more while the disk is slow.",
            "CONFIG SET appendfsync always, or wait for Durability.FSYNCED where a write matters",
        )  # fmt: skip
    return Finding(
        code, Severity.FAILURE if rests else Severity.WARNING,
        f"appendfsync is {redis.appendfsync}: Redis never calls fsync itself.",
        "A power loss takes what the kernel has not written yet, usually the last half minute.",
        "CONFIG SET appendfsync everysec (or always), and the same in redis.conf",
    )  # fmt: skip


def fsync_on_rewrite(redis: RedisFacts) -> Finding | None:
    """A rewrite must not switch fsync off: 2,000 of 2,000 acknowledged writes were lost so, under ``always``."""
    code = "fsync-on-rewrite"
    if redis.appendonly is False or redis.appendfsync == "no":
        return None
    if redis.fsync_pauses is None:
        return Finding(
            code, Severity.UNKNOWN, "Redis does not tell its no-appendfsync-on-rewrite.",
            "With 'yes' it calls no fsync while it writes a snapshot or a new append-only file.",
            ask("no-appendfsync-on-rewrite", "CONFIG|GET"),
        )  # fmt: skip
    if not redis.fsync_pauses:
        return Finding(code, Severity.OK, "no-appendfsync-on-rewrite is no.", "A rewrite does not interrupt fsync.")
    return Finding(
        code, Severity.FAILURE, "Redis skips fsync during a rewrite: no-appendfsync-on-rewrite is yes.",
        "A power loss during a snapshot, a rewrite or a replica's full synchronisation takes every write made since "
        f"that began, whatever appendfsync says{'; one is running now' if redis.rewriting else ''}.",
        "CONFIG SET no-appendfsync-on-rewrite no, and the same in redis.conf",
    )  # fmt: skip


def _fsync_confirmation(redis: RedisFacts, *, rests: bool) -> Finding | None:
    code = "fsync-confirmation"
    if redis.appendonly is False or redis.appendfsync in {"always", "no"} or redis.role == "slave":
        return None
    if redis.waitaof_waits is None:
        return Finding(
            code, Severity.UNKNOWN, "It could not be tried whether WAITAOF waits for an fsync.",
            "Unless it does, Durability.FSYNCED cannot be had under everysec.",
            "allow the user SET and WAITAOF, or CONFIG SET appendfsync always",
        )  # fmt: skip
    if redis.waitaof_waits:
        return Finding(
            code, Severity.OK, "WAITAOF waits for the fsync.", "FSYNCED can be had, at about a second a wait."
        )
    return Finding(
        code, Severity.FAILURE if rests else Severity.NOTE,
        "This server has no WAITAOF, or one that answers before the fsync.",
        "Durability.FSYNCED and REPLICATED are refused.",
        "CONFIG SET appendfsync always, or use Redis 7.4.3 or newer (Valkey 8.1 and 9.1 answer too early)",
    )  # fmt: skip


def _fsync_delays(redis: RedisFacts) -> Finding | None:
    code = "fsync-delays"
    if redis.appendonly is False or redis.appendfsync == "no":
        return None
    if redis.delayed_fsyncs is None:
        return Finding(
            code, Severity.UNKNOWN, "Redis does not tell whether fsync was ever delayed.",
            "A disk that stalls lengthens the loss window by as much.", ask("aof_delayed_fsync", "INFO"),
        )  # fmt: skip
    if redis.delayed_fsyncs == 0:
        return Finding(code, Severity.OK, "No fsync took longer than 2 s since Redis started.", "The disk keeps up.")
    return Finding(
        code, Severity.WARNING,
        f"{redis.delayed_fsyncs} times since Redis started, a write did not wait any longer for a slow fsync.",
        "While the disk stalls, a crash of the process takes up to 2 s of writes, a power loss all since before it.",
        "give the append-only file a faster disk; then CONFIG RESETSTAT to count anew",
    )  # fmt: skip


def _aof_writes(redis: RedisFacts) -> Finding | None:
    if redis.appendonly is False:
        return None
    if redis.writes_ok is None:
        return Finding(
            "append-only-writes", Severity.UNKNOWN, "Redis does not tell whether it can write its append-only file.",
            "While it cannot, it refuses new writes.", ask("aof_last_write_status", "INFO"),
        )  # fmt: skip
    if redis.writes_ok:
        return Finding("append-only-writes", Severity.OK, "The last write to the file succeeded.", "The disk has room.")
    return Finding(
        "append-only-writes", Severity.FAILURE, "Redis cannot write its append-only file.",
        "It refuses new writes until it can; nothing accepted is lost while it runs.",
        "make room on its disk; see its log",
    )  # fmt: skip


def _truncated(redis: RedisFacts) -> Finding | None:
    if redis.appendonly is False:
        return None
    if redis.loads_truncated is None:
        return Finding(
            "truncated-file", Severity.UNKNOWN, "Redis does not tell its aof-load-truncated.",
            "With 'no' it does not start again after a crash that tore the end of the file.",
            ask("aof-load-truncated", "CONFIG|GET"),
        )  # fmt: skip
    if redis.loads_truncated:
        return Finding(
            "truncated-file", Severity.OK, "Redis starts with a file whose end is torn.",
            "It drops the incomplete last call whole, log and record together.",
        )  # fmt: skip
    return Finding(
        "truncated-file", Severity.WARNING, "aof-load-truncated is no.",
        "After a crash that tore the end of the file Redis does not start until somebody repairs it.",
        "CONFIG SET aof-load-truncated yes, and the same in redis.conf",
    )  # fmt: skip


def replay_drops(redis: RedisFacts) -> bool | None:
    """Tell whether a restart drops what scripts wrote, None where that is unknown.

    The append-only file is loaded as the user ``default``, and EXEC checks its permissions: 0 of 100 script-written
    entries came back where it had none. Fixed in Redis 8.4.4 and 8.6 (PR 14545) and in Valkey 9.1 (PR 3984).
    """
    version = redis.version or ()
    fixed = version >= (9, 1) if redis.product == "Valkey" else version >= (8, 6) or (8, 4, 4) <= version < (8, 5)
    if fixed or redis.appendonly is False:
        return False
    return None if redis.replay_denied is None else bool(redis.replay_denied)


def script_replay(redis: RedisFacts) -> Finding | None:
    """The user ``default`` needs permissions for the append-only file to be loaded."""
    code = "script-replay"
    if redis.appendonly is False:
        return None
    drops = replay_drops(redis)
    if drops is None:
        return Finding(
            code, Severity.UNKNOWN, "Redis does not tell what the user 'default' may do.",
            "The append-only file is loaded with its permissions: where they are taken away, a restart drops every "
            "write of this product without an error.",
            "allow the user ACL|DRYRUN, or see that 'default' is as in: " + RECIPE,
        )  # fmt: skip
    if not drops:
        return Finding(code, Severity.OK, "A restart loads what scripts wrote.", "'default' does not hinder it.")
    return Finding(
        code, Severity.FAILURE, f"The user 'default' may not run {', '.join(redis.replay_denied or ())}.",
        "The append-only file is loaded with its permissions: the next restart of Redis drops every accepted write "
        "that SQL does not have, and says so nowhere but in its own log.",
        f"before any restart: {RECIPE}; then ACL SAVE, or the same line in redis.conf",
    )  # fmt: skip


class LevelRule(Protocol):
    """A rule whose severity depends on whether the level asked for rests on Redis's disk."""

    def __call__(self, redis: RedisFacts, *, rests: bool) -> Finding | None:
        """Look at one thing."""


LEVEL_RULES: Final[tuple[LevelRule, ...]] = (append_only_file, fsync_policy, _fsync_confirmation)
DISK_RULES: Final[tuple[Callable[[RedisFacts], Finding | None], ...]] = (
    script_replay,
    fsync_on_rewrite,
    _fsync_delays,
    _aof_writes,
    _truncated,
)
