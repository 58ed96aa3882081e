"""Servers for rehearsals: a real Redis, PostgreSQL or MariaDB in a directory of its own.

Tests, the demo and the drills start them, kill them and start them again; nothing here is meant for
production data. Each server listens on 127.0.0.1 only, on a port outside the range from which the
kernel serves outgoing connections: otherwise a client that reconnects to a killed server could be
given the very port, talk to itself, and keep the server from coming back.

::

    new ──start()──> running ──kill()──> killed ──start()──> running
                        └─────stop()───> stopped (a temporary directory is gone)

A server must not outlive its process. ``PR_SET_PDEATHSIG`` would be the obvious way, but it fires
when the *thread* that forked dies, and a test or a drill may well start a server on a short-lived
thread. So each server has a finalizer, which runs when the object is collected and at the
interpreter's exit; only a parent that is itself killed by SIGKILL leaves its servers behind.
"""

from writebehind.engine.embedded.database import EmbeddedDatabase
from writebehind.engine.embedded.mariadb import EmbeddedMariaDB
from writebehind.engine.embedded.postgresql import EmbeddedPostgreSQL
from writebehind.engine.embedded.redis import EmbeddedRedis
from writebehind.engine.embedded.server import EmbeddedServer

__all__ = ["EmbeddedDatabase", "EmbeddedMariaDB", "EmbeddedPostgreSQL", "EmbeddedRedis", "EmbeddedServer"]
