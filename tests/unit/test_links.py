"""Connections to Redis."""

import pytest

from writebehind.engine.adapters.links import Links
from writebehind.engine.errors import RedisUnavailable


def test_any_number_of_tries_is_as_good_as_the_first() -> None:
    """Each fails because the server is away, the hundred-and-first too, where the driver would give up."""
    links = Links("redis://127.0.0.1:1/0", 1.0)
    for _ in range(250):
        with pytest.raises(RedisUnavailable, match="refused"), links.link():
            pass
