"""The tables that the replay writes to."""

from sqlalchemy import BigInteger, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = ["TABLES", "Aircraft", "Airport", "Base", "Delay", "Flight"]


class Base(DeclarativeBase):
    """What the tables of this example have in common."""


class Flight(Base):
    """One scheduled flight. What is missing in the source is NULL."""

    __tablename__ = "demo_flights"

    month: Mapped[int] = mapped_column(primary_key=True)
    day: Mapped[int] = mapped_column(primary_key=True)
    scheduled: Mapped[int] = mapped_column(primary_key=True)
    carrier: Mapped[str] = mapped_column(String(2), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    origin: Mapped[str] = mapped_column(String(3), primary_key=True)
    destination: Mapped[str] = mapped_column(String(3))
    tail: Mapped[str | None] = mapped_column(String(6))
    departure_delay: Mapped[int | None]
    arrival_delay: Mapped[int | None]
    air_minutes: Mapped[int | None]
    miles: Mapped[int]


class Aircraft(Base):
    """What an aircraft has flown; it comes into being with its first increment."""

    __tablename__ = "demo_aircraft"

    tail: Mapped[str] = mapped_column(String(6), primary_key=True)
    flights: Mapped[int] = mapped_column(default=0)
    miles: Mapped[int] = mapped_column(BigInteger, default=0)
    air_minutes: Mapped[int] = mapped_column(BigInteger, default=0)


class Airport(Base):
    """How punctual an airport is: three rows that hundreds of thousands of mutations meet in."""

    __tablename__ = "demo_airports"

    code: Mapped[str] = mapped_column(String(3), primary_key=True)
    cancelled: Mapped[int] = mapped_column(default=0)
    delayed: Mapped[int] = mapped_column(default=0)
    delay_minutes: Mapped[int] = mapped_column(BigInteger, default=0)
    last_carrier: Mapped[str | None] = mapped_column(String(2))
    last_number: Mapped[int | None]
    last_delay: Mapped[int | None]


class Delay(Base):
    """A departure more than an hour late. No unique key but the database's own: a row written twice would stay."""

    __tablename__ = "demo_delays"

    id: Mapped[int] = mapped_column(primary_key=True)
    month: Mapped[int]
    day: Mapped[int]
    scheduled: Mapped[int]
    carrier: Mapped[str] = mapped_column(String(2))
    number: Mapped[int]
    origin: Mapped[str] = mapped_column(String(3))
    minutes: Mapped[int]


TABLES = (Flight, Aircraft, Airport, Delay)
"""All of them, as ``WriteBehind`` wants them."""
