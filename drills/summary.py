"""The summary of a campaign: counts by kind of fault and by combination of servers, and every violation."""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence

import msgspec

from writebehind.drills.result import IncidentResult, Report, Result
from writebehind.drills.text import headline

__all__ = ["Summary", "summarise", "summary_lines"]


class FaultCount(msgspec.Struct, frozen=True):
    """One kind of fault: how often, and how long recovering took, in seconds."""

    fault: str
    times: int
    failed: int
    recovery_median_seconds: float
    recovery_worst_seconds: float


class CombinationCount(msgspec.Struct, frozen=True):
    """One combination of servers."""

    redis: str
    database: str
    appendfsync: str
    rounds: int
    faults: int
    acknowledged: int


class Violation(msgspec.Struct, frozen=True):
    """A round in which a promise was broken."""

    round: str
    seed: int
    broken: list[str]
    replay: str


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A campaign.

    Attributes:
        seed: of the first round.
        rounds, faults, kinds: how many, and of how many kinds.
        seconds: how long it took.
        lost_as_predicted: acknowledged operations that the promise for the settings gave up: neither Redis nor the
            service survived.
    """

    made_at: str
    product: str
    system: str
    seed: int
    rounds: int
    faults: int
    kinds: int
    seconds: float
    acknowledged: int
    indeterminate: int
    lost: int
    lost_as_predicted: int
    doubled: int
    stale_refused: int
    worst_recovery_seconds: float
    by_fault: list[FaultCount]
    by_servers: list[CombinationCount]
    violations: list[Violation]
    headline: str


def summarise(report: Report, seed: int, seconds: float) -> Summary:
    """Count what happened in a campaign's rounds.

    Args:
        report: the rounds.
        seed: of the first one.
        seconds: how long they took together.
    """
    played = report.played
    incidents = [incident for result in played for incident in result.incidents]
    kept = [result for result in played if result not in report.failed]
    by_fault = _by_fault(incidents)
    return Summary(
        made_at=report.made_at,
        product=report.product,
        system=report.system,
        seed=seed,
        rounds=len(played),
        faults=len(incidents),
        kinds=len(by_fault),
        seconds=round(seconds, 1),
        acknowledged=sum(result.acknowledged for result in played),
        indeterminate=sum(result.indeterminate for result in played),
        lost=sum(result.lost for result in report.failed),
        lost_as_predicted=sum(result.lost for result in kept),
        doubled=sum(result.doubled for result in played),
        stale_refused=sum(result.stale_refused for result in played),
        worst_recovery_seconds=max((result.worst_recovery_seconds for result in played), default=0.0),
        by_fault=by_fault,
        by_servers=_by_servers(played),
        violations=[
            Violation(
                result.name,
                result.seed,
                [f"{check.code} {check.title}: {check.detail}" for check in result.checks if not check.passed]
                or [result.reason],
                result.replay,
            )
            for result in report.failed
        ],
        headline=headline(report),
    )


def _by_fault(incidents: Sequence[IncidentResult]) -> list[FaultCount]:
    groups: dict[str, list[IncidentResult]] = defaultdict(list)
    for incident in incidents:
        groups[incident.fault].append(incident)
    counts = []
    for name, group in sorted(groups.items()):
        recoveries = [each.recovered_seconds for each in group if each.recovered_seconds is not None] or [0.0]
        failed = sum(each.error is not None for each in group)
        median, worst = round(statistics.median(recoveries), 3), max(recoveries)
        counts.append(FaultCount(name, len(group), failed, median, worst))
    return counts


def _by_servers(played: Sequence[Result]) -> list[CombinationCount]:
    groups: dict[tuple[str, str, str], list[Result]] = defaultdict(list)
    for result in played:
        groups[result.redis, result.database, result.settings.get("appendfsync", "")].append(result)
    return [
        CombinationCount(
            *names,
            len(group),
            sum(len(result.incidents) for result in group),
            sum(result.acknowledged for result in group),
        )
        for names, group in sorted(groups.items())
    ]


def summary_lines(summary: Summary) -> Iterator[str]:
    """Say it as text."""
    yield f"writebehind {summary.product}, {summary.system}, {summary.made_at}, seed {summary.seed}"
    yield (
        f"{summary.faults} faults of {summary.kinds} kinds in {summary.rounds} rounds, {summary.seconds:.0f} s: "
        f"{summary.acknowledged:,} acknowledged, {summary.lost} lost, {summary.doubled} doubled, "
        f"{summary.stale_refused} stale commits refused, worst recovery {summary.worst_recovery_seconds:.1f} s"
    )
    if summary.lost_as_predicted:
        yield f"{summary.lost_as_predicted} more were lost as predicted: neither Redis nor the service had survived"
    yield ""
    yield f"{'fault':32} {'times':>5} {'median':>8} {'worst':>8}"
    for fault in summary.by_fault:
        failed = f"  {fault.failed} not recovered" if fault.failed else ""
        yield (
            f"{fault.fault:32} {fault.times:>5} {fault.recovery_median_seconds:>6.2f} s "
            f"{fault.recovery_worst_seconds:>6.2f} s{failed}"
        )
    yield ""
    yield f"{'Redis':16} {'database':20} {'appendfsync':12} {'rounds':>6} {'faults':>6} {'acknowledged':>13}"
    for servers in summary.by_servers:
        yield (
            f"{servers.redis:16} {servers.database:20} {servers.appendfsync:12} {servers.rounds:>6} "
            f"{servers.faults:>6} {servers.acknowledged:>13,}"
        )
    for violation in summary.violations:
        yield ""
        yield f"VIOLATION in {violation.round}: {violation.replay}"
        for broken in violation.broken:
            yield f"  {broken}"
    yield ""
    yield f"{len(summary.violations)} violations"
