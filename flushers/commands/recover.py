"""``writebehind recover``: say what is wrong and what will be done, and do it when told to."""

import json
import sys

import click

from writebehind.engine import WriteBehind
from writebehind.engine.errors import LogDamaged
from writebehind.flushers.cli import say, with_app
from writebehind.flushers.draining import drain
from writebehind.flushers.flusher import Flusher
from writebehind.flushers.inspection import Status, status
from writebehind.recovery.from_cache import FromCache, from_cache
from writebehind.recovery.survey import Concern, survey

__all__ = ["recover"]

FOUND = 3
"""Exit code where there is something to see to, or entries are lost."""

REMAINS = 2


@click.command(short_help="Say what a crash or a hand has left, and mend it with --yes.")
@with_app
@click.option(
    "--from-cache", "cache", is_flag=True, help="Write whole records again that SQL lacks and Redis still has."
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done; this is what happens without --yes, too.")
@click.option("--yes", is_flag=True, help="Do it.")
@click.option("--timeout", type=float, default=60.0, show_default=True, metavar="SECONDS", help="For the flushing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def recover(app: WriteBehind, *, cache: bool, dry_run: bool, yes: bool, timeout: float, as_json: bool) -> None:
    """Look at every partition, say what is wrong, and what is done about it by whom.

    Running flushers mend by themselves whatever can be mended without a decision. With --yes this command does the same
    for partitions that no live flusher holds, and flushes them. --from-cache is a decision: it writes to SQL what Redis
    shows, for records whose last change is neither in the log nor in SQL.

    Ends with 0 when nothing is wrong, or all was mended; with 3 when there is something to see to or entries are lost;
    with 2 when entries remain at --timeout.
    """
    if yes and dry_run:
        raise click.UsageError("give --yes or --dry-run, not both")
    concerns = survey(app)
    rewritten = from_cache(app, dry_run=not yes) if cache else None
    after = _mend(app, timeout) if yes else None
    if as_json:
        click.echo(
            json.dumps(
                {
                    "namespace": app.keys.namespace,
                    "concerns": [concern.as_json() for concern in concerns],
                    "from_cache": rewritten.as_json() if rewritten else None,
                    "done": yes,
                    "after": after.as_json() if after else None,
                }
            )
        )
    else:
        _print(app, concerns, rewritten, after)
    if after is not None and after.backlog:
        sys.exit(REMAINS)
    if any(concern.lost_entries for concern in concerns) or (concerns if after is None else after.damaged):
        sys.exit(FOUND)


def _mend(app: WriteBehind, timeout: float) -> Status:
    # The takeover comes first, also where nothing is left to flush.
    Flusher(app, member=False).run(until=lambda: True)
    try:
        return drain(app, timeout)
    except LogDamaged:
        # Named among the concerns; the other partitions are drained.
        return status(app)


def _print(app: WriteBehind, concerns: list[Concern], rewritten: FromCache | None, after: Status | None) -> None:
    if not concerns:
        click.echo(f"namespace {app.keys.namespace}: nothing is wrong")
    for concern in concerns:
        say(f"partition {concern.partition}: {concern.what}.")
        say(f"    What happens: {concern.then}.")
    if rewritten is not None:
        verb = "were" if after is not None else "would be"
        click.echo(
            f"from the cache: {rewritten.rewritten} records {verb} written again; {rewritten.in_sql} are in SQL, "
            f"{rewritten.pending} on their way, {rewritten.suspect} may be newer in SQL, "
            f"{rewritten.unusable} are not whole in Redis"
        )
    if after is None:
        if concerns:
            click.echo("Nothing was changed. 'recover --yes' does what is named above.")
        return
    lost = sum(concern.lost_entries for concern in concerns)
    click.echo(f"done: {after.backlog} entries remain, {lost} were found missing")
    for row in after.halted:
        say(f"partition {row.partition} HALTED: {row.halted}")
