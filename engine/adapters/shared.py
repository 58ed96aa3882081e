"""What all processes of a namespace must agree on, kept in Redis."""

import redis

from writebehind.engine.adapters.links import Links
from writebehind.engine.config import NamespaceSettings
from writebehind.engine.core.keys import Keys
from writebehind.engine.errors import ConfigurationError, RedisUnavailable

__all__ = ["agree"]


def agree(links: Links, keys: Keys, settings: NamespaceSettings) -> None:
    """Write the namespace's settings where Redis has none, and compare them where it has.

    Repeat: harmless. Crash: a part of the settings may be written; the next start completes them.

    Raises:
        ConfigurationError: they differ, or Redis refuses for good.
        RedisUnavailable: Redis cannot be reached.
    """
    wanted = settings.shared()
    with links.link() as link:
        replies = link.pipeline(
            [*(("HSETNX", keys.shared, name, value) for name, value in wanted.items()), ("HMGET", keys.shared, *wanted)]
        )
    found = replies[-1]
    if isinstance(found, redis.ResponseError):
        raise ConfigurationError(f"Redis refuses to read {keys.shared}: {found}", "check the user's permissions")
    for (name, value), stored in zip(wanted.items(), found, strict=True):
        if stored is None:
            raise RedisUnavailable("Redis does not accept the namespace's settings", "is it full, or a replica?")
        if stored.decode() != value:
            raise ConfigurationError(
                f"namespace {settings.namespace} has {name}={stored.decode()} in Redis, not {value}",
                f"give {name}={stored.decode()}; it is fixed for the lifetime of a namespace",
            )
