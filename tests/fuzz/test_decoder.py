"""The decoder of payloads and what it hands over, given anything at all."""

import math
import resource
import subprocess
import sys
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import strategies as st

from fuzzing import CORPUS, fuzz, kept
from writebehind.engine.config import FIELDS_MAX, MEMBERS_MAX, PAYLOAD_BYTES_MAX
from writebehind.engine.core.coalescing import Changes, TableChanges
from writebehind.engine.core.columns import Column, Entity, Kind
from writebehind.engine.core.payload import VERSION, Mutation, Op, PayloadError, decode, encode, encode_group
from writebehind.engine.core.records import KEY_BYTES_MAX, RecordPlan
from writebehind.engine.core.values import JsonText
from writebehind.engine.errors import WriteBehindError

MESSAGE_MAX = 400
MEMORY_BYTES_MAX = 1 << 30
WIRE_TYPES = {
    type(None), bool, int, float, str, bytes, datetime, date, time, timedelta, Decimal, UUID, JsonText,
}  # fmt: skip

COLUMNS = tuple(
    Column(name=kind.name.lower(), kind=kind, primary_key=kind is Kind.INTEGER, labels={"RED": "RED"}) for kind in Kind
)
PLAN = RecordPlan(Entity("t", COLUMNS, COLUMNS[:1]))

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    texts,
    st.binary(max_size=20),
    st.datetimes(),
    st.datetimes(timezones=st.just(UTC)),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.decimals(),
    st.uuids(),
    texts.map(JsonText),
)
names = st.sampled_from([column.name for column in COLUMNS]) | texts
mutations = st.tuples(
    st.integers(1, 7),
    st.sampled_from(["t", "t", "t", "unknown"]) | texts,
    st.sampled_from(["1", "2", ""]) | texts,
    st.dictionaries(names, scalars, max_size=8).map(lambda values: {"integer": 1, **values}),
)
payloads = mutations.map(lambda mutation: encode(*mutation)) | st.lists(mutations, max_size=5).map(encode_group)

extensions = st.builds(
    msgspec.msgpack.Ext,
    st.integers(-128, 127) | st.integers(0, 8),
    st.binary(max_size=20) | st.sampled_from([b"1E+999999999", b"-1E-999999999", b"NaN", b"\xff" * 8, b"\x7f" * 16]),
)
things = st.recursive(
    scalars.filter(lambda value: type(value) in {bool, int, float, str, bytes, type(None)}) | extensions,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(texts | st.integers(0, 9), inner, max_size=6),
    max_leaves=30,
)
shapes = st.tuples(
    st.sampled_from([1, 1, 1, 0, 2, -1, 2**64 - 1]), st.integers(-1, 9), texts, texts, st.dictionaries(texts, things)
).map(list)

SNIPPETS = (
    b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x05", b"\x91" * 2000, b"\x81\xa1a" * 1000, b"\xc1", b"\xd9\x02\xed\xa0", b"\xc7\x0c\xff",
    b"\xdc\xff\xff", b"\xde\xff\xff", b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x01", b"\xd6\xff\xff\xff\xff\xff",
)  # fmt: skip
"""What length headers can lie about, and other nuisances."""


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Return a payload of which a part was overwritten, cut out, doubled or replaced by a nuisance."""
    payload = bytearray(draw(payloads | st.sampled_from(sorted(kept("payload").values()))))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(payload)))
        until = min(len(payload), at + draw(st.integers(0, 8)))
        payload[at:until] = draw(
            st.binary(max_size=8) | st.sampled_from(SNIPPETS) | st.just(bytes(payload[at:until]) * 2)
        )
    return bytes(payload)


def same(first: Any, second: Any) -> bool:
    """Tell whether two wire values are the same, of the same type, NaN being itself."""
    if type(first) is not type(second):
        return False
    return bool(first == second) or (isinstance(first, float) and math.isnan(first) and math.isnan(second))


def refused(error: PayloadError) -> None:
    """Look at a refusal: it is short and says nothing of the content, also in a traceback."""
    assert len(str(error)) <= MESSAGE_MAX
    assert "MemoryError" not in str(error)
    assert error.__suppress_context__ or error.__context__ is None


def check(payload: bytes) -> list[Mutation]:
    """Decode a payload: mutations within the limits, or a ``PayloadError``, nothing else."""
    try:
        found = decode(payload)
    except PayloadError as error:
        refused(error)
        return []
    assert len(found) <= MEMBERS_MAX
    for op, table, key_text, values in found:
        assert Op.PUT <= op <= max(Op)
        assert (type(table), type(key_text), type(values)) == (str, str, dict)
        assert len(key_text) <= KEY_BYTES_MAX
        assert len(values) <= FIELDS_MAX
        for name, value in values.items():
            assert type(name) is str
            assert type(value) in WIRE_TYPES
    (again,) = (decode(encode(*found[0])) if len(found) == 1 else decode(encode_group(found)),)
    for before, after in zip(found, again, strict=True):
        assert before[:3] == after[:3]
        assert before[3].keys() == after[3].keys()
        assert all(same(value, after[3][name]) for name, value in before[3].items())
    return found


def merge(payload: bytes) -> None:
    """Hand what is decoded to a batch, as a flusher does: merged, or an error that halts one partition."""
    changes = Changes(
        {
            "t": lambda: TableChanges(
                ("integer",),
                PLAN.adders,
                PLAN.default_row,
                delta_adders=PLAN.delta_adders,
                columns=PLAN.columns.keys(),
            )
        }
    )
    changes.enter(0)
    for entry_id in (b"1-0", b"1-1"):
        try:
            changes.merge(check(payload), entry_id)
        except (WriteBehindError, IndexError, KeyError, TypeError, ValueError):
            # What the intake of a flusher takes for a damaged entry; all else would end the flusher.
            continue


@pytest.mark.parametrize("name", kept("payload"))
def test_kept_payloads(name: str) -> None:
    """What was interesting once is tried first."""
    merge(kept("payload")[name])


def test_arbitrary_bytes() -> None:
    """Any bytes."""
    fuzz(check, st.binary(max_size=400) | st.binary(max_size=400).map(lambda tail: b"\x95\x01\x01" + tail))  # type: ignore[arg-type]


def test_damaged_payloads() -> None:
    """Payloads of which something was changed."""
    fuzz(merge, damaged())


def test_other_shapes() -> None:
    """Well-formed msgpack of any shape: nested, huge, with unknown extension types."""
    fuzz(check, shapes.map(msgspec.msgpack.encode) | things.map(msgspec.msgpack.encode))  # type: ignore[arg-type]


def test_forged_payloads() -> None:
    """Payloads in the format, whose tables, columns and types are anybody's."""
    fuzz(merge, payloads)


IN_LITTLE_MEMORY = """
import pathlib, resource, sys
from writebehind.engine.core.payload import PayloadError, decode
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), int(sys.argv[2])))
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        decode(path.read_bytes())
    except PayloadError as error:
        if "MemoryError" in str(error):
            sys.exit(f"{path.name}: {error}")
status = pathlib.Path("/proc/self/status")
if status.exists():  # what getrusage says on Linux begins with the parent's memory
    print(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_a_header_allocates_nothing() -> None:
    """A payload that says it holds billions of items costs no more memory than its bytes."""
    done = subprocess.run(
        [sys.executable, "-c", IN_LITTLE_MEMORY, str(CORPUS / "payload"), str(MEMORY_BYTES_MAX)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < MEMORY_BYTES_MAX / 4
    assert resource.RLIMIT_AS is not None


def test_limits() -> None:
    """Payloads at the limits are read, one step beyond they are refused, and the message says which limit it was."""
    columns = {f"c{number}": number for number in range(FIELDS_MAX)}
    assert check(encode(Op.PUT, "t", "1", columns))
    members: list[Mutation] = [(int(Op.DELETE), "t", "1", {"id": 1})] * MEMBERS_MAX
    assert len(check(encode_group(members))) == MEMBERS_MAX
    beyond = {
        f"{FIELDS_MAX + 1} columns": encode(Op.PUT, "t", "1", columns | {"one more": 1}),
        f"{MEMBERS_MAX + 1} mutations": encode_group([*members, members[0]]),
        "a list or a map": msgspec.msgpack.encode([VERSION, 1, "t", "1", {"v": [1]}]),
        f"a key of {KEY_BYTES_MAX + 1} characters": encode(Op.PUT, "t", "1" * (KEY_BYTES_MAX + 1), {}),
        f"{PAYLOAD_BYTES_MAX + 1} bytes": b"\x95" * (PAYLOAD_BYTES_MAX + 1),
    }
    for words, payload in beyond.items():
        with pytest.raises(PayloadError, match=words):
            decode(payload)
