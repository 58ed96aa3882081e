"""Makes, versions and settings of the servers: what a reader of a report has to know."""

from typing import TYPE_CHECKING

import redis as redis_client
import sqlalchemy as sa

from writebehind.engine.errors import ConfigurationError

if TYPE_CHECKING:
    from writebehind.drills.stage import Stage

__all__ = ["facts_of"]

REDIS = ("appendonly", "appendfsync", "no-appendfsync-on-rewrite", "maxmemory-policy")
SQL = {
    "postgresql": ("fsync", "synchronous_commit"),
    "mysql": ("innodb_flush_log_at_trx_commit", "sync_binlog"),
    "sqlite": (),
}
MAKES = {"postgresql": "PostgreSQL", "mysql": "MariaDB", "sqlite": "SQLite"}
UNKNOWN = "unknown"


def facts_of(stage: "Stage") -> dict[str, str]:
    """Return make and version of both servers, under ``redis`` and ``database``, and the settings that matter.

    Raises:
        ConfigurationError: Redis cannot be asked.
    """
    return {**_redis(stage), **_sql(stage)}


def _redis(stage: "Stage") -> dict[str, str]:
    with stage.redis.client() as client:
        try:
            server = client.info("server")
        except redis_client.RedisError as error:
            raise ConfigurationError(f"Redis cannot be asked: {type(error).__name__}", "check the URL") from error
        valkey = server.get("server_name") == "valkey"
        version = server.get("valkey_version") if valkey else server["redis_version"]
        facts = {"redis": f"{'Valkey' if valkey else 'Redis'} {version}"}
        for name in REDIS:
            try:
                facts[name] = str(client.config_get(name).get(name, UNKNOWN))
            except redis_client.RedisError:
                facts[name] = UNKNOWN
    return facts


def _sql(stage: "Stage") -> dict[str, str]:
    engine = stage.app.database
    dialect = engine.dialect.name.replace("mariadb", "mysql")
    with engine.connect() as connection:
        version = ".".join(map(str, engine.dialect.server_version_info or ()))
        facts = {"database": f"{MAKES[dialect]} {version}"}
        for name in SQL[dialect]:
            show = f"SHOW {name}" if dialect == "postgresql" else f"SELECT @@{name}"
            try:
                facts[name] = str(connection.exec_driver_sql(show).scalar_one())
            except sa.exc.SQLAlchemyError:
                facts[name] = UNKNOWN
    return facts
