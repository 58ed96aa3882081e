"""Moments as an operator writes them."""

import re
import time
from datetime import datetime
from typing import Final

import click

__all__ = ["as_moment", "moment_ms"]

SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def moment_ms(text: str, now: float) -> int:
    """Return the milliseconds since 1970 of a moment.

    Args:
        text: ISO 8601, in this machine's time zone where it names none; or ``90s``, ``30m``, ``2h``, ``1d`` ago.
        now: the time, in seconds since 1970.

    Raises:
        ValueError: it is neither.
    """
    ago = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if ago is not None:
        return int((now - float(ago[1]) * SECONDS[ago[2]]) * 1000)
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def as_moment(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    """Return what an option says, in milliseconds since 1970; a callback of click's."""
    try:
        return None if value is None else moment_ms(value, time.time())
    except (ValueError, OverflowError, OSError) as error:
        raise click.BadParameter(
            f"{value!r} is no time: write 2026-03-31T13:45, or 90s, 30m, 2h, 1d for so long ago"
        ) from error
