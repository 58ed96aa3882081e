"""The least-privilege users: their commands, their keys, their lines."""

import fnmatch
import re
from importlib.resources import files

import pytest

from writebehind.engine.adapters.permissions import COMMANDS
from writebehind.engine.core.access import Options, User, channels, default_user, pattern_beside, patterns, users
from writebehind.engine.core.disk_rules import RECIPE
from writebehind.engine.core.keys import Keys

RUN_BY = {
    "shop-writer": {
        "append", "barrier", "cache_fill", "cache_invalidate", "cache_look", "cache_release", "hit", "open_epoch",
        "record_fill", "record_lease", "record_overlay", "record_release", "rewrite",
    },
    "shop-flusher": {"distrust", "open_epoch", "publish", "settle", "trust"},
    "shop-operator": {path.name.removesuffix(".lua") for path in files("writebehind.engine.adapters.lua").iterdir()},
}  # fmt: skip
SWEEPING = {
    "@", "acl|setuser", "config|set", "debug", "eval_ro", "flushall", "flushdb", "keys", "monitor", "scan", "script",
    "shutdown",
}  # fmt: skip


def granted(user: User) -> set[str]:
    """Return the commands that a user's rules allow."""
    return {rule[1:] for rule in user.rules if rule.startswith("+")}


def called(script: str) -> set[str]:
    """Return the commands that a script calls."""
    text = files("writebehind.engine.adapters").joinpath("lua").joinpath(f"{script}.lua").read_text()
    found = re.findall(r"redis\.call\('(\w+)'(?:, '([A-Z]+)')?", text)
    return {f"{name}|{sub}".lower() if name in {"XINFO", "XGROUP"} else name.lower() for name, sub in found}


@pytest.mark.parametrize("user", users("shop", Options()), ids=lambda user: user.name)
def test_scripts_never_stop_half_way(user: User) -> None:
    """Whoever runs a script may run every command in it: Redis would not take back what comes before the denied one."""
    assert {command for script in RUN_BY[user.name] for command in called(script)} <= granted(user)


def test_the_operator_may_all_that_the_doctor_asks_for() -> None:
    """The doctor judges the user who runs it by the product's own list."""
    writer, flusher, operator = map(granted, users("shop", Options()))
    assert {name.lower() for name in COMMANDS} <= operator
    assert writer | flusher < operator
    assert {name.lower() for name in COMMANDS} <= writer | flusher | {"type"}


def test_nothing_sweeping_is_granted() -> None:
    """No category, no command that reaches beyond the namespace; only who compares whole namespaces names all keys."""
    for user in users("shop", Options()):
        allowed = {"scan"} if user.name != "shop-writer" else set()
        assert {command for command in granted(user) if command.startswith(tuple(SWEEPING))} <= allowed
        assert "config|get" not in granted(user) or user.name == "shop-operator"


@pytest.mark.parametrize("namespace", ["shop", "a.b-c_D", "0" * 32])
def test_patterns_match_the_namespace_and_no_other(namespace: str) -> None:
    """Every key name that the engine makes is matched; those of a namespace that only begins the same are not."""
    keys = Keys(namespace, 1024)
    other = Keys(f"{namespace[:31]}x", 1024)

    def matched(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in (*patterns(namespace), pattern_beside(namespace)))

    def hits(keys: Keys) -> list[str]:
        return [keys.hits("api", subject).decode() for subject in (b"user:1", b"}:{", b"/")]

    cached = keys.cache_version("c"), keys.cache_entry("c", "v", '"a}b"')
    own = (keys.shared, *keys.logs, *keys.metas, keys.record(1023, "s.t", "a:b"), *cached, *hits(keys))
    assert all(map(matched, own))
    foreign = other.cache_version("c"), other.cache_entry("c", "v", "1"), *hits(other), "wb:", "foreign"
    assert not any(map(matched, (other.shared, *other.logs, other.record(7, "t", "1"), *foreign)))


def test_a_flusher_has_no_business_with_caches_and_limiters() -> None:
    """It gets neither their keys nor their channel; what flushers count for themselves is beside the settings."""
    rules = {user.name: set(user.rules) for user in users("shop", Options())}
    caches = {"~wb:{shop/*}:*", f"&{channels('shop')}"}
    assert caches <= rules["shop-writer"]
    assert caches <= rules["shop-operator"]
    assert not caches & rules["shop-flusher"]
    assert any(fnmatch.fnmatchcase(Keys("shop", 1).flushed(1000), pattern) for pattern in patterns("shop"))
    assert fnmatch.fnmatchcase(Keys("shop", 1).cache_channel("c"), channels("shop"))
    assert not fnmatch.fnmatchcase(Keys("shopx", 1).cache_channel("c"), channels("shop"))


def test_lines() -> None:
    """A line replaces what a user could before; a password has to be put in, and a line of a file has no reset."""
    writer = users("shop", Options(select=True))[0]
    head = (
        "><password of shop-writer> ~wb:{shop:*}:* ~wb:{shop}:* ~wb:{shop/*}:* resetchannels &wb:{shop}:cache:* "
        "nocommands +acl|dryrun "
    )
    assert writer.command().startswith(f"ACL SETUSER shop-writer reset on {head}")
    assert writer.file_line().startswith(f"user shop-writer on {head}")
    assert "select" in granted(writer)
    assert default_user().command() == RECIPE


def test_an_old_server() -> None:
    """Redis 7.0 refuses rules with commands that it does not know; CONFIG GET only on demand."""
    plain, old, asking = (
        granted(users("shop", options)[0])
        for options in (Options(), Options(before_7_2=True), Options(config_get=True))
    )
    assert plain - old == {"waitaof", "client|setinfo"}
    assert asking - plain == {"config|get"}
