"""``writebehind verify``: compare records, log and rows, and repair what does not agree."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from types import TracebackType
from typing import Any, Self

import click
from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from writebehind.engine import WriteBehind
from writebehind.flushers.cli import Target, say, target_options
from writebehind.recovery.comparison import Verdict
from writebehind.recovery.findings import Finding, Verification
from writebehind.recovery.log_audit import LogAudit
from writebehind.recovery.repair import Outcome, Repair, Winner
from writebehind.recovery.verify import Progress
from writebehind.recovery.verify import verify as compare

__all__ = ["verify"]

LISTED = 20
WRONG = 3
"""Exit code where something does not agree."""

MEANINGS = {
    Verdict.AGREES: "agree",
    Verdict.PENDING: "pending: their last change is on its way to SQL",
    Verdict.DEAD_LETTERED: "dead-lettered: SQL refused a change of them; see 'dead-letters list'",
    Verdict.SUSPECT: "from before a rollback of Redis: reads ask SQL, the next takeover removes them",
    Verdict.LEFT_OVER: "left over: SQL has them, they should have been removed; harmless",
    Verdict.LOST: "LOST: their last change will never be in SQL",
    Verdict.DIVERGED: "DIVERGED: SQL has their last change and other values",
    Verdict.UNREADABLE: "UNREADABLE: what stands there is no record",
    Verdict.FOREIGN: "FOREIGN: keys of this namespace that are no records of its tables",
}


class ProgressBars:
    """A bar for each part of the work, on standard error."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self._bars = Bar(*columns, console=Console(stderr=True))
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._bars.stop()

    def show(self, progress: Progress) -> None:
        """Draw how far it is."""
        if progress.part not in self._tasks:
            self._tasks[progress.part] = self._bars.add_task(progress.part)
        # An empty Redis is done, too.
        total = max(1, progress.total)
        self._bars.update(self._tasks[progress.part], total=total, completed=total - progress.total + progress.done)


@click.command(short_help="Compare records, log and rows; ends with 3 when something is wrong.")
@target_options
@click.option("--sample", type=click.IntRange(1), metavar="N", help="Only N records of each table, chosen at random.")
@click.option("--partition", "only", type=int, metavar="N", multiple=True, help="Only this partition; repeatable.")
@click.option("--limit", type=click.IntRange(0), default=LISTED, show_default=True, help="Findings to list; all count.")
@click.option("--show-values", is_flag=True, help="List the values that differ, too: they may be secret.")
@click.option(
    "--repair",
    type=click.Choice([winner.value for winner in Winner]),
    help="The side that is right. sql: wrong records are removed from Redis, and the next read loads the row. "
    "redis: they are written again through the log, and a flusher brings them to SQL.",
)
@click.option("--yes", is_flag=True, help="With --repair: do it. Else it is only said what would be done.")
@click.option("--progress/--no-progress", default=None, help="Show bars [default: on a terminal].")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def verify(
    ctx: click.Context,
    /,
    *,
    sample: int | None,
    only: Sequence[int],
    limit: int,
    show_values: bool,
    repair: str | None,
    yes: bool,
    progress: bool | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Compare the records in Redis, the log and the rows in SQL, while everything goes on.

    Ends with 0 when they agree, also where changes are on their way; with 3 when records have diverged, are lost,
    unreadable or foreign, or when the log has gaps. --table NAME, repeatable, looks at these tables only, also where
    there is an --app.

    A repair leaves records alone that are written meanwhile. Foreign keys and gaps in the log are never repaired here.
    """
    if yes and repair is None:
        raise click.UsageError("--yes goes with --repair")
    target = ctx.ensure_object(Target).updated({name: given.pop(name) for name in vars(Target())})
    # With an app, the tables are known and --table chooses among them.
    app = (replace(target, table=()) if target.app else target).load()
    try:
        mending = Repair(app, Winner(repair), dry_run=not yes) if repair else None
        bars = ProgressBars() if (sys.stderr.isatty() if progress is None else progress) else None
        with bars or nullcontext():
            found = compare(
                app,
                sample=sample,
                tables=target.table or None,
                partitions=only or None,
                findings_max=limit,
                with_values=show_values,
                on_progress=bars.show if bars else None,
                on_judged=mending,
            )
        _print(app, found, mending, as_json=as_json, done=yes)
    finally:
        app.close()
    mended = mending is not None and yes and _mended(found, mending)
    if not found.sound and not mended:
        sys.exit(WRONG)


def _mended(found: Verification, mending: Repair) -> bool:
    unmended = mending.counts[Outcome.LEFT_ALONE] + mending.counts[Outcome.IMPOSSIBLE] + found.counts[Verdict.FOREIGN]
    return not unmended and all(log.sound for log in found.logs)


def _print(app: WriteBehind, found: Verification, mending: Repair | None, *, as_json: bool, done: bool) -> None:
    if as_json:
        repaired = mending and {outcome.value: mending.counts[outcome] for outcome in Outcome} | {"done": done}
        click.echo(json.dumps(found.as_json() | {"repair": repaired}))
        return
    scope = "" if found.sample is None else f", at most {found.sample} of each table, chosen at random"
    click.echo(f"namespace {app.keys.namespace}: {found.records} keys judged{scope}")
    for verdict, count in found.counts.items():
        if count or verdict is Verdict.AGREES:
            click.echo(f"{count:>9} {MEANINGS[verdict]}")
    for table, total in found.totals.items():
        say(f"table {table} has {total} records in Redis")
    click.echo(f"log: {sum(log.backlog for log in found.logs)} entries on their way to SQL")
    for log in found.logs:
        for line in _log_lines(log):
            say(f"partition {log.partition}: {line}")
    for line in chain.from_iterable(map(_finding_lines, found.findings)):
        say(line)
    unlisted = found.wrong - len(found.findings)
    if unlisted > 0:
        click.echo(f"and {unlisted} more; see --limit")
    if mending is not None:
        _print_repair(mending, done=done)


def _log_lines(log: LogAudit) -> list[str]:
    lines = []
    if log.history_missing:
        lines.append("the log has nothing of what SQL has applied: it was emptied, or this is another Redis")
    if log.group_missing:
        lines.append("the consumer group is missing; the next flusher makes it anew")
    for gap in log.gaps:
        least = "" if gap.known else "at least "
        until = f"and {gap.before}" if gap.before else "(the end)"
        lines.append(
            f"LOST: {least}{gap.entries} entries between {gap.after} {until} are neither in the log nor in SQL"
        )
    if log.unreadable:
        listed = ", ".join(log.unreadable_ids)
        lines.append(f"{log.unreadable} entries that no flusher of these tables can read: {listed}")
    if log.orphaned:
        listed = ", ".join(f"{table}:{key}" for table, key in log.orphans)
        lines.append(
            f"{log.orphaned} records were deleted in Redis before SQL had them; reads are stale until flushed: {listed}"
        )
    if log.dangling:
        lines.append(f"{log.dangling} entries are delivered and not in the log; the next takeover clears them away")
    return lines


def _finding_lines(finding: Finding) -> Iterator[str]:
    where = "" if finding.partition is None else f" (partition {finding.partition}, {finding.state}, {finding.version})"
    yield f"{finding.verdict.value.upper():<10} {finding.name}{where}: {finding.detail}"
    for column, (in_redis, in_sql) in (finding.values or {}).items():
        yield f"{'':<11}{column}: Redis has {in_redis!r}, SQL has {in_sql!r}"


def _print_repair(mending: Repair, *, done: bool) -> None:
    counts = mending.counts
    would = "" if done else "would be "
    click.echo(f"repair: {counts[Outcome.REMOVED]} records {would}removed from Redis, "
               f"{counts[Outcome.REWRITTEN]} {would}written again through the log")  # fmt: skip
    if counts[Outcome.LEFT_ALONE]:
        click.echo(f"{counts[Outcome.LEFT_ALONE]} were being written, or SQL still has to hear of them: verify again")
    if counts[Outcome.IMPOSSIBLE]:
        click.echo(f"{counts[Outcome.IMPOSSIBLE]} cannot be repaired so: their hash does not say what to write; "
                   "--repair sql would remove them")  # fmt: skip
    if not done:
        click.echo("nothing was changed; add --yes to do it")
