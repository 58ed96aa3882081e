"""What a server has to be like before an engine starts on it; ``core.diagnosis`` says why."""

import logging
from collections.abc import Iterable

from writebehind.engine.adapters.facts import redis_facts
from writebehind.engine.adapters.links import Links
from writebehind.engine.core.diagnosis import start_conditions
from writebehind.engine.core.durability import Durability
from writebehind.engine.core.finding import Finding, Severity
from writebehind.engine.core.keys import Keys
from writebehind.engine.errors import ConfigurationError

__all__ = ["enforce", "require_server"]

logger = logging.getLogger(__name__)


def require_server(links: Links, keys: Keys, level: Durability) -> None:
    """Refuse a server on which the guarantee would be void; one round trip.

    Args:
        links: connections.
        keys: the namespace's key names.
        level: the engine's durability level.

    Durability, Repeat, Crash: nothing is written.

    Raises:
        ConfigurationError: it is too old, a replica, or may evict the log.
        RedisUnavailable: Redis cannot be reached.
    """
    with links.link() as link:
        redis = redis_facts(link, keys.shared)
    enforce(start_conditions(redis, level))


def enforce(findings: Iterable[Finding]) -> None:
    """Log what is not as it should be, or not known.

    Raises:
        ConfigurationError: one of the findings is a failure.
    """
    for finding in findings:
        message = f"{finding.what} {finding.means}".rstrip(".")
        if finding.severity is Severity.FAILURE:
            raise ConfigurationError(message, finding.remedy)
        logger.warning("%s (%s)", message, finding.remedy)
