import contextlib
import enum
import math
from datetime import UTC, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from writebehind.engine.core.columns import Column, Entity, Kind
from writebehind.engine.core.payload import Op, PayloadError, decode, encode
from writebehind.engine.core.records import KEY_BYTES_MAX, RecordPlan
from writebehind.engine.core.values import codec
from writebehind.engine.core.wire_types import misfit
from writebehind.engine.errors import ValidationError


class Color(enum.Enum):
    """Members for the ENUM columns."""

    RED = 1
    BLUE = 2


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=10,
)
VALUES: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.INTEGER: st.integers(-(2**63), 2**63 - 1),
    Kind.FLOAT: st.floats(),
    Kind.NUMERIC: st.decimals(allow_nan=False, allow_infinity=False),
    Kind.TEXT: TEXTS | st.sampled_from(["\\", "\\N", "\\\\N", ""]),
    Kind.BOOLEAN: st.booleans(),
    Kind.DATE: st.dates(),
    Kind.TIME: st.times(),
    Kind.DATETIME: st.datetimes(),
    Kind.DATETIME_UTC: st.datetimes(timezones=ZONES | st.just(UTC)),
    Kind.INTERVAL: st.timedeltas(),
    Kind.BYTES: st.binary(max_size=40) | st.sampled_from([b"\\", b"\\N"]),
    Kind.JSON: DOCUMENTS.filter(lambda document: document is not None),
    Kind.UUID: st.uuids(),
    Kind.ENUM: st.sampled_from(Color),
}


def column_of(kind: Kind, **limits: Any) -> Column:
    """Return a column of any kind."""
    return Column(name="v", kind=kind, labels={member.name: member for member in Color}, **limits)


def as_bytes(text: str | bytes) -> bytes:
    """Return a text as Redis does."""
    return text if isinstance(text, bytes) else text.encode()


def same(first: Any, second: Any) -> bool:
    """Tell whether two values are the same, NaN being itself."""
    return bool(first == second) or (isinstance(first, float) and math.isnan(first) and math.isnan(second))


@pytest.mark.parametrize("kind", Kind)
@given(data=st.data())
def test_round_trip(kind: Kind, data: st.DataObject) -> None:
    """What is accepted comes back from payload and text as it went in; all else is a ValidationError."""
    subject = codec("t", column_of(kind))
    value = data.draw(VALUES[kind])
    try:
        wire = subject.accept(value)
    except ValidationError:
        assert kind in {Kind.NUMERIC, Kind.DATETIME_UTC}  # absurd exponents; the edges of the calendar
        return
    ((_, _, _, values),) = decode(encode(Op.PUT, "t", "1", {"v": wire}))
    assert type(values["v"]) is type(wire)
    assert same(values["v"], wire)
    assert misfit(subject.column, [values]) is None
    assert same(subject.to_user(values["v"]), value)
    assert same(subject.decode_text(as_bytes(subject.encode_text(wire))), value)
    assert as_bytes(subject.encode_text(wire)) != b"\\N"


@given(value=st.decimals(allow_nan=False, allow_infinity=False, places=3), precision=st.integers(4, 30))
def test_numeric_round_trip(value: Decimal, precision: int) -> None:
    """A NUMERIC keeps its value and has the column's scale, or is refused for its size."""
    subject = codec("t", column_of(Kind.NUMERIC, precision=precision, scale=3))
    try:
        wire = subject.accept(value)
    except ValidationError:
        assert abs(value) >= Decimal(10) ** (precision - 3)
        return
    assert wire == value
    assert wire.as_tuple().exponent == -3
    assert subject.decode_text(as_bytes(subject.encode_text(wire))) == value


@given(value=st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_single_precision(value: float) -> None:
    """A single-precision column takes exactly the numbers that six digits tell apart."""
    subject = codec("t", column_of(Kind.FLOAT, float_bits=32))
    rounded = float(f"{value:.6g}")
    if abs(rounded) < 3.4e38 and (rounded == 0.0 or abs(rounded) > 1.2e-38):
        assert subject.accept(rounded) == rounded
    if rounded != value:
        with pytest.raises(ValidationError):
            subject.accept(value)


@given(payload=st.binary(max_size=200))
def test_arbitrary_payloads(payload: bytes) -> None:
    """Arbitrary bytes are a payload or a PayloadError."""
    with contextlib.suppress(PayloadError):
        decode(payload)


@given(data=st.data())
def test_damaged_payloads(data: st.DataObject) -> None:
    """A payload with some bytes changed, cut or added is a payload or a PayloadError."""
    kinds = data.draw(st.lists(st.sampled_from(list(VALUES)), max_size=5, unique=True))
    values = {}
    for kind in kinds:
        try:
            values[kind.name] = codec("t", column_of(kind)).accept(data.draw(VALUES[kind]))
        except ValidationError:
            continue
    payload = bytearray(encode(Op.PUT, "t", "1", values))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(payload)))
    for damaged in (bytes(payload), bytes(payload[:cut]), bytes(payload) + b"\x00"):
        with contextlib.suppress(PayloadError):
            decode(damaged)


KEY_KINDS = [kind for kind in Kind if kind is not Kind.JSON]


@pytest.mark.parametrize("kind", KEY_KINDS)
@given(data=st.data())
def test_key_texts_are_injective(kind: Kind, data: st.DataObject) -> None:
    """Two composite keys have the same text exactly where they are equal."""
    columns = tuple(
        Column(name=name, kind=part, nullable=False, primary_key=True, labels={color.name: color for color in Color})
        for name, part in (("a", kind), ("b", Kind.TEXT))
    )
    plan = RecordPlan(Entity("t", columns, columns))
    part = st.one_of(st.sampled_from(["", ":", "%", "%00", "%3A", "a", "A"]), TEXTS)
    keys = data.draw(st.lists(st.tuples(VALUES[kind], part), min_size=2, max_size=2))
    texts = []
    for key in keys:
        try:
            texts.append(plan.key_only(key)[0])
        except ValidationError:
            return
    assert (texts[0] == texts[1]) == (keys[0] == keys[1])
    for text in texts:
        assert text.count(":") == 1
        assert len(text.encode()) <= KEY_BYTES_MAX
        assert not any(sign.isspace() or sign in "{}" for sign in text)
