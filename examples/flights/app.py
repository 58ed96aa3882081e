"""The engine of this example, for the replay itself and for the flushers that it starts.

Flushers are told by environment variables where to work: a command line would show passwords to everybody.
"""

import os

from writebehind.engine import EngineSettings, WriteBehind
from writebehind.engine.errors import ConfigurationError
from writebehind.examples.flights.tables import TABLES

__all__ = ["APP", "environment", "from_environment", "make"]

APP = "writebehind.examples.flights.app:from_environment"
PARTITIONS = 16
RECORD_TTL_SECONDS = 300.0
REDIS, DATABASE, NAMESPACE = "FLIGHTS_REDIS_URL", "FLIGHTS_DATABASE_URL", "FLIGHTS_NAMESPACE"


def make(redis: str, database: str, namespace: str) -> WriteBehind:
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
        settings=EngineSettings(record_ttl_seconds=RECORD_TTL_SECONDS),
    )


def environment(redis: str, database: str, namespace: str) -> dict[str, str]:
    """Return what ``from_environment`` of another process needs."""
    return {REDIS: redis, DATABASE: database, NAMESPACE: namespace}


def from_environment() -> WriteBehind:
    """Make the engine that the environment describes; ``--app`` of the flushers.

    Raises:
        ConfigurationError: a variable is missing or not usable.
    """
    try:
        return make(os.environ[REDIS], os.environ[DATABASE], os.environ[NAMESPACE])
    except KeyError as error:
        raise ConfigurationError(f"{error} is not set", f"set {REDIS}, {DATABASE} and {NAMESPACE}") from None
