"""What SQL must contain, computed straight from the file.

Nothing here is shared with ``traffic`` or ``source.scheduled_flights``: a mistake there must not be repeated here.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import sqlalchemy as sa

from writebehind.examples.flights.source import open_text
from writebehind.examples.flights.tables import Aircraft, Airport, Delay, Flight

__all__ = ["Expected", "Values", "truth"]

Values = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """What one table must contain.

    Attributes:
        table: the table.
        key: columns that tell its rows apart.
        columns: the other columns that are compared, in the order of the values.
        counters: those of them that only grow: too low means lost, too high means doubled.
        rows: values by key.
    """

    table: sa.Table
    key: tuple[str, ...]
    columns: tuple[str, ...]
    counters: frozenset[str] = frozenset()
    rows: Mapping[Values, Values] = field(repr=False)


def truth(count: int) -> list[Expected]:
    """Compute every row that the first so many flights must leave in SQL.

    Args:
        count: flights.
    """
    flights: dict[Values, Values] = {}
    delays: dict[Values, Values] = {}
    flown: dict[str, list[int]] = {}
    # cancelled, delayed, minutes, and the last delayed flight: carrier, number, delay
    airports: dict[str, list[Any]] = {code: [0, 0, 0, None, None, None] for code in ("JFK", "LGA", "EWR")}
    with open_text() as text:
        for row in islice(csv.DictReader(text), count):
            key = (
                *(int(row[name]) for name in ("month", "day", "sched_dep_time")),
                row["carrier"],
                int(row["flight"]),
                row["origin"],
            )
            late, landed, air = (
                int(row[name]) if row[name] else None for name in ("dep_delay", "arr_delay", "air_time")
            )
            miles = int(row["distance"])
            flights[key] = (row["dest"], row["tailnum"] or None, late, landed, air, miles)
            airport = airports[row["origin"]]
            if late is None:
                airport[0] += 1
                continue
            if row["tailnum"]:
                totals = flown.setdefault(row["tailnum"], [0, 0, 0])
                for index, amount in enumerate((1, miles, air or 0)):
                    totals[index] += amount
            if late >= 1:
                airport[1:] = [airport[1] + 1, airport[2] + late, row["carrier"], int(row["flight"]), late]
            if late >= 61:
                delays[key] = (late,)
    flight_key = ("month", "day", "scheduled", "carrier", "number", "origin")
    return [
        Expected(
            table=_table(Flight),
            key=flight_key,
            columns=("destination", "tail", "departure_delay", "arrival_delay", "air_minutes", "miles"),
            rows=flights,
        ),
        Expected(
            table=_table(Aircraft),
            key=("tail",),
            columns=("flights", "miles", "air_minutes"),
            counters=frozenset({"flights", "miles", "air_minutes"}),
            rows={(tail,): tuple(totals) for tail, totals in flown.items()},
        ),
        Expected(
            table=_table(Airport),
            key=("code",),
            columns=("cancelled", "delayed", "delay_minutes", "last_carrier", "last_number", "last_delay"),
            counters=frozenset({"cancelled", "delayed", "delay_minutes"}),
            rows={(code,): tuple(figures) for code, figures in airports.items()},
        ),
        Expected(table=_table(Delay), key=flight_key, columns=("minutes",), rows=delays),
    ]


def _table(model: Any) -> sa.Table:
    table: sa.Table = model.__table__
    return table
