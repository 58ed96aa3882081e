"""``writebehind acl``: print users of Redis that may do what the product needs and nothing else."""

import json
from dataclasses import asdict
from typing import Any, Final

import click

from writebehind.engine.adapters.links import Links
from writebehind.engine.core.access import Options, User, default_user, users
from writebehind.flushers.cli import Target, target_options

__all__ = ["acl"]

TIMEOUT_SECONDS: Final = 5.0

PLACEHOLDER_NOTE: Final = (
    "Replace each <password of ...>; Redis refuses the lines as they stand. Instead of '>' and the password, '#' and "
    "its SHA-256 in hexadecimal will do."
)
ADMINISTRATOR_NOTE: Final = "Have an administrator with a password before 'default' loses its login."
DEFAULT_NOTE: Final = (
    "'default' loses its login and keeps permissions. Redis loads its append-only file as 'default', and checks its "
    "permissions for everything that scripts have written: without them a restart drops it all, without an error. It "
    "keeps them on all keys, since other namespaces and programs on this server need the same; where their scripts "
    "write with other commands, add these."
)
SETUSER_NOTE: Final = "Then ACL SAVE where there is an aclfile, or CONFIG REWRITE: else a restart forgets the users."
FILE_NOTE: Final = "These are not all users: the file replaces those that the server has, administrators included."
OLD_NOTE: Final = "Redis 7.0 does not know all of these commands and refuses the lines: use --redis-7.0 there."


@click.command(short_help="Print least-privilege users of Redis for this namespace.")
@target_options
@click.option(
    "--format", "form", type=click.Choice(["setuser", "aclfile"]), default="setuser", show_default=True,
    help="Lines for redis-cli, or for an ACL file.",
)  # fmt: skip
@click.option("--redis-7.0", "old", is_flag=True, help="For Redis 7.0, which does not know WAITAOF and CLIENT SETINFO.")
@click.option(
    "--config-get", is_flag=True,
    help="Let writers and flushers ask for settings: FSYNCED needs that under appendfsync always. It shows them the "
    "server's own passwords (requirepass, masterauth), too.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def acl(ctx: click.Context, /, *, form: str, old: bool, config_get: bool, as_json: bool, **given: Any) -> None:
    """Print users for the services that write, for flushers, and for whoever runs the other commands.

    Each may use the keys of this namespace and the commands that its work needs. The last line is for the user
    'default'. Nothing is asked of a server and nothing is changed; notes go to standard error. --namespace NAME is
    enough instead of --app.
    """
    target = ctx.ensure_object(Target).updated({name: given.pop(name) for name in vars(Target())})
    namespace, database = _named(target)
    found = users(namespace, Options(before_7_2=old, config_get=config_get, select=database != 0))
    default = default_user()
    if as_json:
        click.echo(json.dumps({"namespace": namespace, "users": [asdict(user) for user in [*found, default]]}))
        return
    for user in [*found, default]:
        click.echo(user.command() if form == "setuser" else user.file_line())
    for note in _notes(found, form, old=old):
        click.echo(f"# {note}", err=True)


def _named(target: Target) -> tuple[str, int]:
    """Return the namespace and the number of the Redis database."""
    if target.app is None and target.namespace and not (target.database or target.table):
        links = Links(target.redis or "redis://", TIMEOUT_SECONDS)
        return target.namespace, links.database
    app = target.load()
    try:
        return app.keys.namespace, app.links.database
    finally:
        app.close()


def _notes(found: list[User], form: str, *, old: bool) -> list[str]:
    notes = [f"{user.name}: {user.purpose}." for user in found]
    notes += [PLACEHOLDER_NOTE, ADMINISTRATOR_NOTE, DEFAULT_NOTE, FILE_NOTE if form == "aclfile" else SETUSER_NOTE]
    return notes if old else [*notes, OLD_NOTE]
