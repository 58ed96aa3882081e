"""What the embedded SQL servers have in common: a URL, a password, databases."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Mapping

import sqlalchemy as sa

from writebehind.engine.embedded.server import HOST, EmbeddedServer
from writebehind.engine.errors import ConfigurationError


class EmbeddedDatabase(EmbeddedServer):
    """What the SQL servers have in common."""

    DIALECT: str
    FIRST_DATABASE: str
    EXTRA: str
    QUERY: Mapping[str, str] = {}

    @property
    def url(self) -> str:
        """The URL of the database that the server was born with, for SQLAlchemy."""
        return self._url_of(self.FIRST_DATABASE)

    def create_database(self, name: str) -> str:
        """Create an empty database in the running server, and give its URL.

        Args:
            name: letters, digits and underscores.

        Raises:
            ConfigurationError: the name has other characters, or the database exists.
        """
        if not name.replace("_", "").isalnum() or not name.isascii():
            raise ConfigurationError(f"{name!r} is no name for a database", "use letters, digits and underscores")
        engine = self._engine()
        try:
            with engine.connect() as connection:
                quoted = engine.dialect.identifier_preparer.quote_identifier(name)
                connection.exec_driver_sql(f"CREATE DATABASE {quoted}")
        except sa.exc.DBAPIError as error:
            raise ConfigurationError(f"cannot create the database {name}: {error.orig}") from error
        return self._url_of(name)

    def _url_of(self, database: str) -> str:
        url = sa.URL.create(
            self.DIALECT, "writebehind", self._password(), HOST, self.port, database, query=dict(self.QUERY)
        )
        return url.render_as_string(hide_password=False)

    def _engine(self) -> sa.Engine:
        try:
            return sa.create_engine(self.url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        except ImportError as error:
            raise ConfigurationError(
                f"the driver for {self.NAME} is missing: {error}", f"pip install 'writebehind[{self.EXTRA}]'"
            ) from error

    def _answers(self) -> bool:
        with contextlib.suppress(sa.exc.DBAPIError), self._engine().connect():
            return True
        return False

    def _password(self) -> str:
        """Give the password that this directory's server was made with."""
        path = self.directory / "password"
        if not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(16))
            if self._user is not None:
                shutil.chown(path, self._user)
        return path.read_text()
