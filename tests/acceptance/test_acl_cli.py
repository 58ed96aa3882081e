"""``writebehind acl`` as an operator and a script use it; the integration tests try out what the users may do."""

import json
import subprocess
import sys
from pathlib import Path

SECONDS_MAX = 60

SHOP = """
import sqlalchemy as sa

from writebehind.engine import WriteBehind

accounts = sa.Table("accounts", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))
wb = WriteBehind(redis="redis://127.0.0.1:1/3", database="sqlite:///x.db", tables=[accounts], namespace="market")
"""


def call(*arguments: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run the installed command line; no server is there."""
    command = [str(Path(sys.executable).with_name("writebehind")), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)


def test_a_namespace_is_enough() -> None:
    """Lines on standard output, one for each user; what to know about them on standard error."""
    done = call("--namespace", "shop", "acl")
    assert done.returncode == 0
    names = [line.split()[:3] for line in done.stdout.splitlines()]
    assert names == [["ACL", "SETUSER", f"shop-{role}"] for role in ("writer", "flusher", "operator")] + [
        ["ACL", "SETUSER", "default"]
    ]
    assert all(line.startswith("# ") for line in done.stderr.splitlines())
    assert "--redis-7.0" in done.stderr
    assert "+select" not in done.stdout.splitlines()[0]
    old = call("--namespace", "shop", "acl", "--redis-7.0", "--format", "aclfile")
    assert old.stdout.startswith("user shop-writer on ")
    assert "waitaof" not in old.stdout
    assert "reset " not in old.stdout


def test_an_app(tmp_path: Path) -> None:
    """Its namespace, and its database's number: another one than 0 has to be selected. No connection is made."""
    (tmp_path / "shop.py").write_text(SHOP)
    done = call("--app", "shop:wb", "acl", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["namespace"] == "market"
    rules = {user["name"]: user["rules"] for user in told["users"]}
    assert list(rules) == ["market-writer", "market-flusher", "market-operator", "default"]
    assert "+select" in rules["market-writer"]
    assert "~wb:{market:*}:*" in rules["market-writer"]
    assert rules["default"][0] == "off"


def test_wrong_usage() -> None:
    """Without a namespace there is nothing to print; one that cannot be is refused."""
    assert call("acl").returncode == 2
    done = call("--namespace", "a b", "acl")
    assert done.returncode == 1
    assert "namespace 'a b' is not usable" in done.stderr
