"""An embedded MariaDB."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from writebehind.engine.embedded.database import EmbeddedDatabase
from writebehind.engine.embedded.server import HOST
from writebehind.engine.errors import ConfigurationError


class EmbeddedMariaDB(EmbeddedDatabase):
    """A MariaDB with its defaults: InnoDB flushes at every commit, and the SQL mode is strict.

    The binary: the given one, or ``mariadbd`` on PATH or in a system directory.

    Raises:
        ConfigurationError: no binary is found.
    """

    NAME = "MariaDB"
    DIALECT = "mysql+pymysql"
    FIRST_DATABASE = "writebehind"
    EXTRA = "mysql"
    QUERY: Mapping[str, str] = {"charset": "utf8mb4"}
    UNPRIVILEGED_USERS = ("mysql", "nobody")

    def _find_binary(self, given: str | os.PathLike[str] | None) -> Path:
        found = given or shutil.which(
            "mariadbd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"
        )
        if found is None:
            raise ConfigurationError("no mariadbd found", "install mariadb-server")
        return Path(found)

    def _prepare(self) -> None:
        # The users of the installation can log in through a Unix socket only, and there is none.
        user = f"'writebehind'@'{HOST}'"
        (self.directory / "init.sql").write_text(
            f"CREATE OR REPLACE USER {user} IDENTIFIED BY '{self._password()}';\n"
            f"GRANT ALL ON *.* TO {user} WITH GRANT OPTION;\n"
            f"CREATE DATABASE IF NOT EXISTS {self.FIRST_DATABASE};\n"
        )
        if (self._data / "mysql").exists():
            return
        install = shutil.which("mariadb-install-db")
        if install is None:
            raise ConfigurationError("no mariadb-install-db found", "install mariadb-server")
        self._run([install, "--no-defaults", f"--datadir={self._data}", "--skip-test-db"])

    def _command(self) -> Sequence[str]:
        fixed = {
            "datadir": self._data,
            "init-file": self.directory / "init.sql",
            "pid-file": self._data / "mariadbd.pid",
            "bind-address": HOST,
            "port": self.port,
            "socket": "",
        }
        defaults = {"character-set-server": "utf8mb4", "skip-name-resolve": "ON"}
        options = (f"--{name}={value}" for name, value in {**defaults, **self._settings, **fixed}.items())
        return [str(self._binary), "--no-defaults", *options]
