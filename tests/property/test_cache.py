"""Whoever reads, loads slowly, dies or invalidates: nothing older than an invalidation is read after it.

Reads are driven effect by effect on a real Redis, so that a load lasts for as many other steps as it likes.
Announcements arrive when the machine says so: what a process with copies may give is measured by what it has heard.
Values also change without an invalidation: a load may bring an older one than a load that began later, but not cache it
after that one has.

``HYPOTHESIS_PROFILE=long`` runs many more and longer examples.
"""

import os
import secrets
from collections import Counter, deque
from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from writebehind.engine.adapters.cache_store import ALL, ONE, CacheStore
from writebehind.engine.adapters.cached_read import CachedRead, Done, resume
from writebehind.engine.adapters.links import Links
from writebehind.engine.adapters.local_cache import LocalCache
from writebehind.engine.config import CacheSettings
from writebehind.engine.core.cached_values import Codec, key_text
from writebehind.engine.core.caching import Effect, Fill, Load, Wait, fetch
from writebehind.engine.core.keys import Keys

COMMON: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}
BOUNDS = {
    "short": settings(max_examples=200, stateful_step_count=50, **COMMON),
    "long": settings(max_examples=2000, stateful_step_count=80, **COMMON),
}
KEYS = ("a", "b")
SETTINGS = CacheSettings(ttl_seconds=600, stale_seconds=600, jitter=0.0, local_entries_max=1)


class Mishap(Enum):
    """What happens to a cache from outside."""

    SUBSCRIPTION_LOST = auto()
    VERSION_LOST = auto()
    ENTRY_LOST = auto()
    LEASE_OVER = auto()
    VALUE_EXPIRED = auto()
    VALUE_SPOILT = auto()


class Copies(LocalCache):
    """Copies that hear what the machine tells them."""

    def _listen(self) -> None:
        self._valid_until = float("inf")


class Process:
    """What one process has of the cache.

    Attributes:
        heard: for each key, the value that must be there according to the invalidations that it knows of.
    """

    def __init__(self, links: Links, keys: Keys, *, with_copies: bool) -> None:
        self.store = CacheStore(links, keys, "profile", SETTINGS, lambda _: None)
        self.local = Copies(links, "", 1) if with_copies else None
        self.heard: Counter[str] = Counter()
        self.coming: deque[tuple[bytes, dict[str, int]]] = deque()

    def learn(self, values: dict[str, int]) -> None:
        """Know of invalidations of keys that had these values by then."""
        for key, value in values.items():
            self.heard[key] = max(self.heard[key], value)


@dataclass(eq=False)
class Reading:
    """A read that has not ended.

    Attributes:
        least: the value that it may give at the least.
        at: what it waits for.
        loaded: the value that its load gives, once it has begun.
        undisturbed: how often the key's lease was taken away before the load.
    """

    process: Process
    key: str
    least: int
    read: CachedRead
    steps: Generator[Effect, Any, Any]
    at: Effect | Done
    loaded: int = 0
    undisturbed: int = -1


class CacheMachine(RuleBasedStateMachine):
    """Reads and invalidations against the rule that counts."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        keys = Keys(f"p{secrets.token_hex(4)}", 1)
        self.keys = keys
        self.links = Links(self.url, 5.0)
        self.client: Any = redis.Redis.from_url(self.url)
        self.processes = [Process(self.links, keys, with_copies=number == 1) for number in range(3)]
        self.codec = Codec(SETTINGS.serializer, int, 1000)
        self.source = Counter[str]()
        self.disturbed = Counter[str]()
        self.filled = Counter[str]()
        self.readings: list[Reading] = []
        self.counts: Counter[str] = Counter()

    def teardown(self) -> None:
        """Close the connections."""
        self.links.close()
        self.client.close()

    def count(self, name: str, amount: float = 1) -> None:
        """Count."""
        self.counts[name] += int(amount)

    # What the machine does

    @rule(number=st.integers(0, 2), key=st.sampled_from(KEYS))
    def begin(self, number: int, key: str) -> None:
        """Begin a read; it goes on until it loads, waits or ends."""
        process = self.processes[number]
        text = key_text(key)
        least = process.heard[key]
        payload = process.local.get(text) if process.local is not None else None
        if payload is not None:
            assert self.codec.decode(payload) >= least
            return
        read = CachedRead(
            store=process.store, local=process.local, loads={}, settings=SETTINGS, count=self.count, text=text
        )
        steps = fetch(self.codec, self.count)
        self.go_on(Reading(process, key, least, read, steps, resume(steps)))

    def go_on(self, reading: Reading) -> None:
        """Perform what can be performed at once."""
        while not isinstance(reading.at, Done | Load | Wait):
            done = reading.read.perform(reading.at)
            if isinstance(reading.at, Fill) and done:
                entry = reading.at.lease.entry
                assert reading.loaded >= self.filled[entry], "older than what a load has cached that began later"
                self.filled[entry] = reading.loaded
            reading.at = resume(reading.steps, done)
        if isinstance(reading.at, Done):
            assert reading.at.value >= reading.least, "older than an invalidation that the process knew of"
        if isinstance(reading.at, Load):
            reading.loaded = self.source[reading.key]
            reading.undisturbed = self.disturbed[reading.key]
            others = [each for each in self.readings if each.key == reading.key and isinstance(each.at, Load)]
            assert reading.undisturbed not in {each.undisturbed for each in others}, "two load at once"
        self.readings.append(reading)

    @precondition(lambda self: self.readings)
    @rule(data=st.data())
    def go_on_with_one(self, data: st.DataObject) -> None:
        """Let a load bring what was there when it began, a waiting read look again, or a copy be kept."""
        reading = data.draw(st.sampled_from(self.readings))
        self.readings.remove(reading)
        if isinstance(reading.at, Done):
            reading.read.keep()
            return
        reading.at = resume(reading.steps, reading.loaded if isinstance(reading.at, Load) else True)
        self.go_on(reading)

    @precondition(lambda self: any(isinstance(each.at, Load) for each in self.readings))
    @rule(data=st.data(), dies=st.booleans())
    def fail(self, data: st.DataObject, dies: bool) -> None:  # noqa: FBT001 - Hypothesis passes it by name
        """Let a loader raise, or its process die."""
        reading = data.draw(st.sampled_from([each for each in self.readings if isinstance(each.at, Load)]))
        self.readings.remove(reading)
        if not dies:
            self.disturbed[reading.key] += 1
            reading.at = resume(reading.steps, error=ZeroDivisionError())
            with pytest.raises(ZeroDivisionError):
                self.go_on(reading)

    @rule(key=st.sampled_from(KEYS))
    def change(self, key: str) -> None:
        """Change a key's value, and tell nobody."""
        self.source[key] += 1

    @rule(number=st.integers(0, 2), key=st.sampled_from(KEYS))
    def invalidate(self, number: int, key: str) -> None:
        """Change a key's value, and invalidate it."""
        self.source[key] += 1
        process = self.processes[number]
        process.store.invalidate(key_text(key))
        if process.local is not None:
            process.local.drop(key_text(key))
        self.announce(process, ONE + key_text(key).encode(), [key])

    @rule(number=st.integers(0, 2))
    def invalidate_all(self, number: int) -> None:
        """Change all values, and invalidate everything."""
        self.source.update(KEYS)
        process = self.processes[number]
        process.store.invalidate_all()
        if process.local is not None:
            process.local.drop_all()
        self.announce(process, ALL, list(KEYS))

    def announce(self, by: Process, message: bytes, keys: list[str]) -> None:
        """Have everybody hear of it: those without copies need not."""
        values = {key: self.source[key] for key in keys}
        self.disturbed.update(keys)
        for process in self.processes:
            if process is by or process.local is None:
                process.learn(values)
            else:
                process.coming.append((message, values))

    @precondition(lambda self: any(process.coming for process in self.processes))
    @rule()
    def hear(self) -> None:
        """Deliver the next announcement."""
        for process in self.processes:
            if process.coming and process.local is not None:
                message, values = process.coming.popleft()
                process.local.announced(message)
                process.learn(values)

    @rule(mishap=st.sampled_from(Mishap), key=st.sampled_from(KEYS))
    def suffer(self, mishap: Mishap, key: str) -> None:
        """Have something happen that nobody asked for."""
        match mishap:
            case Mishap.SUBSCRIPTION_LOST:
                self.lose_subscriptions()
            case Mishap.VERSION_LOST:
                self.client.delete(self.keys.cache_version("profile"))
                self.disturbed.update(KEYS)
            case Mishap.ENTRY_LOST:
                self.disturbed[key] += sum(self.client.delete(entry) for entry in self.entries(key))
            case Mishap.LEASE_OVER:
                self.disturbed[key] += self.overwrite(key, "lease", 1)
            case Mishap.VALUE_EXPIRED:
                seconds, microseconds = self.client.time()
                self.overwrite(key, "until", seconds * 1000 + microseconds // 1000 - 1)
            case Mishap.VALUE_SPOILT:
                self.overwrite(key, "value", b"\xff")

    def lose_subscriptions(self) -> None:
        """Lose them and have them again: what was announced before is known, since nothing is kept."""
        for process in self.processes:
            if process.local is not None:
                process.local.lost()
                process.local._valid_until = float("inf")
                while process.coming:
                    process.learn(process.coming.popleft()[1])

    def overwrite(self, key: str, field: str, value: bytes | int) -> int:
        """Change a field where an entry has it; count how often."""
        having = [entry for entry in self.entries(key) if self.client.hexists(entry, field)]
        for entry in having:
            self.client.hset(entry, field, value)
        return len(having)

    def entries(self, key: str) -> list[bytes]:
        """Return the entries of a key, of whatever version."""
        stem = self.keys.cache_entry("profile", "*", key_text(key)).replace('"', "?")
        return list(self.client.scan_iter(stem, count=1000))


def test_nothing_older_than_an_invalidation_is_read_after_it(redis_url: str) -> None:
    """By nobody who knows of it; and nobody loads what another one is loading."""
    machine = type("Machine", (CacheMachine,), {"url": redis_url})
    run_state_machine_as_test(machine, settings=BOUNDS[os.environ.get("HYPOTHESIS_PROFILE", "short")])
