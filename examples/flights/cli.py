"""The command ``writebehind demo``."""

import json
import signal
import sys
from types import FrameType

import click

from writebehind.examples.flights.display import display
from writebehind.examples.flights.ground import ground
from writebehind.examples.flights.replay import replay
from writebehind.examples.flights.source import FLIGHTS

__all__ = ["demo"]

ROWS_MIN = 1_000
EXIT_NOT_PROVEN = 3


@click.command()
@click.option("--rows", type=click.IntRange(ROWS_MIN, FLIGHTS), default=FLIGHTS, show_default=True, help="Flights.")
@click.option("--seed", type=int, default=1, show_default=True, help="Decides when flushers are killed.")
@click.option("--redis", metavar="URL", help="A Redis to use [default: one is started].")
@click.option("--database", metavar="URL", help="A database to use, as a SQLAlchemy URL [default: a SQLite file].")
@click.option("--replace", is_flag=True, help="Drop the demo's tables first, even if they have rows.")
@click.option("--keep", is_flag=True, help="Leave tables, keys and files behind.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; progress goes to standard error.")
def demo(
    *, rows: int, seed: int, redis: str | None, database: str | None, replace: bool, keep: bool, as_json: bool
) -> None:
    """Replay a year of real flights while a flusher is killed again and again, and compare SQL with the truth.

    Ends with 3 unless the verdict is "exactly once". On servers that are given it works in tables named demo_... and
    in a namespace of its own, and removes both; the engine's own empty tables stay.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    with display(rows, stderr=as_json) as shown, ground(redis, database, replace=replace, keep=keep) as here:
        report = replay(here, rows, seed, shown)
        if keep:
            shown.say(f"kept: namespace {here.namespace}, directory {here.directory}")
    if as_json:
        click.echo(json.dumps(report.as_json()))
    else:
        click.echo("\n".join(report.lines()))
    if not report.proven:
        sys.exit(EXIT_NOT_PROVEN)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """End like Ctrl-C, so that nothing that was started outlives this process."""
    raise KeyboardInterrupt
