"""What a drill found, as it is written to the JSON report and read from it again."""

from collections.abc import Sequence

import msgspec

__all__ = ["CheckResult", "IncidentResult", "LostOperation", "Report", "Result", "Verdict"]

FORMAT = 1


class LostOperation(msgspec.Struct, frozen=True):
    """An acknowledged operation whose effect is missing: its number, its entry, when it was acknowledged."""

    op: int
    kind: str
    partition: int
    entry: str
    at: float


class CheckResult(msgspec.Struct, frozen=True):
    """What a checker found."""

    code: str
    title: str
    passed: bool
    detail: str


class IncidentResult(msgspec.Struct, frozen=True):
    """A fault; moments are seconds since the load began, durations seconds since the fault."""

    fault: str
    notes: list[tuple[float, str]]
    detected_seconds: float | None = None
    taken_over_seconds: float | None = None
    recovered_seconds: float | None = None
    error: str | None = None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One drill.

    Attributes:
        name, summary, promise: of the drill.
        verdict: ``passed``, ``failed``, or ``refused``: could not be played here.
        reason: why it was refused, or what went wrong with the drill itself.
        seed, replay: how to play it again.
        redis, database: make and version.
        settings: what matters of the servers' settings.
        level: durability level of the writes.
        seconds: how long it took.
        predicted_loss_seconds: how much may be lost by the promise for these settings.
        observed_loss_seconds: how long before the fault the oldest lost operation was acknowledged.
        acknowledged, indeterminate, refused: operations by what the service was told.
        errors: what the service was told where it got no receipt, with how often; the most frequent first.
        lost, doubled: effects that are missing or there too often.
        lost_operations: those of them that are known by number; the first ones.
        reported_lost: entries that the product itself reported as lost.
        loss_reports: what the product told the service of losses.
        stale_refused: batches that a holder without its lease wanted to commit, and could not.
        incidents: the faults.
        checks: the verdict's parts.
        points: seconds, acknowledged, committed, lag in seconds.
        trouble: the end of the flushers' logs, where the drill failed.
    """

    name: str
    summary: str
    promise: str
    verdict: str
    seed: int
    replay: str
    reason: str = ""
    redis: str = ""
    database: str = ""
    settings: dict[str, str] = {}
    level: str = ""
    seconds: float = 0.0
    predicted_loss_seconds: float = 0.0
    observed_loss_seconds: float = 0.0
    acknowledged: int = 0
    indeterminate: int = 0
    refused: int = 0
    errors: dict[str, int] = {}
    lost: int = 0
    doubled: int = 0
    lost_operations: list[LostOperation] = []
    reported_lost: int = 0
    loss_reports: list[str] = []
    stale_refused: int = 0
    incidents: list[IncidentResult] = []
    checks: list[CheckResult] = []
    points: list[tuple[float, int, int, float]] = []
    trouble: str = ""

    @property
    def worst_recovery_seconds(self) -> float:
        """The longest recovery."""
        return max((each.recovered_seconds or 0.0 for each in self.incidents), default=0.0)


class Verdict:
    """The verdicts by name."""

    PASSED = "passed"
    FAILED = "failed"
    REFUSED = "refused"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All drills of one run.

    Attributes:
        made_at: when, as ISO 8601 in UTC.
        product: version of writebehind.
        system: machine and Python.
        results: the drills.
        format: version of this layout.
    """

    made_at: str
    product: str
    system: str
    results: list[Result]
    format: int = FORMAT

    @property
    def played(self) -> Sequence[Result]:
        """The drills that were not refused."""
        return [result for result in self.results if result.verdict != Verdict.REFUSED]

    @property
    def failed(self) -> Sequence[Result]:
        """The drills that did not keep their promise."""
        return [result for result in self.results if result.verdict == Verdict.FAILED]
