"""The command ``writebehind drill``."""

import json
import logging
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import click
import msgspec

from writebehind.drills.campaign import campaign
from writebehind.drills.catalogue import DRILLS, Options, objection, plan_of
from writebehind.drills.html import page
from writebehind.drills.junit import junit
from writebehind.drills.redis_servers import REDIS_KINDS
from writebehind.drills.result import Report, Result, Verdict
from writebehind.drills.runner import play, refused
from writebehind.drills.sql_servers import SQL_KINDS
from writebehind.drills.summary import summarise, summary_lines
from writebehind.drills.surroundings import report_of
from writebehind.drills.text import headline, lines
from writebehind.engine.errors import ConfigurationError

__all__ = ["drill"]

EXIT_BROKEN = 3
ALL = "all"
SEEDS = 1_000_000


@click.group()
def drill() -> None:
    """Rehearse crashes: real servers, real faults, under load, checked against every acknowledged write."""
    signal.signal(signal.SIGTERM, _interrupt)
    if not logging.getLogger().isEnabledFor(logging.DEBUG):
        # Faults make the drill's own engine complain; what counts stands in the report.
        logging.getLogger("writebehind").setLevel(logging.ERROR)


@drill.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_drills(*, as_json: bool) -> None:
    """Name the drills."""
    if as_json:
        click.echo(json.dumps([{"name": each.name, "summary": each.summary, "promise": each.promise,
                                "databases": list(each.sql)} for each in DRILLS.values()]))  # fmt: skip
        return
    width = max(map(len, DRILLS))
    for each in DRILLS.values():
        click.echo(f"{each.name:{width}}  {each.summary}")


@drill.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME... | all")
@click.option("--short", is_flag=True, help="One strike and little load each.")
@click.option("--seed", type=int, default=1, show_default=True, help="Decides about moments and victims.")
@click.option("--rate", type=float, default=1_500.0, show_default=True, help="Writes a second that are tried.")
@click.option("--server", type=click.Choice(list(REDIS_KINDS)), help="Make of the embedded Redis.")
@click.option("--sql", type=click.Choice(SQL_KINDS), help="Kind of the embedded database.")
@click.option("--redis", metavar="URL", help="A Redis to use, in a scratch namespace [default: embedded ones].")
@click.option("--database", metavar="URL", help="A database to use, with scratch tables [default: embedded ones].")
@click.option("--namespace", metavar="NAME", help="With --redis or --database: this namespace [default: a new one].")
@click.option("--i-know-what-i-do", "reckless", is_flag=True, help="Use what is not scratch, and drop its wb_drill_*.")
@click.option(
    "--report",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default="drill-report",
    show_default=True,
    help="Where drills.json, drills.html and drills.xml go.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; progress goes to standard error.")
def run(
    *,
    names: tuple[str, ...],
    short: bool,
    seed: int,
    rate: float,
    server: str | None,
    sql: str | None,
    redis: str | None,
    database: str | None,
    namespace: str | None,
    reckless: bool,
    directory: Path,
    as_json: bool,
) -> None:
    """Play drills, by name or all of them; ends with 3 when a promise was broken.

    On servers of its own, which it kills as it likes. On servers that are given it works in a namespace drill_... and
    in tables wb_drill_..., removes both, and plays only what harms nobody else.
    """
    options = Options(
        short=short,
        seed=seed,
        rate=rate,
        redis_kind=server,
        sql_kind=sql,
        redis_url=redis,
        database_url=database,
        namespace=namespace,
        reckless=reckless,
    )
    report = report_of(_play(_chosen(names), options))
    _write(report, directory)
    if as_json:
        click.echo(msgspec.json.encode(report))
    else:
        click.echo("\n".join(lines(report)))
    click.echo(f"{directory / 'drills.html'}", err=True)
    if report.failed:
        sys.exit(EXIT_BROKEN)
    if len(report.played) < len(report.results) and ALL not in names:
        sys.exit(1)


@drill.command("campaign")
@click.option("--faults", type=click.IntRange(1), default=200, show_default=True, help="How many to inject.")
@click.option("--seconds", type=float, default=600.0, show_default=True, help="Go on for so long at the most.")
@click.option("--rounds", type=click.IntRange(1), help="Play so many rounds at the most.")
@click.option("--seed", type=int, help="Of the first round [default: a random one].")
@click.option(
    "--report",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default="campaign-report",
    show_default=True,
    help="Where summary.json, summary.txt, campaign.json and campaign.html go.",
)
def run_campaign(*, faults: int, seconds: float, rounds: int | None, seed: int | None, directory: Path) -> None:
    """Inject random faults on all makes of servers that are here; ends with 3 when a promise was broken."""
    first = secrets.randbelow(SEEDS) if seed is None else seed
    click.echo(f"seed {first}", err=True)
    begun = time.monotonic()
    results = campaign(faults=faults, seconds=seconds, seed=first, rounds=rounds, done=_tell)
    report = report_of(results)
    summary = summarise(report, first, time.monotonic() - begun)
    directory.mkdir(parents=True, exist_ok=True)
    text = "\n".join(summary_lines(summary))
    (directory / "summary.txt").write_text(f"{text}\n")
    (directory / "summary.json").write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=1) + b"\n")
    (directory / "campaign.json").write_bytes(msgspec.json.encode(report))
    (directory / "campaign.html").write_text(page(report))
    click.echo(text)
    click.echo(f"{directory / 'campaign.html'}", err=True)
    if summary.violations:
        sys.exit(EXIT_BROKEN)


def _tell(result: Result) -> None:
    """Say how a round went, at once."""
    recovery = f"worst recovery {result.worst_recovery_seconds:.1f} s"
    click.echo(
        f"{result.verdict:6} {result.name}: {len(result.incidents)} faults on {result.redis}, {result.database}, "
        f"{result.acknowledged:,} acknowledged, {recovery}, {result.seconds:.0f} s",
        err=True,
    )
    if result.verdict == Verdict.FAILED:
        for check in result.checks:
            if not check.passed:
                click.echo(f"       {check.code} {check.title}: {check.detail}", err=True)
        click.echo(f"       again: {result.replay}", err=True)


@drill.command("report")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write the page there.")
@click.option("--junit", "xml", type=click.Path(dir_okay=False, path_type=Path), help="Write JUnit XML there.")
def show_report(*, file: Path, html: Path | None, xml: Path | None) -> None:
    """Print a drills.json of an earlier run as text, or make its page or its XML anew."""
    try:
        found = msgspec.json.decode(file.read_bytes(), type=Report)
    except msgspec.MsgspecError as error:
        raise ConfigurationError(f"{file} is no report of drills: {error}", "give a drills.json") from error
    if html is not None:
        html.write_text(page(found))
    if xml is not None:
        xml.write_text(junit(found))
    if html is None and xml is None:
        click.echo("\n".join(lines(found)))
    else:
        click.echo(headline(found))


def _chosen(names: Sequence[str]) -> list[str]:
    if ALL in names:
        return list(DRILLS)
    unknown = [name for name in names if name not in DRILLS]
    if unknown:
        raise click.UsageError(f"no drill is named {', '.join(unknown)}; see 'writebehind drill list'")
    return list(dict.fromkeys(names))


def _play(names: Sequence[str], options: Options) -> list[Result]:
    results = []
    for number, name in enumerate(names, 1):
        chosen = DRILLS[name]
        click.echo(f"[{number}/{len(names)}] {name} ... ", nl=False, err=True)
        reason = objection(chosen, options)
        result = refused(chosen.name, chosen.summary, chosen.promise, reason) if reason else play(
            plan_of(chosen, options)
        )  # fmt: skip
        results.append(result)
        shown = "" if result.verdict == Verdict.REFUSED else f" in {result.seconds:.1f} s"
        click.echo(f"{result.verdict}{shown}{': ' + result.reason if result.reason else ''}", err=True)
    return results


def _write(report: Report, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "drills.json").write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    (directory / "drills.html").write_text(page(report))
    (directory / "drills.xml").write_text(junit(report))


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """End like Ctrl-C, so that nothing that was started outlives this process."""
    raise KeyboardInterrupt
