"""``make load``: the FastAPI example under load, while its flusher is killed twice."""

import json
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

import click

from writebehind.engine.embedded import EmbeddedPostgreSQL, EmbeddedRedis
from writebehind.examples.load.rehearsal import rehearse

__all__ = ["load"]

EXIT_NOT_SURVIVED = 3


@click.command()
@click.option("--seconds", type=click.FloatRange(3), default=30, show_default=True, help="How long the load lasts.")
@click.option("--connections", type=click.IntRange(1), default=16, show_default=True, help="Of the load generator.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def load(*, seconds: float, connections: int, as_json: bool) -> None:
    """Put the FastAPI example under load, kill its flusher twice, and compare SQL with what was acknowledged.

    On a Redis and a PostgreSQL of its own. Ends with 3 unless every acknowledged like counts once in SQL, no request
    failed, and `writebehind verify` finds no divergence.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    with (
        tempfile.TemporaryDirectory(prefix="writebehind-load-") as directory,
        EmbeddedRedis() as redis,
        EmbeddedPostgreSQL() as database,
    ):
        report = rehearse(
            redis=redis.url,
            database=database.url,
            directory=Path(directory),
            seconds=seconds,
            connections=connections,
            say=lambda text: click.echo(text, err=True),
        )
    click.echo(json.dumps(report.as_json()) if as_json else "\n".join(report.lines()))
    if not report.survived:
        sys.exit(EXIT_NOT_SURVIVED)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """End like Ctrl-C, so that nothing that was started outlives this process."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    load()
