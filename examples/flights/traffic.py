"""The mutations that a flight causes."""

from writebehind.engine import Batch
from writebehind.examples.flights.source import ScheduledFlight
from writebehind.examples.flights.tables import Aircraft, Airport, Delay, Flight

__all__ = ["AIRPORTS", "LONG_DELAY_MINUTES", "open_airports", "record"]

AIRPORTS = ("EWR", "JFK", "LGA")
LONG_DELAY_MINUTES = 60


def open_airports(batch: Batch) -> None:
    """Put the airports, all figures at zero: a patch wants a record that exists."""
    for code in AIRPORTS:
        batch.put(Airport, {"code": code})


def record(batch: Batch, flight: ScheduledFlight) -> None:
    """Add one to five mutations: the flight itself, and what it means for aircraft and airport.

    A flight that never left counts as cancelled and flew no miles. Where the tail number is missing no aircraft
    is credited; where the time in the air is missing, no minutes are.

    Repeat: counts the flight twice.
    """
    delay = flight.departure_delay
    batch.put(
        Flight,
        {
            "month": flight.month,
            "day": flight.day,
            "scheduled": flight.scheduled,
            "carrier": flight.carrier,
            "number": flight.number,
            "origin": flight.origin,
            "destination": flight.destination,
            "tail": flight.tail,
            "departure_delay": delay,
            "arrival_delay": flight.arrival_delay,
            "air_minutes": flight.air_minutes,
            "miles": flight.miles,
        },
    )
    if delay is None:
        batch.increment(Airport, flight.origin, {"cancelled": 1})
        return
    if flight.tail is not None:
        flown = {"flights": 1, "miles": flight.miles}
        if flight.air_minutes is not None:
            flown["air_minutes"] = flight.air_minutes
        batch.increment(Aircraft, flight.tail, flown)
    if delay > 0:
        batch.increment(Airport, flight.origin, {"delayed": 1, "delay_minutes": delay})
        batch.patch(
            Airport,
            flight.origin,
            {"last_carrier": flight.carrier, "last_number": flight.number, "last_delay": delay},
        )
    if delay > LONG_DELAY_MINUTES:
        batch.insert(
            Delay,
            {
                "month": flight.month,
                "day": flight.day,
                "scheduled": flight.scheduled,
                "carrier": flight.carrier,
                "number": flight.number,
                "origin": flight.origin,
                "minutes": delay,
            },
        )
