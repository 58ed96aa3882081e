"""What a look at the servers found."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

__all__ = ["Finding", "Severity", "ask", "worst"]


class Severity(IntEnum):
    """How bad a finding is; a greater number needs more attention.

    OK: as it should be. NOTE: good to know. UNKNOWN: it could not be looked at, so it may be anything. WARNING: a
    fault costs more than it has to, or is about to. FAILURE: the guarantee does not hold, or nothing works.
    """

    OK = 0
    NOTE = 1
    UNKNOWN = 2
    WARNING = 3
    FAILURE = 4


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at.

    Attributes:
        code: names what was looked at, in kebab-case; stable.
        severity: how bad it is.
        what: what is.
        means: what follows from it.
        remedy: what to do, as a command or a setting; "" where nothing is to be done.
    """

    code: str
    severity: Severity
    what: str
    means: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.severity > Severity.NOTE and not self.remedy:
            raise ValueError(f"{self.code} has no remedy")


def worst(findings: Iterable[Finding]) -> Severity:
    """Return the gravest severity among some findings; OK where there are none."""
    return max((finding.severity for finding in findings), default=Severity.OK)


def ask(setting: str, command: str) -> str:
    """Say how an unknown setting gets known."""
    return f"allow the user {command}, or look {setting} up where the server is administered"
