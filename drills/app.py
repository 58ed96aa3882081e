"""The engine of the drills: for the drill itself, for the service that it starts and for the flushers.

The others are told by environment variables where to work: a command line would show passwords to everybody.
"""

import os
from collections.abc import Callable

from writebehind.drills.tables import TABLES
from writebehind.engine import DataLoss, Durability, EngineSettings, WriteBehind
from writebehind.engine.errors import ConfigurationError

__all__ = ["APP", "LEASE_TTL_SECONDS", "LINGER_SECONDS", "PARTITIONS", "RETENTION_SECONDS", "environment"]
__all__ += ["from_environment", "make"]

APP = "writebehind.drills.app:from_environment"
PARTITIONS = 4
LEASE_TTL_SECONDS = 1.0
LINGER_SECONDS = 0.02
RETENTION_SECONDS = 60.0
REDIS_TIMEOUT_SECONDS = 2.0
WRITE_TIMEOUT_SECONDS = 15.0
REDIS, DATABASE, NAMESPACE = "WRITEBEHIND_DRILL_REDIS", "WRITEBEHIND_DRILL_DATABASE", "WRITEBEHIND_DRILL_NAMESPACE"


def make(
    redis: str,
    database: str,
    namespace: str,
    durability: Durability = Durability.ACCEPTED,
    on_data_loss: Callable[[DataLoss], None] | None = None,
) -> WriteBehind:
    """Make the engine.

    Raises:
        ConfigurationError: a URL or the namespace is not usable.
    """
    return WriteBehind(
        redis=redis,
        database=database,
        tables=TABLES,
        namespace=namespace,
        partitions=PARTITIONS,
        durability=durability,
        on_data_loss=on_data_loss,
        settings=EngineSettings(
            redis_timeout_seconds=REDIS_TIMEOUT_SECONDS, write_timeout_seconds=WRITE_TIMEOUT_SECONDS
        ),
    )


def environment(redis: str, database: str, namespace: str) -> dict[str, str]:
    """Return what ``from_environment`` of another process needs."""
    return {REDIS: redis, DATABASE: database, NAMESPACE: namespace}


def from_environment(
    durability: Durability = Durability.ACCEPTED, on_data_loss: Callable[[DataLoss], None] | None = None
) -> WriteBehind:
    """Make the engine that the environment describes; ``--app`` of the flushers.

    Raises:
        ConfigurationError: a variable is missing or not usable.
    """
    try:
        return make(os.environ[REDIS], os.environ[DATABASE], os.environ[NAMESPACE], durability, on_data_loss)
    except KeyError as error:
        raise ConfigurationError(f"{error} is not set", f"set {REDIS}, {DATABASE} and {NAMESPACE}") from None
