"""The lines: by which address each process of a drill reaches the servers, and what may happen on the way."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

from writebehind.drills.proxy import Proxy
from writebehind.engine.errors import ConfigurationError

__all__ = ["FLUSHERS", "PROBE", "ROLES", "SERVICE", "Lines", "plain_redis_url"]

SERVICE, PROBE = "service", "probe"
FLUSHERS = ("flusher-0", "flusher-1")
ROLES = (SERVICE, PROBE, *FLUSHERS)


class Lines:
    """One proxy for each role, all to the same server.

    Args:
        stack: closes the proxies.
        host, port: the server.
        roles: who has one.
    """

    def __init__(self, stack: ExitStack, host: str, port: int, roles: Sequence[str]) -> None:
        self._by_role = {role: stack.enter_context(Proxy(port, host)) for role in roles}

    def __getitem__(self, role: str) -> Proxy:
        return self._by_role[role]

    def __iter__(self) -> Iterator[Proxy]:
        return iter(self._by_role.values())

    def retarget(self, port: int, roles: Sequence[str] = ROLES) -> None:
        """Lead these roles to another server on this machine."""
        for role in roles:
            if role in self._by_role:
                self._by_role[role].retarget(port)


def plain_redis_url(url: str, port: int) -> str:
    """Return a Redis URL that leads through a proxy on this machine.

    Raises:
        ConfigurationError: it is not a plain ``redis://`` URL.
    """
    parts: Any = urlsplit(url)
    if parts.scheme != "redis":
        raise ConfigurationError("drills reach Redis by plain TCP only", "give a redis:// URL")
    login, at, _ = parts.netloc.rpartition("@")
    return str(parts._replace(netloc=f"{login}{at}127.0.0.1:{port}").geturl())
