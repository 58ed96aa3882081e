"""What an engine for asyncio is told, in the words of a driver for threads: odd values are translated or refused."""

import math
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from writebehind.engine import ConfigurationError
from writebehind.engine.adapters.blocking_databases import blocking_url

pytest.importorskip("asyncpg")

FOREVER = {"connect_timeout": "0"}


def translated(arguments: dict[str, Any], query: str = "") -> dict[str, Any]:
    """Return what psycopg is told where asyncpg is told this."""
    database = create_async_engine(f"postgresql+asyncpg://me:secret@one/shop{query}", connect_args=arguments)
    return dict(blocking_url(database.sync_engine).query)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"timeout": math.inf}, FOREVER),
        ({"timeout": None}, FOREVER),
        ({"timeout": 0.1}, {"connect_timeout": "1"}),
        ({"command_timeout": None}, {}),
        ({"command_timeout": math.inf}, {}),
        ({"command_timeout": 0.0001}, {"options": "-c statement_timeout=1"}),
        ({"command_timeout": 1e30}, {"options": "-c statement_timeout=2147483647"}),
        ({"server_settings": None}, {}),
        ({"server_settings": {}}, {}),
        ({"server_settings": {"my.setting": "a\tb\nc\\ d"}}, {"options": "-c my.setting=a\\\tb\\\nc\\\\\\ d"}),
        ({"server_settings": {"search_path": "\u00a0"}}, {"options": "-c search_path=\u00a0"}),
        ({"ssl": None, "passfile": None, "service": None}, {}),
    ],
)
def test_odd_values(arguments: dict[str, Any], expected: dict[str, str]) -> None:
    """None and infinity are "no limit" for both; whatever PostgreSQL parts options at is escaped."""
    assert translated(arguments) == expected


def test_odd_values_in_the_url() -> None:
    """They are texts there, and mean the same."""
    assert translated({}, "?timeout=inf&command_timeout=2") == {**FOREVER, "options": "-c statement_timeout=2000"}


@pytest.mark.parametrize(
    "arguments",
    [
        {"timeout": math.nan},
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": 10**400},
        {"timeout": "soon"},
        {"command_timeout": 0},
        {"command_timeout": -math.inf},
        {"command_timeout": math.nan},
        {"command_timeout": [1]},
        {"server_settings": ["jit"]},
        {"server_settings": "jit"},
        {"server_settings": 0},
        {"server_settings": {"jit": False}},
        {"server_settings": {"jit": None}},
        {"server_settings": {"jit": "off\0"}},
        {"server_settings": {"jit -c fsync": "off"}},
        {"server_settings": {"": "off"}},
        {"server_settings": {1: "off"}},
        {"server_settings": {"replication": "database"}},
        {"passfile": "a\0b"},
        {"service": 1},
    ],
    ids=str,
)
def test_values_that_cannot_be_told(arguments: dict[str, Any]) -> None:
    """They are refused by the name of the option, without the value."""
    (name,) = arguments
    with pytest.raises(ConfigurationError, match=f"asyncpg is told by {name} cannot") as caught:
        translated(arguments)
    assert "blocking_database=" in caught.value.hint
