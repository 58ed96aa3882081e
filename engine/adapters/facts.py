"""Asking a Redis for the facts.

Everything is asked in one pipeline and nothing is written. What a server hides, by an ACL or because a provider has
renamed the command, stays None.
"""

import time
from collections.abc import Mapping
from typing import Any, Final

import redis

from writebehind.engine.adapters.links import Link
from writebehind.engine.adapters.permissions import REPLAYED, denied_in, dry_runs
from writebehind.engine.core.facts import RedisFacts, Replica

__all__ = ["redis_facts"]

SECTIONS: Final = ("server", "replication", "persistence", "memory", "cluster")
SETTINGS: Final = (
    "appendonly",
    "appendfsync",
    "no-appendfsync-on-rewrite",
    "aof-load-truncated",
    "save",
    "min-replicas-to-write",
    "min-replicas-max-lag",
    "maxmemory",
    "maxmemory-policy",
    "busy-reply-threshold",
)

Texts = Mapping[str, str]


def redis_facts(link: Link, key: str) -> RedisFacts:
    """Ask a server for everything that it tells without being tried out.

    Args:
        link: a connection, whose identity is not needed.
        key: a key name of the namespace, by which permissions are judged; it is not touched.

    Raises:
        redis.RedisError: the connection failed.
    """
    commands: list[tuple[Any, ...]] = [("INFO", section) for section in SECTIONS]
    commands += [("CONFIG", "GET", *SETTINGS), ("TIME",)]
    before = time.time()
    replies = link.pipeline([*commands, *dry_runs("default", REPLAYED, key, channel="")])
    here = (before + time.time()) / 2
    told = replies[: len(SECTIONS)]
    config, clock = replies[len(SECTIONS) : len(commands)]
    replay_denied = denied_in(replies[len(commands) :], REPLAYED)
    info: dict[str, str] = {}
    for section in told:
        if isinstance(section, bytes):
            info |= _lines(section)
    settings = _pairs(config)
    hidden = {
        "INFO": any(isinstance(section, Exception) for section in told),
        "CONFIG": not settings,
        "ACL": replay_denied is None,
    }
    return RedisFacts(
        address=_address(link),
        hidden=frozenset(name for name, is_hidden in hidden.items() if is_hidden),
        clock_ahead_seconds=_clock(clock, here),
        replay_denied=replay_denied,
        **_server(info),
        **_disk(info, settings),
        **_replication(info, settings),
        **_memory(info, settings),
    )


def _server(info: Texts) -> dict[str, Any]:
    own = info.get("valkey_version") or info.get("redis_version")
    mode = info.get("redis_mode") or info.get("server_mode")
    return {
        "product": ("Valkey" if "valkey_version" in info else "Redis") if own else None,
        "version": _version(own),
        "compatible": _version(info.get("redis_version")),
        "identified": bool(info.get("run_id") and info.get("master_replid")),
        "role": info.get("role"),
        "cluster": _flag(info.get("cluster_enabled"), "1") if mode is None else mode == "cluster",
    }


def _disk(info: Texts, settings: Texts) -> dict[str, Any]:
    children = [info.get("rdb_bgsave_in_progress"), info.get("aof_rewrite_in_progress")]
    return {
        "appendonly": _flag(info.get("aof_enabled"), "1")
        if "aof_enabled" in info
        else _flag(settings.get("appendonly"), "yes"),
        "appendfsync": settings.get("appendfsync"),
        "fsync_pauses": _flag(settings.get("no-appendfsync-on-rewrite"), "yes"),
        "loads_truncated": _flag(settings.get("aof-load-truncated"), "yes"),
        "snapshots": settings.get("save"),
        "rewriting": None if None in children else "1" in children,
        "writes_ok": _flag(info.get("aof_last_write_status"), "ok"),
        "delayed_fsyncs": _number(info.get("aof_delayed_fsync")),
    }


def _replication(info: Texts, settings: Texts) -> dict[str, Any]:
    reported = _number(info.get("master_repl_offset"))
    replicas = None
    if "connected_slaves" in info and reported is not None:
        lines = [value for name, value in info.items() if name.startswith("slave") and name[5:].isdigit()]
        replicas = tuple(_replica(dict(part.split("=", 1) for part in line.split(",")), reported) for line in lines)
    return {
        "replicas": replicas,
        "had_replicas": _flag(info.get("repl_backlog_active"), "1"),
        "replicas_min": _number(settings.get("min-replicas-to-write")),
        "replicas_max_lag_seconds": _number(settings.get("min-replicas-max-lag")),
    }


def _replica(told: Texts, reported: int) -> Replica:
    """Read what a primary says of a replica: its IP address, port, state, offset and lag."""
    return Replica(
        online=told.get("state") == "online",
        lag_seconds=int(told.get("lag", 0)),
        behind_bytes=max(0, reported - int(told.get("offset", 0))),
    )


def _memory(info: Texts, settings: Texts) -> dict[str, Any]:
    return {
        "memory_max_bytes": _number(info.get("maxmemory", settings.get("maxmemory"))),
        "memory_used_bytes": _number(info.get("used_memory")),
        "eviction_policy": info.get("maxmemory_policy", settings.get("maxmemory-policy")),
        "busy_milliseconds": _number(settings.get("busy-reply-threshold")),
    }


def _address(link: Link) -> str:
    connection = link.connection
    path = getattr(connection, "path", None)
    return str(path) if path else f"{getattr(connection, 'host', '?')}:{getattr(connection, 'port', '?')}"


def _lines(section: bytes) -> dict[str, str]:
    text = section.decode("utf-8", "replace")
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def _pairs(reply: Any) -> dict[str, str]:
    if isinstance(reply, redis.ResponseError):
        return {}
    return {reply[i].decode(): reply[i + 1].decode("utf-8", "replace") for i in range(0, len(reply), 2)}


def _flag(value: str | None, truth: str) -> bool | None:
    return None if value is None else value == truth


def _number(value: str | None) -> int | None:
    return int(value) if value is not None and value.lstrip("-").isdigit() else None


def _version(text: str | None) -> tuple[int, ...] | None:
    parts = [] if text is None else [part for part in text.split(".") if part.isdigit()]
    return tuple(map(int, parts)) or None


def _clock(reply: Any, here: float) -> float | None:
    if isinstance(reply, redis.ResponseError):
        return None
    return float(int(reply[0]) + int(reply[1]) / 1e6 - here)
