"""``writebehind dead-letters``: what SQL refused, and what is to become of it."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import update_wrapper
from itertools import islice
from typing import Any, Final

import click
from rich.console import Console

from writebehind.engine import WriteBehind
from writebehind.engine.errors import ValidationError
from writebehind.flushers.cli import Target, say, target_options
from writebehind.flushers.commands.letter_requests import Asked
from writebehind.flushers.commands.letter_text import Chain, Loss, described, left, tabulated
from writebehind.flushers.commands.moments import as_moment
from writebehind.recovery.corrections import parse
from writebehind.recovery.dead_letters import ahead, behind, counts, find, last_places
from writebehind.recovery.dead_letters import dead_letters as letters_of
from writebehind.recovery.letters import DeadLetter, LetterFilter, LetterID, LetterState
from writebehind.recovery.resolving import discard as give_up
from writebehind.recovery.resolving import replay as apply

__all__ = ["dead_letters"]

LISTED: Final = 50
CHUNK_LETTERS: Final = 500
"""Letters that are asked for at once: so many are in memory."""

WIDTH_UNKNOWN: Final = 200
TROUBLE: Final = frozenset({LetterState.REFUSED, LetterState.RETRYING})
"""What replay and discard take where they are not told otherwise: the rest follows by itself."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which letters a command is about.

    Attributes:
        ids: those named.
        wanted: where none is named, the filter; letters that come later are not meant.
    """

    ids: Sequence[LetterID]
    wanted: LetterFilter

    def letters(self, app: WriteBehind, *, newest_first: bool = False) -> Iterator[DeadLetter]:
        """Name the letters that are there."""
        if not self.ids:
            yield from letters_of(app, self.wanted, newest_first=newest_first)
            return
        found = find(app, self.ids)
        for letter_id in sorted(found, reverse=newest_first):
            yield found[letter_id]


@click.group(name="dead-letters", short_help="What SQL refused: list, show, replay, discard.")
def dead_letters() -> None:
    """Writes that SQL refused, and later writes of the same keys, which wait behind them in order.

    All other keys go on. A letter is mended by 'replay', with '--set' where a value is wrong, or given up by 'discard'.
    """


def with_app(command: Callable[..., Any]) -> Callable[..., Any]:
    """Hand a command the engine, and as ``tables`` what --table named after the command."""

    @click.pass_context
    def loaded(ctx: click.Context, /, **given: Any) -> Any:
        named = frozenset(given["table"])
        target = ctx.ensure_object(Target).updated({name: given.pop(name) for name in vars(Target())})
        # With an app the tables are known, and --table chooses among them.
        app = (replace(target, table=()) if target.app else target).load()
        try:
            return ctx.invoke(command, app, tables=named, **given)
        finally:
            app.close()

    return target_options(update_wrapper(loaded, command))


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose letters."""
    for option in reversed(
        [
            click.option("--key", metavar="KEY", help="Only of this key, as it is listed."),
            click.option("--error", metavar="TEXT", help="Only with this in the failure or the error, in any case."),
            click.option(
                "--since", metavar="TIME", callback=as_moment,
                help="Only set aside since then: 2026-03-31T13:45, or 90s, 30m, 2h, 1d ago.",
            ),
            click.option("--until", metavar="TIME", callback=as_moment, help="Only set aside before then; likewise."),
            click.option("--partition", type=click.IntRange(0), multiple=True, help="Only of this one; repeatable."),
            click.option(
                "--state", type=click.Choice([state.value for state in LetterState]), multiple=True,
                help="Only refused ones, those that a flusher is still retrying, or those waiting; repeatable.",
            ),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


def _filter(
    tables: frozenset[str],
    *,
    key: str | None,
    error: str | None,
    since: int | None,
    until: int | None,
    partition: Sequence[int],
    state: Sequence[str],
) -> LetterFilter:
    return LetterFilter(
        tables=tables or None,
        key=key,
        error=error,
        since_ms=since,
        until_ms=until,
        partitions=frozenset(partition) or None,
        states=frozenset(map(LetterState, state)) or None,
    )


@dead_letters.command(name="list")
@with_app
@filter_options
@click.option("--limit", type=click.IntRange(1), default=LISTED, show_default=True, help="Letters to list.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(app: WriteBehind, *, tables: frozenset[str], limit: int, as_json: bool, **filters: Any) -> None:
    """List dead letters, partition by partition, each in the log's order.

    --table NAME after the command lists those of a table; without it also those that cannot be read.
    """
    wanted = _filter(tables, **filters)
    if as_json:
        _print_json(app, wanted, limit)
        return
    found = list(islice(letters_of(app, wanted), limit + 1))
    if found:
        console = Console(width=None if sys.stdout.isatty() else WIDTH_UNKNOWN)
        with console.capture() as drawn:
            console.print(tabulated(found[:limit]))
        click.echo("\n".join(line.rstrip() for line in drawn.get().splitlines()))
    if len(found) > limit:
        click.echo(f"and more: --limit is {limit}")
    for line in left(counts(app), none_match=not found):
        say(line)


def _print_json(app: WriteBehind, wanted: LetterFilter, limit: int) -> None:
    """Print piece by piece: there may be more letters than memory."""
    told = {table: asdict(count) for table, count in counts(app).items()}
    click.echo(f'{{"namespace": {json.dumps(app.keys.namespace)}, "counts": {json.dumps(told)}, "letters": [', nl=False)
    more = False
    for number, letter in enumerate(letters_of(app, wanted)):
        if number == limit:
            more = True
            break
        click.echo((", " if number else "") + json.dumps(letter.as_json()), nl=False)
    click.echo(f'], "more": {json.dumps(more)}}}')


@dead_letters.command()
@with_app
@click.argument("letter")
@click.option("--values", "with_values", is_flag=True, help="Show the values, too: they may be secret.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(app: WriteBehind, *, tables: frozenset[str], letter: str, with_values: bool, as_json: bool) -> None:
    """Show one letter: what it would do, why SQL refused it, what waits behind it and what it waits for."""
    del tables  # the letter is named; the table only says how to read its key
    letter_id = LetterID.parse(letter)
    found = find(app, [letter_id]).get(letter_id)
    if found is None:
        raise ValidationError(
            f"there is no letter {letter_id}", "it was applied or discarded, or never was: see 'dead-letters list'"
        )
    before, following = Chain.of(ahead(app, found)), Chain.of(behind(app, found))
    if as_json:
        neighbours = {"waits_for": before.as_json(), "behind": following.as_json()}
        click.echo(json.dumps(found.as_json(with_values=with_values) | neighbours))
        return
    for line in described(found, before, following, with_values=with_values):
        say(line)


@dead_letters.command()
@with_app
@click.argument("letters", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that the filters admit.")
@filter_options
@click.option(
    "--set", "corrections", metavar="COLUMN=VALUE", multiple=True,
    help=r"With one letter: this value in place of its own (an increment's amount); repeatable. \N is NULL.",
)  # fmt: skip
@click.option("--wait", type=click.FloatRange(0), metavar="SECONDS", help="Wait so long and say what became of each.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def replay(
    app: WriteBehind,
    *,
    tables: frozenset[str],
    letters: Sequence[str],
    everything: bool,
    corrections: Sequence[str],
    wait: float | None,
    as_json: bool,
    **filters: Any,
) -> None:
    """Have letters tried again, each with those that wait behind it, in the order of the log.

    Name letters, or give filters or --all: then those that SQL refused are taken, and what waits behind them follows by
    itself. Safe to repeat and to kill. With --wait, ends with 0 when all were resolved, 1 when SQL refused some again,
    2 when no flusher has come to some in time.
    """
    choice = _choice(app, letters, _filter(tables, **filters), everything=everything)
    texts = _pairs(corrections)
    if texts and len(choice.ids) != 1:
        raise click.UsageError("--set goes with one letter that is named")
    asked = Asked(app, as_json=as_json, done="resolved")
    for chunk in _chunks(choice.letters(app)):
        able = [letter for letter in chunk if choice.ids or letter.replayable]
        asked.unable += len(chunk) - len(able)
        asked.note(able, apply(app, able, _typed(app, able[0], texts) if texts else None))
    asked.end(choice.ids, wait)


@dead_letters.command()
@with_app
@click.argument("letters", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that the filters admit.")
@filter_options
@click.option("--yes", is_flag=True, help="Do it without asking.")
@click.option("--wait", type=click.FloatRange(0), metavar="SECONDS", help="Wait so long and say what became of each.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def discard(
    app: WriteBehind,
    *,
    tables: frozenset[str],
    letters: Sequence[str],
    everything: bool,
    yes: bool,
    wait: float | None,
    as_json: bool,
    **filters: Any,
) -> None:
    """Give letters up for good: SQL never gets them, and reads show what SQL has.

    Name letters, or give filters or --all: then those that SQL refused are taken. What waits behind them is applied
    then; '--state refused --state waiting' gives it up, too. Safe to repeat and to kill. With --wait, ends with 0 when
    all are gone, 2 when no flusher has come to some in time.
    """
    choice = _choice(app, letters, _filter(tables, **filters), everything=everything)
    if not yes:
        if as_json:
            raise click.UsageError("--json goes with --yes: there is nobody to ask")
        loss = Loss.of(choice.letters(app))
        for line in loss.lines():
            say(line)
        if loss.total:
            click.confirm("Give them up for good?", abort=True)
    asked = Asked(app, as_json=as_json, done="discarded")
    # The last ones first: else giving up the first of a key would apply the next.
    for chunk in _chunks(choice.letters(app, newest_first=True)):
        asked.note(chunk, give_up(app, chunk))
    asked.end(choice.ids, wait)


def _choice(app: WriteBehind, letters: Sequence[str], wanted: LetterFilter, *, everything: bool) -> Choice:
    filtered = wanted != LetterFilter(tables=wanted.tables)
    if letters:
        if filtered or everything:
            raise click.UsageError("name letters, or choose them by filters, not both")
        return Choice(ids=list(map(LetterID.parse, letters)), wanted=wanted)
    if not (filtered or everything or wanted.tables):
        raise click.UsageError("name letters, or choose them by filters, or give --all")
    states = wanted.states or TROUBLE
    return Choice(ids=(), wanted=replace(wanted, states=states, last=last_places(app)))


def _chunks(letters: Iterable[DeadLetter]) -> Iterator[list[DeadLetter]]:
    waiting = iter(letters)
    while chunk := list(islice(waiting, CHUNK_LETTERS)):
        yield chunk


def _pairs(given: Sequence[str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for pair in given:
        name, equals, text = pair.partition("=")
        if not (name and equals):
            raise click.UsageError("--set takes COLUMN=VALUE")
        if name in texts:
            raise click.UsageError(f"--set {name} is given twice")
        texts[name] = text
    return texts


def _typed(app: WriteBehind, letter: DeadLetter, texts: dict[str, str]) -> dict[str, Any]:
    table = letter.changes[0].table if letter.changes else ""
    declared = app.tables.get(table)
    # Where it cannot be typed it cannot be checked either: that is refused with the reason.
    return dict(texts) if declared is None else parse(declared.plan, texts)
