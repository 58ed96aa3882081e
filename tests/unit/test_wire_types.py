from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from writebehind.engine.core.columns import Column, Kind
from writebehind.engine.core.values import JsonText
from writebehind.engine.core.wire_types import misfit

VALUES: dict[Kind, Any] = {
    Kind.INTEGER: 5,
    Kind.FLOAT: 1.5,
    Kind.NUMERIC: Decimal("1.5"),
    Kind.TEXT: "5",
    Kind.BOOLEAN: True,
    Kind.DATE: date(2020, 1, 1),
    Kind.TIME: time(5),
    Kind.DATETIME: datetime(2020, 1, 1),  # noqa: DTZ001 - without a time zone
    Kind.DATETIME_UTC: datetime(2020, 1, 1, tzinfo=UTC),
    Kind.INTERVAL: timedelta(1),
    Kind.BYTES: b"5",
    Kind.JSON: JsonText("5"),
    Kind.UUID: UUID(int=5),
}
WIDER = {
    Kind.INTEGER: {Kind.BOOLEAN},
    Kind.FLOAT: {Kind.INTEGER},
    Kind.NUMERIC: {Kind.INTEGER},
    Kind.TEXT: {Kind.JSON},
    Kind.ENUM: {Kind.TEXT, Kind.JSON},
}
"""What a column takes beside values of its own kind."""


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_in_place_of_every_other(kind: Kind) -> None:
    """Only what every database stores there unchanged passes, also among many; else the value's kind is told."""
    column = Column(name="v", kind=kind)
    accepted = {kind, *WIDER.get(kind, ())}
    for found, value in VALUES.items():
        expected = None if found in accepted else found
        if expected is Kind.DATETIME_UTC and kind is not Kind.DATETIME:
            expected = Kind.DATETIME
        assert misfit(column, [{"v": value}]) is expected
        assert misfit(column, [{"v": None}, *[{"v": VALUES.get(kind)}] * 100, {"v": value}, {"v": None}]) is expected
    assert misfit(column, []) is None
