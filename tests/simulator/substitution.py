"""Putting the stand-ins in place of what the product has imported, and taking them away again."""

import contextlib
import logging
import random
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

from simulator import standins
from simulator.adapters import Engine, ModelLeases, ModelRows, flusher_engine
from simulator.letters import ModelLetters
from simulator.redis_service import Pool, Service
from simulator.schema import declared_of
from simulator.transaction import ModelTransaction
from writebehind import engine, flushers, recovery
from writebehind.engine.adapters import conditions, database_facts, databases, declaration, links, rows, shared
from writebehind.engine.adapters.appender import Appender
from writebehind.flushers import flusher, leases, letters, sessions, transaction

__all__ = ["RedisTarget", "substituted"]

ROOTS = tuple(package.__name__ for package in (engine, recovery, flushers))
SERVERS = "writebehind.engine.embedded"
"""Starts real servers, which other tests do."""


class RedisTarget:
    """What an engine of a history gets for its Redis.

    Args:
        service: the servers.
        pool: makes the connections.
    """

    def __init__(self, service: Service, pool: Pool) -> None:
        self.service = service
        self.pool = pool


def _pool(target: RedisTarget, own: dict[str, Any]) -> Pool:
    del own
    return target.pool


def _engine_of(database: Engine) -> Engine:
    return database


def _agree(*_: Any) -> None:
    """Stand for the checks of settings and servers at the start: here they are as they should be."""


def _belongs_to_threads(_: Engine) -> bool:
    """Have SQL asked at once: here it answers, or fails."""
    return True


def _holder_name() -> str:
    return standins.current_process().name


def _substitutes() -> dict[int, Any]:
    numbers = standins.VirtualSecrets()
    pairs: list[tuple[Any, Any]] = [
        (time, standins.VirtualTime()),
        (threading, standins.VirtualThreading()),
        (threading.Lock, standins.Lock),
        (threading.Event, standins.Event),
        (threading.Thread, standins.Thread),
        (ThreadPoolExecutor, standins.ThreadPoolExecutor),
        (secrets, numbers),
        (random, numbers),
        (links._pool, _pool),
        (shared.agree, _agree),
        (conditions.require_server, _agree),
        (database_facts.require_transactions, _agree),
        (threading.current_thread, standins.current_thread),
        (rows.Rows, ModelRows),
        (declaration.declare, declared_of),
        (databases.engine_of, _engine_of),
        (databases.belongs_to_threads, _belongs_to_threads),
        (sessions.flusher_engine, flusher_engine),
        (leases.Leases, ModelLeases),
        (letters.Letters, ModelLetters),
        (transaction.Transaction, ModelTransaction),
        (flusher.holder_name, _holder_name),
    ]
    return {id(original): stand_in for original, stand_in in pairs}


def _modules() -> list[ModuleType]:
    return [
        module
        for name, module in sorted(sys.modules.items())
        if name.startswith(ROOTS) and not name.startswith(SERVERS)
    ]


@contextlib.contextmanager
def substituted() -> Iterator[None]:
    """Let the product work on the stand-ins, for as many histories as wanted; not for two threads at once."""
    substitutes = _substitutes()
    undo: list[Callable[[], None]] = []
    for module in _modules():
        for name, value in list(vars(module).items()):
            stand_in = substitutes.get(id(value))
            if stand_in is not None:
                undo.append(_putting(module, name, value))
                setattr(module, name, stand_in)
    undo.append(_putting(Appender, "call_id", Appender.call_id))
    setattr(Appender, "call_id", _noting(Appender.call_id))  # noqa: B010 - a method is replaced
    before = random.getstate()
    logger = logging.getLogger("writebehind")
    level, propagates = logger.level, logger.propagate
    logger.setLevel(logging.CRITICAL + 1)
    logger.propagate = False
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.propagate = propagates
        random.setstate(before)
        for each in undo:
            each()


def _noting(call_id: Callable[[Appender], str]) -> Callable[[Appender], str]:
    """Have a task's notes tell which call IDs it has used."""

    def noting(appender: Appender) -> str:
        made = call_id(appender)
        standins.note("calls", made)
        return made

    return noting


def _putting(module: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(module, name, value)
