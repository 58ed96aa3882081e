"""What is read from Redis beside payloads and records: IDs, lineages, key texts."""

import contextlib

import pytest
from hypothesis import strategies as st

from fuzzing import fuzz, kept
from writebehind.engine.core.columns import Column, Entity, Kind
from writebehind.engine.core.contiguity import backlog, begin, parse_lineage
from writebehind.engine.core.positions import ORIGIN, EntryID
from writebehind.engine.core.records import RecordPlan
from writebehind.engine.errors import ConfigurationError
from writebehind.recovery.key_texts import ForeignKey, key_values

digits = st.integers(-(10**20), 10**20).map(lambda number: str(number).encode())
ids = st.builds(lambda first, second: first + b"-" + second, digits, digits)
raw = st.binary(max_size=30) | ids | st.sampled_from(sorted(kept("meta").values()))


def entry_id(text: bytes) -> None:
    """Parse an entry's ID."""
    try:
        found = EntryID.parse(text)
    except ValueError:
        return
    assert EntryID.parse(str(found)) == found


@pytest.mark.parametrize("name", kept("meta"))
def test_kept_texts(name: str) -> None:
    """What was interesting once is tried first."""
    text = kept("meta")[name]
    entry_id(text)
    meta({b"lineage:" + text: text, b"lineage:7": text, text: text})


def test_entry_ids() -> None:
    """Any bytes are an entry ID or a ``ValueError``."""
    fuzz(entry_id, raw)


def meta(fields: dict[bytes, bytes]) -> None:
    """Read a partition's meta hash, and ask it what a flusher asks."""
    try:
        lineage = parse_lineage(fields)
    except ConfigurationError:
        return
    with contextlib.suppress(ValueError):
        begin(ORIGIN, {}, lineage)
    for end in [base for base in lineage.values() if base is not None]:
        assert backlog(ORIGIN, end, lineage) >= 0


names = raw | raw.map(lambda text: b"lineage:" + text) | st.integers(0, 9).map(lambda number: b"lineage:%d" % number)
bases = raw | st.builds(lambda epoch, end: b"%d-%d@0" % (epoch, end), st.integers(0, 9), st.integers(-1, 9))


def test_lineages() -> None:
    """Any meta hash is a lineage or a ``ConfigurationError``; whatever it says, counting comes to an end."""
    fuzz(meta, st.dictionaries(names, bases, max_size=8))


PLANS = [
    RecordPlan(Entity("t", columns, columns))
    for columns in (
        (Column(name="k", kind=kind, nullable=False, primary_key=True, labels={"RED": "RED"}),)
        for kind in Kind
        if kind is not Kind.JSON
    )
]
parts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["%00", "%", "%G1", "%ff", "1:2", "-0.0", "nan", "1e999", "0x1", "\uff11", "true", "RED", "+1", " 1", "1_0"]
)


def test_key_texts() -> None:
    """Any text is a key that has this very text, or is foreign."""

    def check(case: tuple[RecordPlan, str]) -> None:
        plan, text = case
        try:
            _, values = key_values(plan, text)
        except ForeignKey:
            return
        assert plan.key_only(tuple(plan.values_to_user(values).values()))[0] == text

    fuzz(check, st.tuples(st.sampled_from(PLANS), parts | st.integers().map(str)))
