"""Rate limits: what they may be, what the script is told of a hit, and what its reply means.

Pure. The script decides, so that counting and admitting are one step; here is what both sides of it understand.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

from writebehind.engine.core.appending import Refused
from writebehind.engine.errors import ConfigurationError, RedisUnavailable, ValidationError, WriteBehindError

__all__ = ["UNITS_MAX", "Hit", "Limits", "hit_of", "refused", "subject_bytes"]

UNITS_MAX = 100_000
"""Of one limit. Each hit of a window is kept, in 130 bytes at the most, and Redis frees all of a subject's at once."""

LIMITS_MAX = 8
WINDOW_SECONDS_MIN = 0.001
WINDOW_SECONDS_MAX = 366 * 86_400.0
SUBJECT_BYTES_MAX = 512
MICROSECONDS = 1_000_000

PASSING = frozenset(
    {"BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY", "TRYAGAIN"}
)
"""Refusals that pass, all of them before any effect."""


@dataclass(frozen=True, slots=True)
class Hit:
    """What became of a hit; true where it was admitted.

    Attributes:
        allowed: whether it was admitted.
        remaining: units that would still be admitted now; of several limits, of the scarcest.
        retry_after_seconds: when the same hit would be admitted if nobody else hits meanwhile: exactly, by Redis's
            clock, from its reply on; 0 where it was admitted.
    """

    allowed: bool
    remaining: int
    retry_after_seconds: float

    def __bool__(self) -> bool:
        return self.allowed


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one limiter, all of which a hit has to meet.

    Attributes:
        name: the limiter's name.
        windows: for each limit its units and its window in microseconds.
        cost_max: what a hit may cost at the most: the smallest limit.
    """

    name: str
    windows: tuple[tuple[int, int], ...]
    cost_max: int

    @classmethod
    def of(
        cls,
        name: str,
        limit: int | None = None,
        window_seconds: float | None = None,
        limits: Sequence[tuple[int, float]] | None = None,
    ) -> "Limits":
        """Check limits, given as one or as several.

        Args:
            name: the limiter's name.
            limit: units that are admitted in any window.
            window_seconds: the window's length.
            limits: several of such pairs, in place of the two.

        Raises:
            ConfigurationError: they are not possible.
        """
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,32}", str(name)):
            raise ConfigurationError(
                f"rate limiter {name!r}: this name is not usable", "use 1 to 32 of a-z, A-Z, 0-9, '_', '-' and '.'"
            )
        if (limits is None) == (limit is None) or (limit is None) != (window_seconds is None):
            raise ConfigurationError(
                f"rate limiter {name}: its limits are not clear",
                "give limit= and window_seconds=, or several such pairs: limits=[(10, 1.0), (100, 60.0)]",
            )
        given = [(limit, window_seconds)] if limits is None else list(limits)
        if not 1 <= len(given) <= LIMITS_MAX:
            raise ConfigurationError(f"rate limiter {name}: {len(given)} limits", f"give 1 to {LIMITS_MAX}")
        windows = tuple((_units(name, units), _microseconds(name, seconds)) for units, seconds in given)
        if len({window for _, window in windows}) < len(windows):
            raise ConfigurationError(f"rate limiter {name}: two limits have the same window", "give the lower one only")
        return cls(name, windows, min(units for units, _ in windows))

    def arguments(self, cost: int, *, count: bool) -> tuple[int, ...]:
        """Return what the script is told of a hit.

        Args:
            cost: its units.
            count: whether it is to be counted, or only looked at.

        Raises:
            ValidationError: no such hit could ever be admitted.
        """
        whole = _whole(cost)
        if whole is None or whole < 1:
            raise ValidationError(f"rate limiter {self.name}: a hit cannot cost {cost!r}", "give 1 or more")
        if whole > self.cost_max:
            raise ValidationError(
                f"rate limiter {self.name}: a hit of {whole} units can never be admitted, the limit is {self.cost_max}",
                "divide what it stands for, or raise the limit",
            )
        return (whole, int(count), *(number for pair in self.windows for number in pair))


def subject_bytes(name: str, subject: str) -> bytes:
    """Return a subject as it stands in its key's name.

    Args:
        name: the limiter's.
        subject: who hits.

    Raises:
        ValidationError: it is no text, empty, too long, or no Unicode; the message does not quote it.
    """
    if not isinstance(subject, str):
        raise ValidationError(
            f"rate limiter {name}: the subject is of type {type(subject).__name__}", 'give a text, "user:1" say'
        )
    try:
        encoded = subject.encode()
    except UnicodeEncodeError:
        raise ValidationError(
            f"rate limiter {name}: the subject is no Unicode text", "replace its surrogates"
        ) from None
    if not 1 <= len(encoded) <= SUBJECT_BYTES_MAX:
        raise ValidationError(
            f"rate limiter {name}: the subject has {len(encoded)} bytes",
            f"give 1 to {SUBJECT_BYTES_MAX}; a hash of it, where it is longer",
        )
    return encoded


def hit_of(reply: Sequence[int]) -> Hit:
    """Read what the script says."""
    allowed, remaining, microseconds, _ = reply
    return Hit(bool(allowed), remaining, microseconds / MICROSECONDS)


def refused(name: str, reply: Refused) -> WriteBehindError:
    """Return the error for a refusal of Redis, all of which come before any effect.

    Args:
        name: the limiter's.
        reply: the refusal.
    """
    if reply.code in {"WRONGTYPE", "FOREIGN"}:
        return ConfigurationError(
            f"rate limiter {name}: the key of this subject in Redis holds something that is not the engine's",
            "find out who else writes to this namespace; reset(subject) removes the key; nothing was counted",
        )
    text = f"rate limiter {name}: Redis refuses: {reply.code} {reply.text}".rstrip()
    if reply.code in PASSING:
        return RedisUnavailable(text, "nothing was counted; try later")
    return ConfigurationError(text, "check the user's permissions ('writebehind acl'); nothing was counted")


def _whole(value: Any) -> int | None:
    """Return a whole number; None for anything else, and for truth values."""
    if isinstance(value, bool):
        return None
    try:
        return index(value)
    except TypeError:
        return None


def _units(name: str, value: Any) -> int:
    units = _whole(value)
    if units is None or not 1 <= units <= UNITS_MAX:
        raise ConfigurationError(
            f"rate limiter {name}: a limit of {value!r} is not possible",
            f"give a whole number from 1 to {UNITS_MAX}; beyond that, count in larger units",
        )
    return units


def _microseconds(name: str, value: Any) -> int:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and WINDOW_SECONDS_MIN <= value <= WINDOW_SECONDS_MAX:
        microseconds: int = round(value * MICROSECONDS)
        return microseconds
    raise ConfigurationError(
        f"rate limiter {name}: a window of {value!r} seconds is not possible",
        f"give {WINDOW_SECONDS_MIN} to {WINDOW_SECONDS_MAX:.0f} seconds",
    )
