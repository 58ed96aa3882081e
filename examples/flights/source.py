"""The flights as the file has them."""

import contextlib
import csv
import io
import lzma
from collections.abc import Iterator
from importlib.resources import files
from itertools import islice
from typing import NamedTuple, TextIO

__all__ = ["FLIGHTS", "ScheduledFlight", "open_text", "scheduled_flights"]

FLIGHTS = 336_776
"""Rows of the file."""


class ScheduledFlight(NamedTuple):
    """One row of the file; what is empty there is None.

    Attributes:
        scheduled: time of departure as hhmm, local.
        departure_delay: minutes, negative when early; None when it never left.
        arrival_delay: minutes.
        air_minutes: minutes in the air.
        miles: distance.
    """

    month: int
    day: int
    scheduled: int
    departure_delay: int | None
    arrival_delay: int | None
    carrier: str
    number: int
    tail: str | None
    origin: str
    destination: str
    air_minutes: int | None
    miles: int


@contextlib.contextmanager
def open_text() -> Iterator[TextIO]:
    """Open the file, unpacked, its header first."""
    with (
        files(__package__).joinpath("flights-2013.csv.xz").open("rb") as packed,
        lzma.LZMAFile(packed) as unpacked,
        io.TextIOWrapper(unpacked, encoding="ascii", newline="") as text,
    ):
        yield text


def scheduled_flights(rows: int) -> Iterator[ScheduledFlight]:
    """Give the first so many flights of the year, in order of time.

    Args:
        rows: how many, ``FLIGHTS`` at the most.
    """
    with open_text() as text:
        lines = csv.reader(text)
        next(lines)
        for month, day, time, left, came, carrier, number, tail, origin, to, air, miles in islice(lines, rows):
            yield ScheduledFlight(
                int(month),
                int(day),
                int(time),
                _number(left),
                _number(came),
                carrier,
                int(number),
                tail or None,
                origin,
                to,
                _number(air),
                int(miles),
            )


def _number(text: str) -> int | None:
    return int(text) if text else None
