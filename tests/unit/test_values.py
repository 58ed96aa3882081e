import enum
import math
from collections import OrderedDict
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from writebehind.engine.core.columns import Column, Kind
from writebehind.engine.core.values import NULL, Codec, JsonText, codec
from writebehind.engine.errors import ValidationError


class Color(enum.Enum):
    """Members whose values are numbers."""

    RED = 1
    DARK_BLUE = 2


class Level(enum.IntEnum):
    """Members that are numbers."""

    LOW = 1


class Word(str):
    """A text that is not quite a str."""

    __slots__ = ()


class Moment(datetime):
    """A datetime with nanoseconds, as in pandas."""

    nanosecond = 7


SOME_UUID = UUID("12345678-1234-5678-1234-567812345678")
NOON = datetime(2024, 2, 29, 12)  # noqa: DTZ001
NOON_UTC = NOON.replace(tzinfo=UTC)


def make(kind: Kind, **limits: Any) -> Codec:
    """Return the codec of a column with these limits."""
    return codec("accounts", Column(name="value", kind=kind, **limits))


COLORS = {"RED": Color.RED, "DARK_BLUE": Color.DARK_BLUE}

FORMS: list[tuple[Kind, dict[str, Any], Any, Any, str | bytes]] = [
    (Kind.INTEGER, {}, -5, -5, "-5"),
    (Kind.INTEGER, {}, Level.LOW, 1, "1"),
    (Kind.INTEGER, {"maximum": 2**64 - 1}, 2**64 - 1, 2**64 - 1, "18446744073709551615"),
    (Kind.FLOAT, {}, 0.1, 0.1, "0.1"),
    (Kind.FLOAT, {}, 3, 3.0, "3.0"),
    (Kind.FLOAT, {}, -0.0, -0.0, "-0.0"),
    (Kind.FLOAT, {}, math.inf, math.inf, "inf"),
    (Kind.FLOAT, {"float_bits": 32}, 0.333333, 0.333333, "0.333333"),
    (Kind.NUMERIC, {"precision": 10, "scale": 2}, Decimal("1.5"), Decimal("1.50"), "1.50"),
    (Kind.NUMERIC, {"precision": 10, "scale": 2}, Decimal("1.5000"), Decimal("1.50"), "1.50"),
    (Kind.NUMERIC, {"precision": 10, "scale": 2}, 7, Decimal("7.00"), "7.00"),
    (Kind.NUMERIC, {"precision": 10, "scale": 2}, Decimal("-0.0"), Decimal("0.00"), "0.00"),
    (Kind.NUMERIC, {"precision": 10, "scale": 0}, Decimal("1E+3"), Decimal(1000), "1000"),
    (Kind.NUMERIC, {}, Decimal("1.500"), Decimal("1.5"), "1.5"),
    (Kind.NUMERIC, {}, Decimal("1E+3"), Decimal(1000), "1000"),
    (Kind.NUMERIC, {"scale": 2}, Decimal("9" * 60 + ".25"), Decimal("9" * 60 + ".25"), "9" * 60 + ".25"),
    (Kind.TEXT, {"length": 5}, "héllo", "héllo", "héllo"),
    (Kind.TEXT, {}, "", "", ""),
    (Kind.TEXT, {}, "\\N", "\\N", "\\\\N"),
    (Kind.TEXT, {}, "\\", "\\", "\\\\"),
    (Kind.TEXT, {}, "a\\N", "a\\N", "a\\N"),
    (Kind.TEXT, {}, Word("w"), "w", "w"),
    (Kind.BOOLEAN, {}, True, True, "true"),
    (Kind.BOOLEAN, {}, False, False, "false"),
    (Kind.DATE, {}, date(1, 1, 1), date(1, 1, 1), "0001-01-01"),
    (Kind.TIME, {}, time(1, 2, 3, 4), time(1, 2, 3, 4), "01:02:03.000004"),
    (Kind.DATETIME, {}, NOON, NOON, "2024-02-29T12:00:00"),
    (Kind.DATETIME, {}, NOON.replace(fold=1), NOON, "2024-02-29T12:00:00"),
    (Kind.DATETIME_UTC, {}, NOON_UTC, NOON_UTC, "2024-02-29T12:00:00+00:00"),
    (Kind.DATETIME_UTC, {}, NOON.replace(tzinfo=timezone(timedelta(hours=2))), NOON_UTC.replace(hour=10),
     "2024-02-29T10:00:00+00:00"),
    (Kind.INTERVAL, {}, timedelta(seconds=-1.5), timedelta(seconds=-1.5), "-1.500000"),
    (Kind.INTERVAL, {}, timedelta.max, timedelta.max, "86399999999999.999999"),
    (Kind.BYTES, {}, b"\x00\xff", b"\x00\xff", b"\x00\xff"),
    (Kind.BYTES, {}, b"\\N", b"\\N", b"\\\\N"),
    (Kind.BYTES, {}, bytearray(b"a"), b"a", b"a"),
    (Kind.BYTES, {}, memoryview(b"a"), b"a", b"a"),
    (Kind.JSON, {}, {"b": [1, 2.5, None, True], "a": "ä"}, '{"a":"ä","b":[1,2.5,null,true]}',
     '{"a":"ä","b":[1,2.5,null,true]}'),
    (Kind.JSON, {}, OrderedDict(a=10**40), f'{{"a":{10**40}}}', f'{{"a":{10**40}}}'),
    (Kind.UUID, {}, SOME_UUID, SOME_UUID, str(SOME_UUID)),
    (Kind.UUID, {"as_uuid": False}, SOME_UUID.hex.upper(), SOME_UUID, str(SOME_UUID)),
    (Kind.UUID, {"as_uuid": False}, SOME_UUID, SOME_UUID, str(SOME_UUID)),
    (Kind.ENUM, {"labels": COLORS}, Color.RED, "RED", "RED"),
    (Kind.ENUM, {"labels": COLORS}, "DARK_BLUE", "DARK_BLUE", "DARK_BLUE"),
    (Kind.ENUM, {"labels": {"a": "a", "\\N": "\\N"}}, "\\N", "\\N", "\\\\N"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "limits", "user", "wire", "text"), FORMS)
def test_forms(kind: Kind, limits: dict[str, Any], user: Any, wire: Any, text: str | bytes) -> None:
    """A value has one wire form of an exact type and one canonical text, and comes back from both."""
    subject = make(kind, **limits)
    accepted = subject.accept(user)
    assert accepted == wire
    assert repr(accepted) == repr(JsonText(wire) if kind is Kind.JSON else wire)
    assert type(accepted) in {type(wire), JsonText}
    written = subject.encode_text(accepted)
    assert written == text
    read = subject.decode_text(written if isinstance(written, bytes) else written.encode())
    assert read == subject.to_user(accepted)
    assert type(read) is type(subject.to_user(accepted))


def test_null() -> None:
    r"""NULL is None as user and wire value, and ``\N`` as text, for every kind."""
    for kind in Kind:
        subject = make(kind)
        assert subject.accept(None) is None
        assert subject.encode_text(None) == NULL
        assert subject.decode_text(b"\\N") is None
        assert subject.to_user(None) is None


def test_nan() -> None:
    """NaN goes through where the database takes it."""
    subject = make(Kind.FLOAT)
    assert math.isnan(subject.decode_text(subject.encode_text(subject.accept(math.nan)).encode()))  # type: ignore[union-attr]


REFUSED: list[tuple[Kind, dict[str, Any], Any]] = [
    (Kind.INTEGER, {}, True),
    (Kind.INTEGER, {}, 1.0),
    (Kind.INTEGER, {}, "1"),
    (Kind.INTEGER, {}, 2**63),
    (Kind.INTEGER, {"minimum": -(2**15), "maximum": 2**15 - 1}, -(2**15) - 1),
    (Kind.FLOAT, {}, True),
    (Kind.FLOAT, {}, "1.0"),
    (Kind.FLOAT, {}, Decimal(1)),
    (Kind.FLOAT, {}, 2**53 + 1),
    (Kind.FLOAT, {}, 10**400),
    (Kind.FLOAT, {"finite_only": True}, math.inf),
    (Kind.FLOAT, {"finite_only": True}, math.nan),
    (Kind.FLOAT, {"nan_allowed": False}, math.nan),
    (Kind.FLOAT, {"minimum": 0}, -1.0),
    (Kind.FLOAT, {"float_bits": 32}, 1 / 3),
    (Kind.FLOAT, {"float_bits": 32}, 1e300),
    (Kind.FLOAT, {"float_bits": 32}, 16777217.0),
    (Kind.NUMERIC, {"scale": 2}, 1.5),
    (Kind.NUMERIC, {"scale": 2}, True),
    (Kind.NUMERIC, {"scale": 2}, "1.5"),
    (Kind.NUMERIC, {"scale": 2}, Decimal("1.555")),
    (Kind.NUMERIC, {"precision": 4, "scale": 2}, Decimal(100)),
    (Kind.NUMERIC, {}, Decimal("NaN")),
    (Kind.NUMERIC, {}, Decimal("sNaN")),
    (Kind.NUMERIC, {}, Decimal("-Infinity")),
    (Kind.NUMERIC, {"as_decimal": False, "scale": 2}, 0.125),
    (Kind.NUMERIC, {"as_decimal": False}, math.nan),
    (Kind.NUMERIC, {"minimum": 0}, Decimal(-1)),
    (Kind.NUMERIC, {"significant_digits": 15}, 10**15 + 1),
    (Kind.TEXT, {}, b"a"),
    (Kind.TEXT, {}, 1),
    (Kind.TEXT, {}, "a\0b"),
    (Kind.TEXT, {}, "\ud800"),
    (Kind.TEXT, {"length": 3}, "abcd"),
    (Kind.TEXT, {"bytes_max": 3}, "ää"),
    (Kind.TEXT, {"blank_padded": True}, "ab "),
    (Kind.BOOLEAN, {}, 1),
    (Kind.BOOLEAN, {}, "true"),
    (Kind.DATE, {}, NOON),
    (Kind.DATE, {}, "2024-02-29"),
    (Kind.DATE, {"earliest": date(1000, 1, 1)}, date(999, 12, 31)),
    (Kind.TIME, {}, time(1, tzinfo=UTC)),
    (Kind.TIME, {}, NOON),
    (Kind.TIME, {"fraction_digits": 0}, time(1, microsecond=1)),
    (Kind.DATETIME, {}, NOON_UTC),
    (Kind.DATETIME, {}, date(2024, 2, 29)),
    (Kind.DATETIME, {}, Moment(2024, 1, 1)),
    (Kind.DATETIME, {"latest": NOON}, NOON + timedelta(microseconds=1)),
    (Kind.DATETIME_UTC, {}, NOON),
    (Kind.DATETIME_UTC, {}, datetime.max.replace(tzinfo=timezone(-timedelta(hours=1)))),
    (Kind.DATETIME_UTC, {}, 0),
    (Kind.INTERVAL, {}, 5),
    (Kind.INTERVAL, {"fraction_digits": 0}, timedelta(microseconds=-1)),
    (Kind.BYTES, {}, "a"),
    (Kind.BYTES, {}, 5),
    (Kind.BYTES, {"length": 2}, b"abc"),
    (Kind.BYTES, {"length": 2, "exact_length": True}, b"a"),
    (Kind.JSON, {}, (1, 2)),
    (Kind.JSON, {}, {"a": {1: 2}}),
    (Kind.JSON, {}, [math.inf]),
    (Kind.JSON, {}, [{"a": math.nan}]),
    (Kind.JSON, {}, ["a\0"]),
    (Kind.JSON, {}, {"a\0": 1}),
    (Kind.JSON, {}, ["\udfff"]),
    (Kind.JSON, {}, {"\udfff": 1}),
    (Kind.JSON, {}, {"a": Decimal(1)}),
    (Kind.JSON, {}, {"a": b""}),
    (Kind.JSON, {}, [10**5000]),
    (Kind.JSON, {"maximum": 2**63 - 1}, [2**63]),
    (Kind.JSON, {"bytes_max": 3}, "ä"),
    (Kind.UUID, {}, str(SOME_UUID)),
    (Kind.UUID, {"as_uuid": False}, "no uuid"),
    (Kind.ENUM, {"labels": COLORS}, "GREEN"),
    (Kind.ENUM, {"labels": COLORS}, 1),
    (Kind.ENUM, {"labels": COLORS}, []),
    (Kind.ENUM, {"labels": {"LOW": Level.LOW}}, 1),
]


@pytest.mark.parametrize(("kind", "limits", "value"), REFUSED)
def test_refusals(kind: Kind, limits: dict[str, Any], value: Any) -> None:
    """A value that would not come back as it is, is refused by table, column and type."""
    with pytest.raises(ValidationError) as caught:
        make(kind, **limits).accept(value)
    assert caught.value.message.startswith("accounts.value ")
    assert caught.value.message.endswith(f"got a value of type {type(value).__name__}")
    assert caught.value.hint


def test_refusals_keep_the_value_secret() -> None:
    """No refusal repeats what was passed."""
    for kind in Kind:
        with pytest.raises(ValidationError) as caught:
            make(kind, length=3).accept("a secret\0") if kind is not Kind.JSON else make(kind).accept({"a secret\0": 1})
        assert "secret" not in str(caught.value)


def test_unsigned_numeric_takes_negative_increments() -> None:
    """The lower limit of a column holds for sums, not for amounts."""
    for kind, amount in ((Kind.INTEGER, -1), (Kind.FLOAT, -1.5), (Kind.NUMERIC, Decimal(-1))):
        assert make(kind, minimum=0).accept_delta(amount) == amount


@pytest.mark.parametrize(
    ("kind", "limits", "amount"),
    [
        (Kind.TEXT, {}, 1),
        (Kind.INTEGER, {}, None),
        (Kind.INTEGER, {}, True),
        (Kind.INTEGER, {}, 1.0),
        (Kind.INTEGER, {"minimum": -128, "maximum": 127}, 256),
        (Kind.INTEGER, {}, 2**63),
        (Kind.FLOAT, {}, math.inf),
        (Kind.FLOAT, {}, math.nan),
        (Kind.FLOAT, {"float_bits": 32}, 1.0),
        (Kind.NUMERIC, {"scale": 2}, Decimal("0.001")),
        (Kind.NUMERIC, {}, Decimal("Infinity")),
        (Kind.NUMERIC, {}, None),
    ],
)
def test_refused_increments(kind: Kind, limits: dict[str, Any], amount: Any) -> None:
    """An amount that no sum could be exact with is refused."""
    with pytest.raises(ValidationError, match=r"accounts\.value "):
        make(kind, **limits).accept_delta(amount)


def test_huge_numeric_increment() -> None:
    """A NUMERIC amount beyond the range of floats is finite all the same."""
    assert make(Kind.NUMERIC).accept_delta(Decimal("1E+400")) == Decimal("1E+400")


def test_add() -> None:
    """Sums are exact, begin at 0 for NULL, and stay canonical."""
    assert make(Kind.INTEGER).add(2**62, 2**61) == 2**62 + 2**61
    assert make(Kind.INTEGER).add(None, 5) == 5
    assert make(Kind.FLOAT).add(0.5, 0.25) == 0.75
    numeric = make(Kind.NUMERIC, precision=40, scale=2)
    assert str(numeric.add(Decimal("1" * 35 + ".10"), Decimal("0.90"))) == "1" * 34 + "2.00"
    assert str(numeric.add(Decimal("1.10"), Decimal("-1.10"))) == "0.00"


@pytest.mark.parametrize(
    ("kind", "limits", "value", "amount"),
    [
        (Kind.INTEGER, {"minimum": 0, "maximum": 100}, 60, 41),
        (Kind.INTEGER, {"minimum": 0, "maximum": 100}, None, -1),
        (Kind.NUMERIC, {"precision": 4, "scale": 2}, Decimal("99.99"), Decimal("0.01")),
        (Kind.FLOAT, {}, 1.7e308, 1.7e308),
    ],
)
def test_sums_out_of_range(kind: Kind, limits: dict[str, Any], value: Any, amount: Any) -> None:
    """A sum that the column cannot hold is refused."""
    with pytest.raises(ValidationError):
        make(kind, **limits).add(value, amount)


def test_delta_sums_may_leave_the_range() -> None:
    """Increments add up beyond the column's range, as a later one may lead back."""
    subject = make(Kind.INTEGER, minimum=0, maximum=100)
    assert subject.add_deltas(subject.add_deltas(None, 80), 80) == 160
    assert subject.add_deltas(5, None) == 5


@pytest.mark.parametrize(
    ("kind", "text"),
    [(Kind.INTEGER, b"x"), (Kind.NUMERIC, b"x"), (Kind.BOOLEAN, b"1"), (Kind.UUID, b"x"), (Kind.JSON, b"{"),
     (Kind.DATE, b"x"), (Kind.INTERVAL, b"x"), (Kind.TEXT, b"\xff"), (Kind.ENUM, b"x"), (Kind.FLOAT, b"")],
)  # fmt: skip
def test_foreign_texts(kind: Kind, text: bytes) -> None:
    """A text of another kind raises one of the documented errors."""
    with pytest.raises((ValueError, ArithmeticError, LookupError)):
        make(kind, labels=COLORS).decode_text(text)
