"""``writebehind doctor``: what is wrong with the servers, and what each fault would cost right now."""

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Final

import click

from writebehind.engine import Durability, WriteBehind
from writebehind.engine.core.finding import Finding, Severity
from writebehind.engine.core.prediction import Extent, Prediction
from writebehind.engine.core.printable import printable
from writebehind.flushers.cli import with_app
from writebehind.flushers.config import FlusherSettings
from writebehind.recovery.doctor import Diagnosis
from writebehind.recovery.doctor import doctor as examine

__all__ = ["doctor"]

FAILED: Final = 3
DOUBTFUL: Final = 4
COLOURS: Final = {Severity.FAILURE: "red", Severity.WARNING: "yellow", Severity.UNKNOWN: "magenta"}
WIDTH_MAX: Final = 110
INDENT: Final = " " * 9
REMEMBERED: Final = (
    "These are upper bounds. Of what Redis loses, a writing service that survives writes again what it still remembers."
)


def exit_code(severity: Severity) -> int:
    """Return the exit code for the gravest finding: 0 fine, 3 a failure, 4 warnings or unknowns only."""
    if severity is Severity.FAILURE:
        return FAILED
    return 0 if severity <= Severity.NOTE else DOUBTFUL


@click.command(short_help="Examine the servers; say what each fault would cost now.")
@with_app
@click.option(
    "--retention-seconds", type=float, default=FlusherSettings().retention_seconds, show_default=True,
    help="What the flushers were started with.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(app: WriteBehind, *, retention_seconds: float, as_json: bool) -> None:
    """Examine Redis, the database and the namespace; say what each fault would cost right now.

    Ends with 0 when all is fine, 3 when the guarantee does not hold or nothing works, 4 when there are only warnings or
    things that could not be looked at. Takes one to four seconds and changes nothing.
    """
    found = examine(app, retention_seconds=retention_seconds)
    code = exit_code(found.severity)
    if as_json:
        click.echo(json.dumps(found.as_json() | {"exit_code": code}))
    else:
        for line in _report(found):
            click.echo(line)
    sys.exit(code)


def _report(found: Diagnosis) -> Iterator[str]:
    width = min(WIDTH_MAX, shutil.get_terminal_size().columns)
    yield f"namespace {found.namespace}, level {found.facts.level.name}"
    yield from _servers(found)
    yield ""
    for severity in (Severity.FAILURE, Severity.WARNING, Severity.UNKNOWN, Severity.NOTE):
        for finding in found.findings:
            if finding.severity is severity:
                yield from _finding(finding, width)
    fine = sum(finding.severity is Severity.OK for finding in found.findings)
    codes = ", ".join(finding.code for finding in found.findings if finding.severity is Severity.OK)
    yield from _wrapped(f"{'ok':<9}", f"{fine} as they should be: {codes}", width)
    yield ""
    yield from _predictions(found.predictions, width)
    yield from _wrapped("", REMEMBERED, width)


def _servers(found: Diagnosis) -> Iterator[str]:
    redis, sql, state = found.facts.redis, found.facts.sql, found.facts.namespace
    if redis is not None:
        version = "?" if redis.version is None else ".".join(map(str, redis.version))
        yield printable(f"{redis.product or 'Redis'} {version} at {redis.address}")
    if sql is not None:
        yield printable(f"{sql.dialect} {sql.version or '?'} at {sql.address}")
    if state.backlog_entries is not None and state.lag_seconds is not None:
        yield (
            f"{state.backlog_entries:,} entries not in SQL, the oldest for {state.lag_seconds:.1f} s; "
            f"about {state.entries_per_second or 0:,.0f} written per second"
        )


def _finding(finding: Finding, width: int) -> Iterator[str]:
    label = click.style(f"{finding.severity.name:<9}", fg=COLOURS.get(finding.severity), bold=True)
    yield f"{label}{finding.code}"
    yield from _wrapped(INDENT, finding.what, width)
    yield from _wrapped(INDENT, finding.means, width)
    if finding.remedy:
        yield from _wrapped(f"{INDENT}-> ", finding.remedy, width)


def _predictions(predictions: Iterable[Prediction], width: int) -> Iterator[str]:
    for level, group in groupby(predictions, key=lambda prediction: prediction.level):
        written = "accepted writes" if level is Durability.ACCEPTED else f"writes at {level.name}"
        yield f"What a fault would cost now, of {written}:"
        for prediction in group:
            yield from _wrapped(f"  {prediction.fault.value:<17} ", f"{loss(prediction)}: {prediction.why}", width)


def loss(prediction: Prediction) -> str:
    """Say in words how much may be lost."""
    seconds, entries = prediction.seconds, prediction.entries
    now = "" if entries is None else f", now about {entries:,} entr{'y' if entries == 1 else 'ies'}"
    if entries == 0:
        now = ", now nothing"
    match prediction.extent:
        case Extent.NONE:
            return "none"
        case Extent.UNKNOWN:
            return "UNKNOWN"
        case Extent.WINDOW:
            return f"up to {seconds:.1f} s of writes{now}"
        case Extent.UNFLUSHED:
            return f"ALL that SQL does not have{now}" + (f" of {seconds:.1f} s" if entries and seconds else "")


def _wrapped(first: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(
        printable(text), width, initial_indent=first, subsequent_indent=" " * len(first),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
