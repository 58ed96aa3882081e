"""What the flushers were asked to do with dead letters, and what became of it."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Final

import click

from writebehind.engine import WriteBehind
from writebehind.engine.receipts import Receipt
from writebehind.flushers.cli import say
from writebehind.flushers.commands.letter_text import left
from writebehind.recovery.dead_letters import counts
from writebehind.recovery.letters import DeadLetter, LetterID
from writebehind.recovery.resolving import Fate, resolutions

__all__ = ["Asked"]

REFUSED: Final = 1
"""Exit code where SQL refused some once more."""

TIMED_OUT: Final = 2
"""Exit code where no flusher has come to some in time."""

STILL_THERE: Final = (Fate.REFUSED.value, Fate.WAITING.value, Fate.PENDING.value)


class Asked:
    """What was asked of the flushers, and what became of it.

    Args:
        app: the engine.
        as_json: print JSON.
        done: the word for a letter that is gone.

    Attributes:
        unable: letters passed over because nobody can read them.
    """

    def __init__(self, app: WriteBehind, *, as_json: bool, done: str) -> None:
        self._app = app
        self._as_json = as_json
        self._done = done
        self._subjects: dict[LetterID, str] = {}
        self._receipts: dict[LetterID, Receipt] = {}
        self.unable = 0

    def note(self, letters: Sequence[DeadLetter], receipts: Sequence[Receipt]) -> None:
        """Note requests that are in the log."""
        for letter, receipt in zip(letters, receipts, strict=True):
            self._subjects[letter.letter_id] = letter.subject
            self._receipts[letter.letter_id] = receipt

    def end(self, named: Sequence[LetterID], wait: float | None) -> None:
        """Wait where told to, print, and end with the exit code.

        Args:
            named: the letters that were named one by one.
            wait: seconds to wait, or None.
        """
        missing = [letter_id for letter_id in named if letter_id not in self._receipts]
        became: dict[LetterID, tuple[str, str]] = {}
        code = 0
        if wait is not None:
            for letter_id, found in resolutions(self._app, self._receipts, wait).items():
                became[letter_id] = self._done if found.fate is Fate.GONE else found.fate.value, found.detail
                if found.fate is Fate.PENDING:
                    code = TIMED_OUT
                elif found.fate is not Fate.GONE:
                    code = code or REFUSED
        if self._as_json:
            self._print_json(became, missing)
        else:
            self._print(became, missing, waited=wait is not None)
        if code:
            sys.exit(code)

    def _print_json(self, became: Mapping[LetterID, tuple[str, str]], missing: Sequence[LetterID]) -> None:
        asked = [
            {
                "letter": str(letter_id),
                "entry_id": str(receipt.entry_id),
                "became": became[letter_id][0] if letter_id in became else "asked",
                "detail": became[letter_id][1] if letter_id in became else "",
            }
            for letter_id, receipt in self._receipts.items()
        ]
        told = {"asked": asked, "missing": list(map(str, missing)), "unreadable": self.unable}
        click.echo(json.dumps({"namespace": self._app.keys.namespace} | told))

    def _print(self, became: Mapping[LetterID, tuple[str, str]], missing: Sequence[LetterID], *, waited: bool) -> None:
        for letter_id, (fate, detail) in became.items():
            loud = fate.upper() + " again" if fate == Fate.REFUSED.value else fate
            say(f"{letter_id}  {self._subjects[letter_id]}: {loud}{': ' if detail else ''}{detail}")
        for letter_id in missing:
            click.echo(f"{letter_id}  there is no such letter: it was applied or discarded before, or never was")
        if self.unable:
            click.echo(f"{self.unable} that nobody can read were passed over: they can only be discarded")
        if not self._receipts:
            click.echo("nothing was asked for")
        elif not waited:
            click.echo(
                f"asked for {len(self._receipts)}: flushers come to them in the order of the log; "
                "see 'dead-letters list', or repeat it with --wait SECONDS"
            )
        else:
            told = [f"{sum(fate == word for fate, _ in became.values())} {word}" for word in (self._done, *STILL_THERE)]
            click.echo(", ".join(each for each in told if not each.startswith("0 ")))
            for line in left(counts(self._app), none_match=False):
                say(line)
