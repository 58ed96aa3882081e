"""The pure part of caches: keys, payloads, the protocol, what is kept in this process."""

import contextlib
import dataclasses
import datetime as dt
import decimal
import enum
import http
import math
import re
import uuid
from collections import Counter
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from writebehind.engine.config import CacheSettings, Serializer
from writebehind.engine.core.cached_values import KEY_BYTES_MAX, NOTHING, Codec, Unreadable, key_text
from writebehind.engine.core.caching import (
    Effect,
    Fill,
    Found,
    Lease,
    Load,
    Look,
    Release,
    State,
    Wait,
    early_weight,
    fetch,
    fresh_ms,
    pause_seconds,
)
from writebehind.engine.core.keys import Keys
from writebehind.engine.core.local_entries import COUNTERS, LocalEntries
from writebehind.engine.errors import ConfigurationError, ReadTimeout, ValidationError

LEASE = Lease("entry", b"token", b"generation", 1)
DONE, LATE, GO_ON, GIVE_UP, FRESH, OLD = True, False, True, False, True, False
CODEC = Codec(Serializer.MSGPACK, Any, 1000)

scalars = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.integers() | st.booleans() | st.uuids()
keys = scalars | st.tuples(scalars) | st.tuples(scalars, st.tuples(scalars, scalars))


def typed(key: object) -> object:
    """Return what tells keys apart: by value and by type, but for a UUID and its text."""
    if isinstance(key, tuple):
        return tuple(map(typed, key))
    return ("UUID or str", str(key)) if isinstance(key, (uuid.UUID, str)) else (type(key).__name__, key)


@given(keys, keys)
def test_keys_have_texts_of_their_own(one: object, other: object) -> None:
    """Two keys have the same text only where they are the same."""
    assert (key_text(one) == key_text(other)) == (typed(one) == typed(other))


@pytest.mark.parametrize(
    "key",
    [
        1.5,
        None,
        b"bytes",
        ["list"],
        (1, None),
        "\ud800",
        "x" * KEY_BYTES_MAX,
        dt.date(2026, 1, 1),
        pytest.param(10**5000, id="digits"),
    ],
)
def test_unusable_keys(key: object) -> None:
    """A key of another type, without a text, or too long is refused."""
    with pytest.raises(ValidationError, match="a cache's key"):
        key_text(key)


class Markup(str):
    """A text as template engines have it."""

    __slots__ = ()

    def __str__(self) -> str:
        return f"<{super().__str__()}>"


class Number(int):
    """A number with a text of its own."""

    def __str__(self) -> str:
        return "a number"


class Colour(enum.StrEnum):
    """A text with a name."""

    RED = "red"


class Point(NamedTuple):
    """A tuple with names."""

    x: int
    y: str


@pytest.mark.parametrize(
    ("key", "plain"),
    [
        (Markup("a"), "a"),
        (Number(7), 7),
        (Colour.RED, "red"),
        (http.HTTPStatus.OK, 200),
        (Point(1, Markup("a")), (1, "a")),
    ],
)
def test_keys_of_subclasses(key: object, plain: object) -> None:
    """They are the keys that their values are."""
    assert key_text(key) == key_text(plain)


def test_a_key_that_is_nested_too_deeply() -> None:
    """It is refused like any other."""
    deep: tuple[Any, ...] = ()
    for _ in range(100_000):
        deep = (deep,)
    with pytest.raises(ValidationError, match="nested too deeply"):
        key_text(deep)


def test_names_in_redis() -> None:
    """Entries spread over slots, and share no tag with what else the namespace has, nor a pattern with another one."""
    names = Keys("shop", 16)
    entries = [names.cache_entry("profile", "v1", key_text(number)) for number in range(1000)]
    tags = {re.findall(r"\{(.*?)\}", entry)[0] for entry in entries}
    assert len(tags) > 900
    assert not any(tag.startswith("shop:") or tag == "shop" for tag in tags)
    assert names.cache_version("profile") not in {names.shared, *names.logs, *names.metas}


@dataclasses.dataclass
class Profile:
    """What a cache may be told to decode as."""

    name: str
    since: dt.date


@pytest.mark.parametrize("serializer", Serializer)
def test_values_of_a_type(serializer: Serializer) -> None:
    """With a type, what comes out is what went in."""
    value = {"ada": Profile("Ada", dt.date(1815, 12, 10))}
    codec = Codec(serializer, dict[str, Profile], 1000)
    assert codec.decode(codec.encode(value)) == value
    assert codec.decode(codec.encode(None)) is None
    other = next(each for each in Serializer if each is not serializer)
    assert Codec(other, dict[str, Profile], 1000).decode(codec.encode(value)) == value


@pytest.mark.parametrize("serializer", Serializer)
@pytest.mark.parametrize("value", [object(), {1, object()}, 2**200j, "\ud800", lambda: 1, "x" * 1001])
def test_values_that_cannot_be_cached(serializer: Serializer, value: object) -> None:
    """They are refused with what to do about it; never pickled."""
    with pytest.raises(ValidationError, match="cannot be cached"):
        Codec(serializer, Any, 1000).encode(value)


@given(st.binary(max_size=40))
def test_anything_in_redis_is_a_value_or_unreadable(payload: bytes) -> None:
    """Foreign bytes raise nothing else."""
    with contextlib.suppress(Unreadable):
        Codec(Serializer.MSGPACK, Any, 1000).decode(payload)


def test_a_type_that_cannot_be_decoded() -> None:
    """It is refused when the cache is made."""
    with pytest.raises(ConfigurationError, match="cannot be decoded"):
        Codec(Serializer.JSON, list[str] | set[str], 1000)


def run(*replies: Any, codec: Codec = CODEC) -> tuple[list[Effect], Any, Counter[str]]:
    """Play a read with these replies; an exception is raised where it stands. Return effects, outcome and counts."""
    counts: Counter[str] = Counter()
    steps = fetch(codec, lambda name: counts.update([name]))
    effects: list[Effect] = []
    answers = iter(replies)
    try:
        effects.append(next(steps))
        while True:
            answer = next(answers)
            effects.append(steps.throw(answer) if isinstance(answer, BaseException) else steps.send(answer))
    except StopIteration as done:
        return effects, done.value, counts
    except (ReadTimeout, ValidationError, ZeroDivisionError, OSError) as error:
        return effects, error, counts


def test_a_hit() -> None:
    """One look; a negative one is None."""
    assert run(Found(State.HIT, CODEC.encode([1]))) == ([Look()], [1], {"hits": 1})
    assert run(Found(State.HIT, NOTHING)) == ([Look()], None, {"hits": 1, "negative_hits": 1})
    assert run(Found(State.STALE, CODEC.encode(1))) == ([Look()], 1, {"stale": 1})


def test_a_miss() -> None:
    """The holder of the lease loads and fills; it gets what a later hit would."""
    effects, value, counts = run(Found(State.LEASED, lease=LEASE), (1, decimal.Decimal("1.0")), DONE)
    assert effects == [Look(), Load(), Fill(LEASE, b"m" + msgspec.msgpack.encode([1, "1.0"]))]
    assert value == [1, "1.0"]
    assert counts == {"misses": 1}


def test_a_fill_that_comes_too_late() -> None:
    """The value is its caller's all the same."""
    assert run(Found(State.LEASED, lease=LEASE), 1, LATE)[1:] == (1, {"misses": 1, "uncached": 1})
    assert run(Found(State.UNCACHED), 1) == ([Look(), Load()], 1, {"misses": 1, "uncached": 1})


def test_a_loader_that_raises() -> None:
    """The lease is given back, and the error is the caller's."""
    effects, error, _ = run(Found(State.LEASED, lease=LEASE), ZeroDivisionError(), None)
    assert effects == [Look(), Load(), Release(LEASE)]
    assert isinstance(error, ZeroDivisionError)


@pytest.mark.parametrize("error", [OSError(), ValidationError("too large", "")], ids=["raises", "cannot be cached"])
def test_an_early_refresh_that_fails(error: Exception) -> None:
    """The lease is given back, and the caller gets the value, if it is fresh even then."""
    for value in (7, None):
        refresh = Found(State.LEASED, CODEC.encode(value), LEASE)
        assert run(refresh, error, FRESH) == ([Look(), Load(), Release(LEASE, error)], value, {"misses": 1})
        assert run(refresh, error, OLD) == ([Look(), Load(), Release(LEASE, error)], error, {"misses": 1})


def test_an_early_refresh_of_what_cannot_be_read() -> None:
    """Nothing is there to be given instead."""
    error = ZeroDivisionError()
    assert run(Found(State.LEASED, b"?", LEASE), error, FRESH)[:2] == ([Look(), Load(), Release(LEASE)], error)


def test_an_early_refresh_that_is_cancelled() -> None:
    """Who wants no value any more is given none."""
    steps = fetch(CODEC, lambda _: None)
    assert next(steps) == Look()
    assert steps.send(Found(State.LEASED, CODEC.encode(7), LEASE)) == Load()
    assert steps.throw(KeyboardInterrupt()) == Release(LEASE)
    with pytest.raises(KeyboardInterrupt):
        steps.send(None)


def test_a_value_that_cannot_be_cached_gives_the_lease_back() -> None:
    """Also where it is not of the type that it would be decoded as."""
    for codec, value in ((CODEC, object()), (Codec(Serializer.MSGPACK, int, 1000), "text")):
        effects, error, _ = run(Found(State.LEASED, lease=LEASE), value, None, codec=codec)
        assert effects == [Look(), Load(), Release(LEASE)]
        assert isinstance(error, ValidationError)


def test_waiting() -> None:
    """Another one loads: look again and again, until there is a value, a lease, or no time left."""
    busy = Found(State.BUSY)
    hit = Found(State.HIT, CODEC.encode(1))
    assert run(busy, GO_ON, busy, GO_ON, hit) == (
        [Look(), Wait(1), Look(), Wait(2), Look()], 1, {"misses": 1, "waits": 1}
    )  # fmt: skip
    assert run(busy, GO_ON, Found(State.LEASED, lease=LEASE), 2, DONE)[1] == 2
    effects, error, _ = run(busy, GO_ON, busy, GIVE_UP)
    assert effects == [Look(), Wait(1), Look(), Wait(2)]
    assert isinstance(error, ReadTimeout)


def test_what_another_release_writes_is_counted_once() -> None:
    """However often a read looks at it while others load."""
    spoilt, busy = Found(State.HIT, b"?"), Found(State.BUSY)
    effects, _, counts = run(spoilt, busy, GO_ON, spoilt, busy, GO_ON, Found(State.LEASED, lease=LEASE), 1, DONE)
    assert effects.count(Look(unreadable="it begins with b'?'")) == 2
    assert counts == {"unreadable": 1, "misses": 1, "waits": 1}


def test_what_cannot_be_read_counts_as_a_miss() -> None:
    """It is looked up again as if it were not there, and overwritten."""
    effects, value, counts = run(Found(State.HIT, b"?"), Found(State.LEASED, lease=LEASE), 1, DONE)
    assert effects == [Look(), Look(unreadable="it begins with b'?'"), Load(), Fill(LEASE, CODEC.encode(1))]
    assert (value, counts) == (1, {"unreadable": 1, "misses": 1})


@given(st.floats(0, 1), st.floats(0.001, 1e6), st.floats(0, 1))
def test_times(chance: float, ttl_seconds: float, jitter: float) -> None:
    """A value is never fresh for longer than it may be, nor for much less than jitter allows; pauses are bounded."""
    fresh = fresh_ms(ttl_seconds, jitter, chance)
    assert max(1, int(1000 * ttl_seconds * (1 - jitter))) - 1 <= fresh <= max(1, 1000 * ttl_seconds)
    assert 0 < pause_seconds(1, chance) <= pause_seconds(20, 1.0) <= 0.05


def test_early_refresh_is_as_the_paper_has_it() -> None:
    """With beta 1 the refresh comes, on average, one load before the end; with 0 never."""
    chances = [(number + 0.5) / 10_000 for number in range(10_000)]
    assert math.isclose(sum(early_weight(1.0, chance) for chance in chances) / 10_000, 1.0, rel_tol=0.01)
    assert {early_weight(0.0, chance) for chance in chances} == {0.0}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ttl_seconds", 0), ("ttl_seconds", math.nan), ("ttl_seconds", math.inf), ("negative_ttl_seconds", -1),
        ("jitter", 1.5), ("lease_seconds", 0), ("early_refresh", -1), ("local_entries_max", -1),
        ("serializer", "pickle"), ("value_bytes_max", 0),
    ],
)  # fmt: skip
def test_settings_that_are_not_possible(name: str, value: Any) -> None:
    """They are refused with their name."""
    with pytest.raises(ConfigurationError, match=name):
        CacheSettings(**{"ttl_seconds": 60, name: value})


def test_negative_values_live_shorter() -> None:
    """Half a minute at the most, unless it is said."""
    assert CacheSettings(ttl_seconds=3600).ttl_seconds_of(negative=True) == 30
    assert CacheSettings(ttl_seconds=5).ttl_seconds_of(negative=True) == 5
    assert CacheSettings(ttl_seconds=5, negative_ttl_seconds=60).ttl_seconds_of(negative=True) == 60


def test_local_entries_are_bounded() -> None:
    """The least recently used goes first; what has expired is not given."""
    entries = LocalEntries(2)
    for text in "ab":
        assert entries.put(text, text.encode(), 10.0, entries.ticket(text))
    assert entries.get("a", 9.9) == b"a"
    entries.put("c", b"c", 10.0, entries.ticket("c"))
    assert [entries.get(text, 0.0) for text in "abc"] == [b"a", None, b"c"]
    assert entries.get("a", 10.0) is None
    assert len(entries) == 1


@given(
    st.lists(
        st.tuples(st.sampled_from(["read", "put", "drop", "drop all"]), st.sampled_from("abc"), st.integers(0, 3)),
        max_size=40,
    )
)
def test_nothing_read_before_an_invalidation_is_kept_after_it(history: list[tuple[str, str, int]]) -> None:
    """Whatever the order in which reads begin, invalidations arrive and what was read is put."""
    entries = LocalEntries(2)
    version = Counter[str]()
    reads: dict[int, Any] = {}
    for what, text, reader in history:
        if what == "read":
            reads[reader] = text, entries.ticket(text), b"%d" % version[text]
        elif what == "put" and reader in reads:
            key, ticket, payload = reads.pop(reader)
            entries.put(key, payload, 1.0, ticket)
        elif what == "drop":
            version[text] += 1
            entries.drop(text)
        elif what == "drop all":
            version.update("abc")
            entries.drop_all()
        for key in "abc":
            assert entries.get(key, 0.0) in {None, b"%d" % version[key]}


def test_keys_that_share_a_counter() -> None:
    """A ticket of one is void when the other is dropped: one value less is kept, none too many."""
    entries = LocalEntries(10)
    tickets = {str(number): entries.ticket(str(number)) for number in range(3 * COUNTERS)}
    entries.drop("0")
    void = [text for text, ticket in tickets.items() if not entries.put(text, b"", 1.0, ticket)]
    assert "0" in void
    assert len(void) < 20
