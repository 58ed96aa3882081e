"""``writebehind bench``: the product's figures, each beside what it is compared with in the same run."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, TextIO

import click
import redis
import sqlalchemy as sa
from rich.console import Console

from writebehind.bench.drains import drains, engine_rate
from writebehind.bench.footprint import footprint
from writebehind.bench.lag import lag
from writebehind.bench.memory import memory
from writebehind.bench.poison import poison
from writebehind.bench.pressure import SECONDS_FACTOR, pressure
from writebehind.bench.reads import many, one
from writebehind.bench.report import Figure, rendered, surroundings
from writebehind.bench.trial import Plan
from writebehind.bench.writes import batched, concurrent, single
from writebehind.engine.embedded import EmbeddedPostgreSQL, EmbeddedRedis
from writebehind.engine.errors import ConfigurationError

__all__ = ["bench"]

ENTRIES, ROUNDS, SECONDS = 200_000, 3, 10.0
QUICK_ENTRIES, QUICK_ROUNDS, QUICK_SECONDS = 40_000, 1, 3.0
TABLE_WIDTH = 170

PARTS: dict[str, Callable[[Plan], list[Figure]]] = {
    "put": single,
    "batch": batched,
    "async": concurrent,
    "get": lambda plan: one(plan) + many(plan),
    "drain": drains,
    "poison": poison,
    "lag": lambda plan: lag(plan, engine_rate(plan) / 2),
    "memory": memory,
    "footprint": footprint,
    "pressure": pressure,
}


@click.command()
@click.option("--redis", "redis_url", metavar="URL", help="A Redis to measure with [default: an embedded one].")
@click.option("--database", metavar="URL", help="A PostgreSQL to measure with [default: an embedded one].")
@click.option("--entries", type=click.IntRange(100), metavar="N", help=f"Entries of a drain [default: {ENTRIES}].")
@click.option("--rounds", type=click.IntRange(1), metavar="N", help=f"Rounds of a drain [default: {ROUNDS}].")
@click.option(
    "--seconds",
    type=click.FloatRange(1),
    metavar="N",
    help=f"How long to keep up a load [default: {SECONDS:g}]; pressure lasts {SECONDS_FACTOR} times as long.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the streams of keys.")
@click.option("--part", "parts", type=click.Choice(list(PARTS)), multiple=True, help="Only this part; repeatable.")
@click.option("--quick", is_flag=True, help=f"{QUICK_ENTRIES} entries, {QUICK_ROUNDS} round: less than a minute.")
@click.option("--json", "json_file", type=click.File("w"), metavar="FILE", help="Write JSON there too; - for stdout.")
def bench(
    *,
    redis_url: str | None,
    database: str | None,
    entries: int | None,
    rounds: int | None,
    seconds: float | None,
    seed: int,
    parts: Sequence[str],
    quick: bool,
    json_file: TextIO | None,
) -> None:
    """Measure against bare clients and hand-written loops, interleaved, on this machine.

    Servers of your own are written to: in namespaces and tables named bench, which are removed again.
    """
    json_to_stdout = json_file is not None and json_file.name == "<stdout>"
    console = Console(stderr=json_to_stdout)
    with ExitStack() as servers:
        if redis_url is None:
            # A rewrite of the append-only file at some moment would hit one of the two that are compared.
            redis_url = servers.enter_context(EmbeddedRedis(settings={"auto-aof-rewrite-percentage": 0})).url
        if database is None:
            database = servers.enter_context(EmbeddedPostgreSQL()).url
        plan = Plan(
            redis=redis_url,
            database=database,
            entries=entries or (QUICK_ENTRIES if quick else ENTRIES),
            rounds=rounds or (QUICK_ROUNDS if quick else ROUNDS),
            seed=seed,
            seconds=seconds or (QUICK_SECONDS if quick else SECONDS),
        )
        about = surroundings(*_versions(plan))
        figures = _measure(plan, parts or list(PARTS), console)
    if not json_to_stdout and console.width < TABLE_WIDTH and not console.is_terminal:
        console.width = TABLE_WIDTH
    console.print(rendered(figures, about))
    if json_file is not None:
        settings = {name: value for name, value in asdict(plan).items() if name not in {"redis", "database"}}
        document = {"about": about, "settings": settings, "figures": [figure.as_json() for figure in figures]}
        json.dump(document, json_file, indent=2)
        json_file.write("\n")


def _measure(plan: Plan, parts: Sequence[str], console: Console) -> list[Figure]:
    figures: list[Figure] = []
    rate: float | None = None
    for name, measure in PARTS.items():
        if name in parts:
            with console.status(f"measuring {name} ..."):
                found = lag(plan, rate / 2) if name == "lag" and rate is not None else measure(plan)
            figures += found
            if name == "drain":
                rate = found[0].value
    return figures


def _versions(plan: Plan) -> tuple[str, str]:
    try:
        with redis.Redis.from_url(plan.redis) as client:
            facts: dict[str, Any] = client.info("server")
        engine = sa.create_engine(plan.database, poolclass=sa.NullPool)
        with engine.connect() as connection:
            version = ".".join(map(str, engine.dialect.server_version_info or ()))
            del connection
    except (redis.RedisError, sa.exc.SQLAlchemyError, ValueError) as error:
        raise ConfigurationError(f"a server cannot be reached: {type(error).__name__}", "check the URLs") from error
    if (engine.dialect.name, engine.dialect.driver) != ("postgresql", "psycopg"):
        raise ConfigurationError(
            f"--database is {engine.dialect.name}+{engine.dialect.driver}", "the benchmark needs postgresql+psycopg"
        )
    return f"{facts.get('server_name', 'redis')} {facts['redis_version']}", f"PostgreSQL {version}"
