"""Playing a drill: steady state, load, fault, recovery, verification; and always clean up."""

import logging
import time
from collections import Counter
from collections.abc import Sequence

import redis as redis_client
import sqlalchemy as sa
from msgspec import structs

from writebehind.drills import journal
from writebehind.drills.checkers import Allowance, Check
from writebehind.drills.fault import Fault
from writebehind.drills.incident import Incident
from writebehind.drills.journal import LossReport, Operation, Outcome, Refused, Unknown
from writebehind.drills.plan import Plan
from writebehind.drills.result import CheckResult, IncidentResult, LostOperation, Result, Verdict
from writebehind.drills.settings import facts_of
from writebehind.drills.sql_servers import SqlServer
from writebehind.drills.stage import Stage, on_stage
from writebehind.drills.timeline import timeline
from writebehind.drills.verification import Found, Told, await_flushed, check_all, check_hygiene
from writebehind.engine.errors import ConfigurationError, WriteBehindError

__all__ = ["play", "refused"]

logger = logging.getLogger(__name__)

STEADY_SECONDS_MAX = 20.0
PAUSE_SECONDS_MAX = 0.3
LOST_SHOWN = 20
ERRORS_SHOWN = 5
STALE = "another holder or another offset"
TROUBLE = (WriteBehindError, redis_client.RedisError, sa.exc.SQLAlchemyError, OSError, TimeoutError)
"""What a fault may run into that is the product's or a server's doing."""


def refused(name: str, summary: str, promise: str, reason: str) -> Result:
    """Return the result of a drill that cannot be played here."""
    return Result(
        name=name, summary=summary, promise=promise, verdict=Verdict.REFUSED, reason=reason, seed=0, replay=""
    )


def play(plan: Plan, sql: SqlServer | None = None) -> Result:
    """Play a drill.

    Args:
        plan: what is played, on which servers.
        sql: an empty database to play on, instead of one of the plan's own.

    Crash: servers and processes end with this process; on servers of the user's, a SIGKILL leaves the namespace.
    """
    begun = time.monotonic()
    try:
        with on_stage(plan, sql) as stage:
            try:
                return _play(stage, begun)
            except TROUBLE as error:
                reason = f"the drill came to no end: {type(error).__name__}: {error}"
                return structs.replace(
                    _failed(plan, begun, reason),
                    incidents=[_incident(each, begun) for each in stage.incidents],
                    trouble=_last_words(stage),
                )
    except ConfigurationError as error:
        return refused(plan.name, plan.summary, plan.promise, str(error))
    except TROUBLE as error:
        return _failed(plan, begun, f"the stage could not be set: {type(error).__name__}: {error}")


def _play(stage: Stage, begun: float) -> Result:
    plan = stage.plan
    about = facts_of(stage)
    stage.probe.beat(STEADY_SECONDS_MAX)
    zero = time.monotonic()
    stage.start_service()
    stage.await_service()
    stage.load(plan.load_seconds)
    for fault in plan.faults:
        stage.load(PAUSE_SECONDS_MAX * stage.chance.random())
        stage.keep_running()
        _strike(stage, fault)
    stage.load(plan.load_seconds)
    if stage.service is not None:
        stage.service.stop()
    flushed = await_flushed(stage)
    for child in stage.flushers:
        child.stop()
    lines = journal.read(stage.journals)
    told = Told(
        journal.operations(lines),
        [line for line in lines if isinstance(line, LossReport)],
        Counter(line.error for line in lines if isinstance(line, Unknown | Refused)),
    )
    allowed = _allowed(stage.incidents)
    unexpected = [each for child in stage.children() for each in child.unexpected]
    troubles = [f"{each.fault}: {each.error}" for each in stage.incidents if each.error] + unexpected
    checks = check_all(stage, told, flushed, troubles, allowed)
    checks.append(check_hygiene(stage, unexpected))
    return _result(stage, (begun, zero), about, Found(told, flushed, checks))


def _failed(plan: Plan, begun: float, reason: str) -> Result:
    """Return the result of a drill that came to no end."""
    return Result(
        name=plan.name,
        summary=plan.summary,
        promise=plan.promise,
        verdict=Verdict.FAILED,
        reason=reason,
        seed=plan.seed,
        replay=plan.replay,
        seconds=round(time.monotonic() - begun, 2),
    )


def _last_words(stage: Stage) -> str:
    return "\n".join(f"== {child.name}\n{child.log_tail()}" for child in stage.children())


def _strike(stage: Stage, fault: Fault) -> None:
    """Let a fault happen, and see how the product gets over it."""
    incident = Incident(fault.name)
    stage.incidents.append(incident)
    try:
        fault.strike(stage)
        incident.healed = time.monotonic()
        stage.recover()
    except TROUBLE as error:
        logger.warning("%s: %s", fault.name, error)
        incident.error = f"{type(error).__name__}: {error}"
        stage.mend()


def _allowed(incidents: Sequence[Incident]) -> Allowance:
    return Allowance(
        [
            (each.began - each.loss_seconds_max, each.healed or float("inf"))
            for each in incidents
            if each.began is not None and each.loss_seconds_max > 0
        ]
    )


def _result(stage: Stage, clock: tuple[float, float], about: dict[str, str], found: Found) -> Result:
    begun, zero = clock
    plan, told, checks, flushed = stage.plan, found.told, found.checks, found.flushed
    operations = told.operations
    offset = time.time() - time.monotonic()
    logged = [line for child in stage.flushers for line in child.lines()]
    for incident in stage.incidents:
        incident.learn(logged, offset)
    lost = [operation for check in checks for operation in check.lost]
    passed = all(check.passed for check in checks)
    return Result(
        name=plan.name,
        summary=plan.summary,
        promise=plan.promise,
        verdict=Verdict.PASSED if passed else Verdict.FAILED,
        seed=plan.seed,
        replay=plan.replay,
        redis=about.pop("redis"),
        database=about.pop("database"),
        settings=about,
        level=plan.level.name,
        seconds=round(time.monotonic() - begun, 2),
        predicted_loss_seconds=max((each.loss_seconds_max for each in stage.incidents), default=0.0),
        observed_loss_seconds=_observed_loss(stage.incidents, lost),
        acknowledged=sum(each.acknowledged for each in operations),
        indeterminate=sum(each.outcome is Outcome.INDETERMINATE for each in operations),
        refused=sum(each.outcome is Outcome.REFUSED for each in operations),
        errors=dict(told.errors.most_common(ERRORS_SHOWN)),
        lost=sum(len(check.lost) + check.lost_unnamed for check in checks),
        doubled=sum(check.doubled for check in checks),
        lost_operations=[
            LostOperation(
                each.number, each.kind.value, each.partition, str(each.entry), round((each.ended or 0.0) - zero, 3)
            )
            for each in lost[:LOST_SHOWN]
        ],
        reported_lost=flushed.lost_entries + told.reported_lost,
        loss_reports=[f"partition {each.partition}: {each.text}" for each in told.reports[:LOST_SHOWN]],
        stale_refused=sum(STALE in line.text for line in logged),
        incidents=[_incident(each, zero) for each in stage.incidents],
        checks=[CheckResult(each.code, each.title, each.passed, each.detail) for each in _sorted(checks)],
        points=timeline(
            operations,
            stage.observer.snapshots if stage.observer else [],
            zero,
            [each.recovered for each in stage.incidents if each.recovered is not None],
        ),
        trouble="" if passed else _last_words(stage),
    )


def _sorted(checks: Sequence[Check]) -> list[Check]:
    return sorted(checks, key=lambda check: int(check.code[1:]))


def _observed_loss(incidents: Sequence[Incident], lost: Sequence[Operation]) -> float:
    """Return how long before the fault that followed it the oldest lost operation was acknowledged."""
    moments = sorted(each.began for each in incidents if each.began is not None)
    spans = []
    for operation in lost:
        ended = operation.ended or 0.0
        later = [moment for moment in moments if moment >= ended]
        spans.append((later[0] if later else ended) - ended)
    return round(max(spans, default=0.0), 3)


def _incident(incident: Incident, begun: float) -> IncidentResult:
    return IncidentResult(
        fault=incident.fault,
        notes=[(round(at - begun, 3), what) for at, what in incident.notes],
        detected_seconds=incident.seconds(incident.detected),
        taken_over_seconds=incident.seconds(incident.taken_over),
        recovered_seconds=incident.seconds(incident.recovered),
        error=incident.error,
    )
