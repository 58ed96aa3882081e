"""The lists of commands that permissions are judged by know every command of the scripts."""

import re
from importlib.resources import files
from pathlib import Path

import pytest
import redis

from writebehind.engine.adapters.permissions import COMMANDS, REPLAYED, denied_in, dry_runs
from writebehind.engine.core.disk_rules import RECIPE

READS = {
    "EXISTS", "HEXISTS", "HGET", "HGETALL", "HMGET", "PTTL", "TIME", "TYPE", "XINFO|GROUPS", "XINFO|STREAM", "XLEN",
    "XPENDING", "XRANGE", "XREVRANGE", "ZCARD", "ZCOUNT", "ZRANGE",
}  # fmt: skip
ANNOUNCEMENTS = {"PUBLISH"}
"""They change nothing that is kept, and are in no file: test_acl.py looks."""
REWRITTEN = {"PEXPIRE": "PEXPIREAT"}
"""How Redis itself words a command in its append-only file."""


def called() -> set[str]:
    """Return the commands that the scripts call."""
    names = set()
    for script in files("writebehind.engine.adapters").joinpath("lua").iterdir():
        text = script.read_text()
        for name, sub in re.findall(r"redis\.call\('(\w+)'(?:, '([A-Z]+)')?", text):
            names.add(f"{name}|{sub}" if name in {"XINFO", "XGROUP"} else name)
        assert len(re.findall(r"redis\.p?call\(", text)) == len(re.findall(r"redis\.call\('[A-Z]+'", text)), script.name
    return names


def test_every_command_of_the_scripts_is_probed() -> None:
    """A script that is denied a command half way leaves a part of a write: none may be missing from the list."""
    assert called() <= set(COMMANDS)


def test_every_write_of_the_scripts_is_looked_for_in_the_permissions_of_default() -> None:
    """What the append-only file replays is known; reads of scripts are not in it."""
    writes = {REWRITTEN.get(name, name) for name in called() - READS - ANNOUNCEMENTS}
    assert writes <= set(REPLAYED)


def test_the_recipe_allows_what_is_replayed() -> None:
    """Whoever follows the advice is not told off again."""
    allowed = {word[1:].upper() for word in RECIPE.split() if word.startswith("+")}
    assert {name.partition("|")[0] for name in REPLAYED} <= allowed


def test_the_manual_has_the_same_lists() -> None:
    """What is to be copied from the manual is what the product advises and needs."""
    manual = " ".join((Path(__file__).parents[2] / "docs" / "doctor.md").read_text().split())
    assert RECIPE in manual
    listed = re.search(r"ACL SETUSER service on (.*?) \+wait ", manual)
    assert listed is not None
    allowed = {word[1:].upper() for word in listed[1].split() if word.startswith("+")}
    assert {name for name in COMMANDS if name not in allowed and name.partition("|")[0] not in allowed} == set()
    assert {name for name in allowed if not any(each.startswith(name) for each in COMMANDS)} == set()


def test_replies_to_dry_runs() -> None:
    """OK is allowed, another text is denied, a command that the server does not know does not count."""
    commands = {"XADD": ("{key}", "*", "f", "v"), "XGROUP|CREATE": ("{key}", "g", "0"), "PUBLISH": ("{channel}", "m")}
    assert dry_runs("default", commands, "k", "c") == [
        ("ACL", "DRYRUN", "default", "XADD", "k", "*", "f", "v"),
        ("ACL", "DRYRUN", "default", "XGROUP", "CREATE", "k", "g", "0"),
        ("ACL", "DRYRUN", "default", "PUBLISH", "c", "m"),
    ]
    unknown = redis.ResponseError("Command 'publish' not found")
    assert denied_in([b"OK", b"OK", b"OK"], commands) == ()
    assert denied_in([b"OK", b"User default has no permissions", unknown], commands) == ("XGROUP|CREATE",)


@pytest.mark.parametrize("text", ["this user has no permissions to run the 'acl|dryrun' command", "unknown command"])
def test_hidden_dry_runs(text: str) -> None:
    """A server that answers none of them hides it all."""
    refused = [redis.ResponseError(text)] * len(REPLAYED)
    assert denied_in(refused, REPLAYED) is None
