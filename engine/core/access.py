"""Users of Redis that may do what their work needs and nothing else.

Each command of the product stands here with those who send it, bare or inside a script: Redis checks a script's inner
commands against the user who runs it. Keys are those of one namespace.

Commands that take no key are the exceptions to "only this namespace": INFO and TIME tell about the server, SCAN and
DBSIZE (not the writer's) tell the names of all keys of the database, but not what they hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, assert_never

from writebehind.engine.core.disk_rules import RECIPE

__all__ = ["Options", "Role", "User", "channels", "default_user", "pattern_beside", "patterns", "users"]


class Role(Enum):
    """What a user is for."""

    WRITER = "writer"
    """Services that embed the engine."""
    FLUSHER = "flusher"
    """``writebehind run``."""
    OPERATOR = "operator"
    """A person, or a script of one: every other command."""


_START: Final = frozenset({"client|setinfo", "info", "time", "acl|dryrun", "hsetnx", "hmget", "set", "wait", "waitaof"})
"""What redis-py and an engine ask the server before anything else; how FSYNCED and REPLICATED are confirmed."""

_SINCE_7_2: Final = frozenset({"client|setinfo", "waitaof"})

_EPOCH: Final = frozenset(
    {"eval", "evalsha", "hmget", "exists", "xgroup|create", "xinfo|stream", "hget", "time", "hset", "hexists"}
)
"""Opening an epoch, as every script call may have to."""

_APPEND: Final = frozenset(
    {"hmget", "exists", "hget", "xinfo|stream", "xlen", "xrevrange", "xadd", "hset", "hdel", "del", "persist"}
)
_READ: Final = frozenset(
    {"hget", "hgetall", "hmget", "xinfo|stream", "exists", "pttl", "time", "hset", "hdel", "pexpire", "del", "hincrby"}
)
_REWRITE: Final = frozenset({"hgetall", "xinfo|groups", "xpending", "xrange"})
_CONFIRM: Final = frozenset({"hincrby"})
_LIMIT: Final = frozenset({"time", "zcard", "zcount", "zrange", "zadd", "zremrangebyrank", "pexpireat", "del"})
_CACHE: Final = frozenset(
    {"get", "set", "time", "hmget", "hget", "hset", "hdel", "del", "pexpire", "publish", "subscribe"}
)

_LOG: Final = frozenset({"hgetall", "xinfo|stream", "xinfo|groups", "xrange"})
_DELIVER: Final = frozenset({"xreadgroup", "xautoclaim", "xinfo|consumers", "xgroup|delconsumer", "xack"})
_SETTLE: Final = frozenset({"hget", "hmget", "pexpire", "del", "hexists", "xtrim", "hset", "hincrby"})
_TAKE_OVER: Final = frozenset({"scan", "unlink", "del", "hset", "hget", "hdel", "xdel"})

_EXAMINE: Final = frozenset({"acl|whoami", "config|get"})
_COMPARE: Final = frozenset({"dbsize", "scan", "exists", "xpending", "type"})
_REPAIR: Final = frozenset({"watch", "unwatch", "multi", "exec", "unlink"})

_WRITER: Final = _START | _EPOCH | _APPEND | _READ | _REWRITE | _CONFIRM | _CACHE | _LIMIT
_FLUSHER: Final = _START | _EPOCH | _LOG | _DELIVER | _SETTLE | _TAKE_OVER | _LIMIT
_OPERATOR: Final = _WRITER | _FLUSHER | _EXAMINE | _COMPARE | _REPAIR


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What differs from one server to another.

    Attributes:
        before_7_2: whether the server is older than Redis 7.2, so that it refuses rules that name WAITAOF or
            CLIENT SETINFO.
        config_get: whether writers and flushers get CONFIG GET; FSYNCED needs it under ``appendfsync always``. It
            shows the server's own passwords, too (``requirepass``, ``masterauth``).
        select: whether the URL names another database than 0.
    """

    before_7_2: bool = False
    config_get: bool = False
    select: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class User:
    """A user, and the rules that make it.

    Attributes:
        name: as in ``AUTH name password``.
        purpose: who logs in with it.
        rules: as ``ACL SETUSER`` takes them; the password is a placeholder that Redis refuses as it stands.
    """

    name: str
    purpose: str
    rules: Sequence[str]

    def command(self) -> str:
        """Return the line for ``redis-cli``; it replaces what the user could do before."""
        return f"ACL SETUSER {self.name} {' '.join(self.rules)}"

    def file_line(self) -> str:
        """Return the line of an ACL file."""
        return f"user {self.name} {' '.join(rule for rule in self.rules if rule != 'reset')}"


def patterns(namespace: str) -> tuple[str, str]:
    """Return what matches every key of a namespace's partitions, and none of another.

    Its name has no ``:``, no ``/`` and no brackets.
    """
    return f"wb:{{{namespace}:*}}:*", f"wb:{{{namespace}}}:*"


def pattern_beside(namespace: str) -> str:
    """Return what matches everything that a namespace's caches and rate limiters keep, and no other key."""
    return f"wb:{{{namespace}/*}}:*"


def channels(namespace: str) -> str:
    """Return what matches every channel of a namespace's caches and none of another's."""
    return f"wb:{{{namespace}}}:cache:*"


def users(namespace: str, options: Options) -> list[User]:
    """Return the users of a namespace.

    Args:
        namespace: its name.
        options: what the server is like.
    """
    return [_user(namespace, role, options) for role in Role]


def default_user() -> User:
    """Return ``default`` as it has to be: nobody logs in with it, and it may do what the append-only file repeats."""
    return User(name="default", purpose="nobody", rules=RECIPE.split()[3:])


def _user(namespace: str, role: Role, options: Options) -> User:
    name = f"{namespace}-{role.value}"
    commands = set(_commands(role))
    if options.before_7_2:
        commands -= _SINCE_7_2
    if options.config_get:
        commands.add("config|get")
    if options.select:
        commands.add("select")
    caches = role is not Role.FLUSHER
    rules = [
        "reset",
        "on",
        f"><password of {name}>",
        *(f"~{pattern}" for pattern in patterns(namespace)),
        *([f"~{pattern_beside(namespace)}"] if caches else []),
        "resetchannels",
        *([f"&{channels(namespace)}"] if caches else []),
        "nocommands",
        *(f"+{command}" for command in sorted(commands)),
    ]
    return User(name=name, purpose=_purpose(role), rules=rules)


def _commands(role: Role) -> frozenset[str]:
    match role:
        case Role.WRITER:
            return _WRITER
        case Role.FLUSHER:
            return _FLUSHER
        case Role.OPERATOR:
            return _OPERATOR
        case _:
            assert_never(role)


def _purpose(role: Role) -> str:
    match role:
        case Role.WRITER:
            return "services that embed the engine"
        case Role.FLUSHER:
            return "writebehind run"
        case Role.OPERATOR:
            return "all other commands: init, status, drain, recover, verify, doctor, dead-letters"
        case _:
            assert_never(role)
