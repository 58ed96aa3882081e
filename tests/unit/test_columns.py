from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pytest

from writebehind.engine.core.columns import (
    JSON_ITEMS_MAX,
    NO_DEFAULT,
    Column,
    Entity,
    Kind,
    decimal_violation,
    json_violation,
    moment_violation,
    text_violation,
)
from writebehind.engine.errors import ConfigurationError

ID = Column(name="id", kind=Kind.INTEGER, nullable=False, primary_key=True)


def test_column_without_default() -> None:
    """None is a default like any other; only NO_DEFAULT is none."""
    assert not ID.has_default
    assert ID.default is NO_DEFAULT
    assert repr(NO_DEFAULT) == "NO_DEFAULT"
    assert Column(name="a", kind=Kind.TEXT, default=None).has_default


def test_default_function_is_called_anew() -> None:
    """A default function is called for each record."""
    numbers = iter(range(3))
    column = Column(name="a", kind=Kind.INTEGER, default=lambda: next(numbers))
    assert [column.make_default(), column.make_default()] == [0, 1]


def test_columns_are_hashable() -> None:
    """A column can be a key of a dict, whatever its default and labels are."""
    assert {Column(name="a", kind=Kind.JSON, default={}, labels={"x": []})}


def test_entity_needs_a_key() -> None:
    """A table without primary key is refused."""
    with pytest.raises(ConfigurationError, match="events has no primary key"):
        Entity("events", (ID,), ())


def test_entity_checks_partition_by() -> None:
    """A partition_by that names no column is refused."""
    with pytest.raises(ConfigurationError, match="'owner', which is no column"):
        Entity("events", (ID,), (ID,), "owner")


def test_insert_only() -> None:
    """An entity partitioned by a column outside its key is insert-only."""
    other = Column(name="account_id", kind=Kind.INTEGER)
    assert Entity("events", (ID, other), (ID,), "account_id").insert_only
    assert not Entity("events", (ID, other), (ID,), "id").insert_only
    assert not Entity("events", (ID, other), (ID,)).insert_only


@pytest.mark.parametrize("text", ["1E+999999999", "1E-999999999", "-1E+131072", "1E-16384"])
def test_decimal_of_absurd_exponent(text: str) -> None:
    """A number that would take megabytes as text is refused without being written out."""
    assert decimal_violation(Column(name="a", kind=Kind.NUMERIC), Decimal(text)) is not None


@pytest.mark.parametrize(
    ("precision", "scale", "fits", "too_large"),
    [(5, 2, "999.99", "1000"), (3, 5, "0.00999", "0.01"), (2, 0, "99", "100"), (2, None, "99", "100")],
)
def test_decimal_precision(precision: int, scale: int | None, fits: str, too_large: str) -> None:
    """Precision minus scale digits may stand before the point."""
    column = Column(name="a", kind=Kind.NUMERIC, precision=precision, scale=scale)
    assert decimal_violation(column, Decimal(fits)) is None
    assert decimal_violation(column, Decimal("-" + fits)) is None
    assert decimal_violation(column, Decimal(too_large)) is not None


def test_trailing_zeros_are_no_digits() -> None:
    """Zeros at the end count neither for the scale nor for the significant digits."""
    column = Column(name="a", kind=Kind.NUMERIC, scale=2, significant_digits=3)
    assert decimal_violation(column, Decimal("12300000.0000")) is None
    assert decimal_violation(column, Decimal(1234)) is not None


@pytest.mark.parametrize(("digits", "fits", "lost"), [(0, 0, 1), (3, 123000, 123400), (5, 10, 1), (6, 1, None)])
def test_fractions_of_a_second(digits: int, fits: int, lost: int | None) -> None:
    """A fraction fits where the digits beyond the column's are zero."""
    column = Column(name="a", kind=Kind.DATETIME, fraction_digits=digits)
    moments: list[Any] = [
        datetime(2024, 1, 1, microsecond=fits),  # noqa: DTZ001
        time(1, microsecond=fits),
        timedelta(days=-1, microseconds=fits),
        date(2024, 1, 1),
    ]
    assert [moment_violation(column, moment) for moment in moments] == [None] * 4
    if lost is not None:
        assert moment_violation(column, time(1, microsecond=lost)) is not None


def test_json_depth() -> None:
    """As many levels as allowed fit, one more does not, and recursion ends."""
    column = Column(name="a", kind=Kind.JSON, json_depth_max=3)
    assert json_violation(column, [{"a": [1]}]) is None
    assert json_violation(column, [{"a": [[]]}]) is not None
    endless: list[Any] = []
    endless.append(endless)
    assert json_violation(column, endless) is not None


def test_json_of_shared_references() -> None:
    """A few lists that stand for billions of items are refused at once."""
    document: list[Any] = []
    for _ in range(60):
        document = [document, document]
    violation = json_violation(Column(name="a", kind=Kind.JSON), document)
    assert violation is not None
    assert str(JSON_ITEMS_MAX) in violation[0]


def test_text_bytes() -> None:
    """Characters and UTF-8 bytes are limited apart."""
    column = Column(name="a", kind=Kind.TEXT, length=4, bytes_max=6)
    assert text_violation(column, "abcd") is None
    assert text_violation(column, "äöü") is None
    assert text_violation(column, "äöüa") is not None
    assert text_violation(column, "abcde") is not None
