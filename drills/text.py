"""The report as text, and its headline."""

from collections.abc import Iterator

from writebehind.drills.result import IncidentResult, Report, Result, Verdict

__all__ = ["headline", "lines", "loss", "seconds"]


def headline(report: Report) -> str:
    """Say it in one line."""
    played = report.played
    faults = sum(len(result.incidents) for result in played)
    recoveries = [result.worst_recovery_seconds for result in played]
    parts = [
        _counted(faults, "fault"),
        f"{sum(result.acknowledged for result in played):,} acknowledged",
        f"{sum(result.lost for result in played):,} lost",
        f"{sum(result.doubled for result in played):,} doubled",
        f"{_counted(sum(result.stale_refused for result in played), 'stale commit')} refused",
        f"worst recovery {max(recoveries, default=0.0):.1f} s",
    ]
    predicted = [result for result in played if result.predicted_loss_seconds]
    if predicted:
        bound = max(result.predicted_loss_seconds for result in predicted)
        observed = max(result.observed_loss_seconds for result in predicted)
        parts.append(f"loss predicted <= {bound:g} s, observed {observed:g} s")
    return ", ".join(parts)


def lines(report: Report) -> Iterator[str]:
    """Say it all."""
    yield f"writebehind {report.product}, {report.system}, {report.made_at}"
    for result in report.results:
        yield ""
        yield from _drill(result)
    yield ""
    played, failed = report.played, report.failed
    refused = len(report.results) - len(played)
    yield f"{_counted(len(played), 'drill')}, {len(failed)} failed, {refused} refused"
    yield headline(report)
    for result in failed:
        yield f"FAILED {result.name}: {result.replay}"


def loss(result: Result) -> str:
    """Say what may be lost and what was."""
    predicted = f"<= {result.predicted_loss_seconds:g} s" if result.predicted_loss_seconds else "none"
    observed = f"{result.lost} lost" + (f", {result.observed_loss_seconds:g} s" if result.lost else "")
    return f"predicted {predicted}, observed {observed}, reported by the product {result.reported_lost}"


def seconds(value: float | None) -> str:
    """Write a duration."""
    return "-" if value is None else f"{value:.2f} s"


def _drill(result: Result) -> Iterator[str]:
    yield f"{result.verdict.upper():7} {result.name}: {result.summary}"
    if result.verdict == Verdict.REFUSED:
        yield f"        {result.reason}"
        return
    yield f"        promise   {result.promise}"
    settings = ", ".join(f"{name} {value}" for name, value in result.settings.items())
    yield f"        servers   {result.redis}, {result.database}; {settings}; level {result.level}"
    yield (
        f"        writes    {result.acknowledged:,} acknowledged, {result.indeterminate} uncertain, "
        f"{result.refused} refused, {result.doubled} doubled, {result.stale_refused} stale commits refused"
    )
    for error, times in result.errors.items():
        yield f"        told      {times} x {error}"
    yield f"        loss      {loss(result)}"
    for incident in result.incidents:
        yield f"        fault     {_incident(incident)}"
    for check in result.checks:
        if not check.passed:
            yield f"        BROKEN    {check.code} {check.title}: {check.detail}"
    for operation in result.lost_operations:
        yield (
            f"        lost      operation {operation.op} ({operation.kind}), partition {operation.partition}, "
            f"entry {operation.entry}, acknowledged at {operation.at:.2f} s"
        )
    for report in result.loss_reports:
        yield f"        reported  {report}"
    yield f"        {result.seconds:.1f} s, seed {result.seed}; again: {result.replay}"


def _incident(incident: IncidentResult) -> str:
    what = "; ".join(text for _, text in incident.notes) or incident.fault
    times = (
        f"noticed {seconds(incident.detected_seconds)}, taken over {seconds(incident.taken_over_seconds)}, "
        f"recovered {seconds(incident.recovered_seconds)}"
    )
    return f"{what}: {times}" + (f"; {incident.error}" if incident.error else "")


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
