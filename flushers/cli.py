"""The command line.

``writebehind --app module:attribute COMMAND``, or without any code of your own
``writebehind --redis URL --database URL --table NAME COMMAND``.

Exit codes: 0 done; 1 an error, which is named, or a replay that SQL refused again; 2 wrong usage, or time ran out; 3
something is halted, damaged or lost; 4 a diagnosis of warnings and unknowns only.
"""

import importlib
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from writebehind.engine import WriteBehind
from writebehind.engine.core.printable import printable
from writebehind.engine.errors import ConfigurationError, WriteBehindError
from writebehind.flushers.config import FlusherSettings

if TYPE_CHECKING:
    from writebehind.flushers.inspection import LossStatus, Status

__all__ = ["main", "say"]

LOSSES_SHOWN = 10

LAZY = {
    "acl": "writebehind.flushers.commands.acl:acl",
    "bench": "writebehind.bench.cli:bench",
    "dead-letters": "writebehind.flushers.commands.dead_letters:dead_letters",
    "demo": "writebehind.examples.flights.cli:demo",
    "drill": "writebehind.drills.cli:drill",
    "doctor": "writebehind.flushers.commands.doctor:doctor",
    "recover": "writebehind.flushers.commands.recover:recover",
    "verify": "writebehind.flushers.commands.verify:verify",
}
"""Commands that need more than a flusher does, loaded when they are called."""


def say(line: str) -> None:
    """Print one line of which others may have written a part; what could drive a terminal is escaped."""
    click.echo(printable(line))


class Group(click.Group):
    """A group that loads some commands late and prints the product's errors without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name all commands."""
        return sorted({*super().list_commands(ctx), *LAZY})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Find a command, loading it where it is a late one."""
        if cmd_name in LAZY:
            module, _, attribute = LAZY[cmd_name].partition(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except WriteBehindError as error:
            # Some end with lines of a server's log.
            raise click.ClickException("\n".join(map(printable, str(error).splitlines()))) from error


@dataclass(kw_only=True)
class Target:
    """What a command works on."""

    app: str | None = None
    redis: str | None = field(default=None, repr=False)
    database: str | None = field(default=None, repr=False)
    table: tuple[str, ...] = ()
    namespace: str | None = None
    partitions: int | None = None

    def updated(self, given: dict[str, Any]) -> "Target":
        """Return a target in which what was given after the command wins."""
        return Target(**{name: given.get(name) or value for name, value in vars(self).items()})

    def load(self) -> WriteBehind:
        """Return the engine.

        Raises:
            click.UsageError: neither an app nor URLs were given, or both.
            ConfigurationError: the app is not to be found.
        """
        if self.app is not None:
            if self.redis or self.database or self.table:
                raise click.UsageError("give --app, or --redis, --database and --table, not both")
            return _load_app(self.app)
        if not (self.redis and self.database and self.table):
            raise click.UsageError("give --app MODULE:ATTRIBUTE, or --redis, --database and at least one --table")
        return _reflect(self.redis, self.database, self.table, self.namespace or "default", self.partitions or 16)


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what to work on."""
    for option in reversed(
        [
            click.option("--app", metavar="MODULE:ATTRIBUTE", help="A WriteBehind, or a function that makes one."),
            click.option("--redis", metavar="URL", help="Without --app: Redis."),
            click.option("--database", metavar="URL", help="Without --app: the database, as a SQLAlchemy URL."),
            click.option(
                "--table", metavar="NAME", multiple=True, help="Without --app: a table to reflect; repeatable."
            ),
            click.option("--namespace", metavar="NAME", help="Without --app: the namespace [default: default]."),
            click.option("--partitions", type=int, metavar="N", help="Without --app: its partitions [default: 16]."),
        ]
    ):
        command = option(command)
    return command


def with_app(command: Callable[..., Any]) -> Callable[..., Any]:
    """Hand a command the engine that its options name."""

    @click.pass_context
    def loaded(ctx: click.Context, /, **given: Any) -> Any:
        target = ctx.ensure_object(Target).updated({name: given.pop(name) for name in vars(Target())})
        app = target.load()
        try:
            return ctx.invoke(command, app, **given)
        finally:
            app.close()

    return target_options(update_wrapper(loaded, command))


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@target_options
@click.version_option(package_name="writebehind")
@click.option("--verbose", is_flag=True, help="Log more.")
@click.pass_context
def main(ctx: click.Context, /, *, verbose: bool, **given: Any) -> None:
    """Write-behind persistence: writes at Redis speed, exactly once in SQL."""
    ctx.obj = Target(**given)
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


@main.command()
@with_app
@click.option("--create-tables", is_flag=True, help="Create the application's own tables too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def init(app: WriteBehind, *, create_tables: bool, as_json: bool) -> None:
    """Create the engine's own tables and register the namespace. Safe to repeat."""
    from writebehind.flushers.initialisation import initialise  # noqa: PLC0415 - keeps --help fast

    done = initialise(app, create_tables=create_tables)
    if as_json:
        click.echo(json.dumps({"namespace": app.keys.namespace, "done": done}))
    else:
        click.echo("\n".join(done) or "nothing to do")


KINDS = {"rows_per_second_max": float, "rows_per_second_total_max": int, "concurrent_batches_max": int}
"""Of settings that have no value by default."""


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that tune a flusher."""
    defaults = FlusherSettings()
    for name, help_text in (
        ("linger_seconds", "How long to collect entries for a batch that is not full."),
        ("batch_entries_max", "Entries of one batch."),
        ("lease_ttl_seconds", "After this long a dead flusher's work is taken over."),
        ("retention_seconds", "How long flushed entries stay in the log."),
        ("rows_per_second_max", "SQL operations of one flusher process [default: as many as it can]."),
        ("rows_per_second_total_max", "SQL operations of all flushers together [default: as many as they can]."),
        ("concurrent_batches_max", "Flushers that serve at a time; others stand by [default: all serve]."),
        ("commit_seconds_target", "A batch that takes longer to commit is followed by smaller ones."),
    ):
        value = getattr(defaults, name)
        kind = KINDS.get(name, type(value))
        command = click.option(
            f"--{name.replace('_', '-')}", type=kind, default=value, show_default=value is not None, help=help_text
        )(command)
    return command


@main.command()
@with_app
@settings_options
@click.option("--processes", type=click.IntRange(1, 64), default=1, show_default=True, help="Flushers to run.")
@click.option("--supervised", is_flag=True, hidden=True)
def run(app: WriteBehind, *, processes: int, supervised: bool, **tuned: Any) -> None:
    """Flush until SIGTERM or SIGINT; then finish the batch, hand the leases back and end with 0."""
    from writebehind.flushers import daemon  # noqa: PLC0415 - keeps --help fast

    settings = FlusherSettings(**tuned)
    if processes > 1:
        sys.exit(daemon.supervise(sys.argv[1:], processes))
    daemon.serve(app, settings, supervised=supervised)


@main.command()
@with_app
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--metrics", "as_metrics", is_flag=True, help="Print figures in Prometheus's text format.")
def status(app: WriteBehind, *, as_json: bool, as_metrics: bool) -> None:
    """Show where every partition stands; ends with 3 when one is halted, is damaged or has lost entries."""
    from writebehind.flushers.inspection import status as look  # noqa: PLC0415 - keeps --help fast
    from writebehind.flushers.metrics import exposition  # noqa: PLC0415

    found = look(app)
    if as_metrics:
        click.echo(exposition(found), nl=False)
    elif as_json:
        click.echo(json.dumps(found.as_json()))
    else:
        click.echo(f"namespace {found.namespace}: backlog {found.backlog} entries, lag {found.lag_seconds:.1f} s, "
                   f"{found.flushers} flushers, {found.lost_entries} entries lost")  # fmt: skip
        click.echo(f"{'partition':>9}  {'backlog':>9}  {'lag s':>7}  {'lost':>5}  {'no row':>6}  {'offset':<26} holder")
        for row in found.partitions:
            say(
                f"{row.partition:>9}  {_figure(row.backlog, 9, 0)}  {_figure(row.lag_seconds, 7, 1)}  "
                f"{row.lost_entries:>5}  {row.missing_rows:>6}  {row.offset:<26} {row.holder or '-'}"
            )
        for row in found.halted:
            say(f"partition {row.partition} HALTED: {row.halted}")
        for row in found.damaged:
            say(f"partition {row.partition} DAMAGED: {row.damaged}")
        _print_letters(found)
        _print_reads(found)
        for row in found.pressed:
            say(f"partition {row.partition} UNDER PRESSURE: writes are held (limit on {row.pressure})")
        for loss in found.losses[:LOSSES_SHOWN]:
            say(_sentence(loss))
    if found.halted or found.damaged or found.lost_entries:
        sys.exit(3)


def _figure(value: float | None, width: int, places: int) -> str:
    return f"{'?' if value is None else f'{value:.{places}f}':>{width}}"


def _print_reads(found: "Status") -> None:
    for table, counts in found.reads.items():
        if counts.hit_rate is not None:
            say(
                f"reads of {table}: {100 * counts.hit_rate:.1f} % hits of {counts.hits + counts.misses}, "
                f"{counts.negative_hits} negative, {counts.loads} loaded in {counts.load_ms / 1000:.1f} s, "
                f"{counts.waits} waited, {counts.stale} stale, {counts.not_kept} not kept, {counts.evictions} evicted"
            )
    for cache, cached in found.caches.items():
        if cached.hit_rate is not None:
            say(
                f"reads of cache {cache}: {100 * cached.hit_rate:.1f} % hits of {cached.hits + cached.misses}, "
                f"{cached.local_hits} local, {cached.negative_hits} negative, "
                f"{cached.loads} loaded in {cached.load_seconds:.1f} s, {cached.waits} waited, {cached.stale} stale, "
                f"{cached.uncached} not kept, {cached.evictions} evicted"
            )


def _print_letters(found: "Status") -> None:
    for table, count in found.dead_letters.items():
        say(f"dead letters of {table or 'no known table'}: {count}; see 'dead-letters list'")


def _sentence(loss: "LossStatus") -> str:
    found = datetime.fromtimestamp(loss.found_ms / 1000).astimezone().isoformat(timespec="seconds")
    made = [datetime.fromtimestamp(at / 1000).astimezone().isoformat(" ", "milliseconds") if at else "?"
            for at in (loss.from_ms, loss.until_ms)]  # fmt: skip
    what = f"{loss.entries} entries LOST" if loss.entries else "nothing lost"
    if loss.in_doubt:
        what = f"{loss.in_doubt} entries IN DOUBT, passed over"
    concerned = "read them, and write again if needed" if loss.in_doubt else "overwritten since"
    return (
        f"partition {loss.partition}, found {found} by {loss.reporter}: {what}, {loss.rewritten} written again, "
        f"{loss.first_id} to {loss.last_id}, made {made[0]} to {made[1]}"
        + (f"; {concerned}: {loss.records}" if loss.records else "")
    )


@main.command()
@with_app
@settings_options
@click.option("--timeout", type=float, metavar="SECONDS", help="Give up after this long, with exit code 2.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def drain(app: WriteBehind, *, timeout: float | None, as_json: bool, **tuned: Any) -> None:
    """Wait until SQL has everything, flushing what no live flusher holds.

    A partition whose log is damaged is named at the end, as an error, when the others are flushed.
    """
    from writebehind.flushers.draining import drain as empty  # noqa: PLC0415 - keeps --help fast

    last = empty(app, timeout, FlusherSettings(**tuned))
    if as_json:
        click.echo(json.dumps(last.as_json()))
    else:
        click.echo("drained" if last.backlog == 0 else f"{last.backlog} entries remain")
        for row in last.halted:
            say(f"partition {row.partition} HALTED: {row.halted}")
        _print_letters(last)
    if last.backlog:
        sys.exit(2)


def _load_app(name: str) -> WriteBehind:
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise click.UsageError(f"--app {name!r} is not MODULE:ATTRIBUTE")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigurationError(f"--app {name}: {error}", "give MODULE:ATTRIBUTE as Python would import it") from error
    app = found() if callable(found) and not isinstance(found, WriteBehind) else found
    if not isinstance(app, WriteBehind):
        from writebehind.engine import AsyncWriteBehind  # noqa: PLC0415 - keeps --help fast

        if isinstance(app, AsyncWriteBehind):
            return app.blocking
        raise ConfigurationError(f"--app {name} is a {type(app).__name__}", "it has to be a WriteBehind or make one")
    return app


def _reflect(redis: str, database: str, names: tuple[str, ...], namespace: str, partitions: int) -> WriteBehind:
    import sqlalchemy as sa  # noqa: PLC0415 - keeps --help fast

    from writebehind.engine.adapters.declaration import on_column_reflect  # noqa: PLC0415
    from writebehind.engine.adapters.sql_reasons import sql_reason  # noqa: PLC0415

    try:
        engine = sa.create_engine(database, hide_parameters=True)
        metadata = sa.MetaData()
        sa.event.listen(metadata, "column_reflect", on_column_reflect)
        tables = []
        for name in names:
            schema, _, table = name.rpartition(".")
            tables.append(sa.Table(table, metadata, schema=schema or None, autoload_with=engine))
    except sa.exc.NoSuchTableError as error:
        raise ConfigurationError(f"the database has no table {error}", "create it, or correct --table") from error
    except (sa.exc.ArgumentError, ValueError, ImportError, sa.exc.OperationalError) as error:
        raise ConfigurationError(
            f"--database is not usable: {sql_reason(error)}", "give a SQLAlchemy URL; is the driver installed?"
        ) from None
    return WriteBehind(redis=redis, database=engine, tables=tables, namespace=namespace, partitions=partitions)


if __name__ == "__main__":
    # Late commands import this module by its name; what they look for in the context has to be of that copy's classes.
    importlib.import_module("writebehind.flushers.cli").main(prog_name="writebehind")
