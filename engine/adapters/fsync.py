"""Confirming that writes are on disk, on replicas.

WAIT and WAITAOF cover only writes of the connection that calls them, so a confirmation makes a small write of its
own (the barrier) and waits for that one, on one connection, in one pipeline: whatever came before it in the
primary's history is then covered too. Some servers confirm WAITAOF before any fsync (Valkey 8.1 and 9.1, Redis
7.4.0 to 7.4.2), so a test decides whether it can be trusted, not a version number.
"""

import secrets
import time
from enum import Enum, auto
from typing import Any

import redis

from writebehind.engine.adapters.conditions import enforce
from writebehind.engine.adapters.facts import redis_facts
from writebehind.engine.adapters.links import Link, refusal
from writebehind.engine.adapters.scripts import BARRIER
from writebehind.engine.core.diagnosis import disk_conditions
from writebehind.engine.core.durability import Durability
from writebehind.engine.errors import ConfigurationError, RedisUnavailable

__all__ = ["Fsync", "confirm", "fsync_of", "waitaof_waits"]

SLOW_SECONDS = 0.5
"""A WAITAOF that follows another at once and waits for a real everysec fsync takes about a second (*measured* on
Redis 8.2.3: 1.01 s); one that waits for nothing is answered by the server's next cron tick (on Valkey 8.1.8: 0.10 to
0.20 s)."""
ROUNDS_SLOW_NEEDED = 2
ROUNDS_MAX = 5
SLICE_SECONDS = 1.0


class Fsync(Enum):
    """How a server lets fsync be known."""

    ALWAYS = auto()
    """Every write is on disk before its reply."""
    WAITAOF = auto()
    """WAITAOF was seen to wait."""


def fsync_of(link: Link, scratch_key: str) -> Fsync:
    """Find out how this server lets fsync be known; takes 2 to 3 seconds under everysec.

    Args:
        link: the connection to try it on.
        scratch_key: a key of the namespace that the test may write; it expires by itself.

    Raises:
        ConfigurationError: it does not, with the reason and what to change.
        redis.RedisError: the connection failed.
    """
    facts = redis_facts(link, scratch_key)
    enforce(disk_conditions(facts))
    if facts.appendfsync == "always":
        return Fsync.ALWAYS
    if waitaof_waits(link, scratch_key):
        return Fsync.WAITAOF
    raise ConfigurationError(
        "this server cannot confirm an fsync: it has no WAITAOF, or its WAITAOF answers before the fsync",
        "set appendfsync always, or use Redis 7.4.3 or later, or ask for ACCEPTED only",
    )


def waitaof_waits(link: Link, scratch_key: str) -> bool:
    """Tell whether WAITAOF waits for the fsync under everysec: the second of two in a row must take a while.

    Raises:
        RedisUnavailable: Redis refuses the trial, because it is full, say.
        redis.RedisError: the connection failed.
    """
    slow = 0
    write = ("SET", scratch_key, secrets.token_hex(4), "PX", 60_000)
    for _ in range(ROUNDS_MAX):
        begun = time.monotonic()
        written, answer = link.pipeline([write, ("WAITAOF", 1, 0, 4_000)])
        elapsed = time.monotonic() - begun
        if isinstance(written, redis.ResponseError):
            refused = refusal(written)
            raise RedisUnavailable(f"Redis cannot be tried: {refused.code} {refused.text}", "try later") from written
        if isinstance(answer, Exception) or answer[0] < 1:
            return False
        slow += elapsed >= SLOW_SECONDS
        if slow >= ROUNDS_SLOW_NEEDED:
            return True
    return False


def confirm(
    link: Link, meta: str, identity: bytes, level: Durability, *, fsync: Fsync, replicas: int, seconds: float
) -> bool:
    """Wait until everything written before on the primary is as durable as asked.

    Args:
        link: any connection to the primary on which the writes were made.
        meta: the meta hash of a partition that they were made to.
        identity: what the link's identity was when they were made.
        level: FSYNCED or REPLICATED.
        fsync: what ``fsync_of`` said of this server.
        replicas: how many must have it at REPLICATED.
        seconds: how long to wait at the most.

    Returns:
        False where time ran out first.

    Durability: True means that the level holds. Repeat: harmless. Crash: nothing remains but a counter.

    Raises:
        RedisUnavailable: the primary changed since, or the connection failed.
        ConfigurationError: the server's fsync policy was changed to a weaker one.
    """
    if link.identity != identity:
        raise RedisUnavailable("the primary changed since the write", "the write is looked up on the new one")
    deadline = time.monotonic() + seconds
    _answers(link, [("EVAL", BARRIER.text, 1, meta, identity)], None)
    while True:
        left = max(0.001, min(SLICE_SECONDS, deadline - time.monotonic()))
        milliseconds = int(left * 1000)
        commands: list[tuple[object, ...]] = []
        if fsync is Fsync.WAITAOF:
            commands.append(("WAITAOF", 1, 0, milliseconds))
        if level >= Durability.REPLICATED:
            commands.append(("WAIT", replicas, milliseconds))
        answers = _answers(link, commands, 2 * left + 4 * SLICE_SECONDS)
        if fsync is Fsync.WAITAOF:
            on_disk = answers[0][0] >= 1
        else:
            on_disk = True
            if _policy(link) != {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no"}:
                raise ConfigurationError("Redis no longer calls fsync for every write", "set appendfsync always again")
        if on_disk and (level < Durability.REPLICATED or answers[-1] >= replicas):
            return True
        if time.monotonic() >= deadline:
            return False


def _answers(link: Link, commands: list[tuple[object, ...]], timeout: float | None) -> list[Any]:
    answers = link.pipeline(commands, timeout)
    for answer in answers:
        if isinstance(answer, redis.ResponseError):
            refused = refusal(answer)
            raise RedisUnavailable(f"Redis cannot confirm: {refused.code} {refused.text}", "try later") from answer
    return answers


def _policy(link: Link) -> dict[str, str]:
    try:
        reply = link.command("CONFIG", "GET", "append*", "no-appendfsync-on-rewrite")
    except redis.ResponseError:
        return {}
    pairs = {reply[i].decode(): reply[i + 1].decode() for i in range(0, len(reply), 2)}
    return {name: pairs[name] for name in ("appendonly", "appendfsync", "no-appendfsync-on-rewrite") if name in pairs}
