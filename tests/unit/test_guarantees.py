"""docs/guarantees.md names tests and drills that exist."""

import ast
import re
from pathlib import Path

from writebehind.drills.catalogue import DRILLS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "guarantees.md").read_text()


def test_every_test_named_exists() -> None:
    """A promise without its test is none."""
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TEXT)
    assert len(named) > 30
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text())
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not name or name in functions, f"{path}::{name}"


def test_every_drill_is_named_and_exists() -> None:
    """Each rehearsal stands behind a promise."""
    lists = re.findall(r"drills? ((?:`[\w-]+`(?:,\s+|\s+and\s+)?)+)", TEXT)
    named = {name for each in lists for name in re.findall(r"`([\w-]+)`", each)}
    assert named <= set(DRILLS)
    assert set(DRILLS) - set(re.findall(r"`([\w-]+)`", TEXT)) <= {
        "redis-cut",
        "redis-slow",
        "redis-half-open",
        "sql-slow",
    }
