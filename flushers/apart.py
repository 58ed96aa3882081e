"""Trying entries and dead letters apart: the attempts of ``flushers.sifting`` made, and their outcome remembered."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from writebehind.engine.core.coalescing import Changes
from writebehind.engine.core.letters import DeadLetter
from writebehind.engine.core.printable import printable
from writebehind.flushers.batch import Segment
from writebehind.flushers.cursor import Cursor
from writebehind.flushers.failures import Failure, classify
from writebehind.flushers.letters import FOREIGN_KEY, told
from writebehind.flushers.merging import Merger
from writebehind.flushers.quarantine import Letter
from writebehind.flushers.sifting import Outcome
from writebehind.flushers.suspect import Suspect
from writebehind.flushers.transaction import Transaction

__all__ = ["REFUSING", "Apart"]

logger = logging.getLogger(__name__)

REFUSING = frozenset({Failure.POISON, Failure.FOREIGN_KEY})
RETRYABLE = frozenset({Failure.FOREIGN_KEY, Failure.CONFIGURATION})
FOREIGN_KEY_RETRY_SECONDS = 0.5
LINES_MAX, LINES_SECONDS = 20, 60.0
"""How many letters the log has one by one, in how long: a bad release may make thousands a second."""


class Apart:
    """Tries entries of one partition at a time.

    Args:
        transaction: where.
        merger: merges them.
        foreign_key_seconds: how long an entry whose parent is missing is tried again.
        tell: called with each letter that nobody tries again by himself.
    """

    def __init__(
        self,
        transaction: Transaction,
        merger: Merger,
        foreign_key_seconds: float,
        tell: Callable[[DeadLetter], Any],
    ) -> None:
        self._transaction = transaction
        self._merger = merger
        self._foreign_key_seconds = foreign_key_seconds
        self._tell = tell
        self._said: list[float] = []
        self._unsaid = 0

    def write(self, suspects: Sequence[Suspect]) -> Exception | None:
        """Write entries in a savepoint; return why SQL refuses one of them.

        Durability, Crash: as the transaction. Repeat: after they were refused only.
        """
        error = self._try(suspects, lambda: self._merger.merged(suspects))
        if error is not None and len(suspects) == 1 and len(suspects[0].mutations or ()) > 1:
            # A group whose members only work in their order: a unique value that one frees and the next one takes.
            error = self._try(suspects, lambda: self._merger.stepwise(suspects[0]))
        return error

    def _try(self, suspects: Sequence[Suspect], steps: Callable[[], Sequence[Changes]]) -> Exception | None:
        try:
            self._transaction.attempt(steps())
        except Exception as error:
            tables = {table for suspect in suspects for _, table, _, _ in suspect.mutations or ()}
            changed = None if self._transaction.ended else self._transaction.drift(tables, error)
            failure = classify(changed or error, committing=False)
            # A letter is set aside already: a table that is missing is its own trouble, not its partition's.
            refused = failure in REFUSING or (
                failure is Failure.CONFIGURATION and all(suspect.letter for suspect in suspects)
            )
            if refused and not self._transaction.ended:
                return changed or error
            if changed is not None:
                raise changed from error
            raise
        return None

    def note(self, cursor: Cursor, segment: Segment, outcome: Outcome) -> None:
        """Remember what SQL has now, and tell of what nobody tries again by himself."""
        if outcome.moves_letters:
            cursor.letters = segment.places.stop
        now = time.monotonic()
        changed: dict[int, Letter] = {}
        for suspect in outcome.parked:
            if suspect.place not in outcome.gone:
                changed[suspect.place] = suspect.as_letter()
        for suspect, error in outcome.refused:
            if suspect.place in outcome.gone:
                continue
            known = cursor.quarantine.letters.get(suspect.place)
            failure = classify(error, committing=False)
            until = 0.0 if known is None else known.retry_until
            if failure is Failure.FOREIGN_KEY and suspect.failure != FOREIGN_KEY:
                until = now + self._foreign_key_seconds
            retries = failure in RETRYABLE and now < until
            pause = FOREIGN_KEY_RETRY_SECONDS * min(10, 1 + suspect.attempts / 4)
            changed[suspect.place] = suspect.as_letter(now + pause, until) if retries else suspect.as_letter()
            if not retries:
                self.tell(told(cursor.number, suspect, error))
        for quarantine in (cursor.quarantine, cursor.ahead):
            quarantine.remove(outcome.gone)
            for place, letter in changed.items():
                quarantine.add(place, letter)

    def tell(self, letter: DeadLetter) -> None:
        """Say that SQL refuses an entry: to the service of each, in the log of the first ones of a while."""
        if len(self._said) < LINES_MAX:
            self._said.append(time.monotonic())
            logger.error(
                "DEAD LETTER %d-%d: SQL refuses entry %s of %s; it is set aside, and later ones of its key wait: %s",
                letter.partition, letter.place, letter.entry_id, printable(letter.table or "an unknown table"),
                letter.error,
            )  # fmt: skip
        else:
            self._unsaid += 1
        self._tell(letter)

    def sum_up(self) -> None:
        """Say how many letters the log does not have one by one; to be called now and then."""
        if self._unsaid:
            logger.error("%d more DEAD LETTERS; 'writebehind dead-letters list' shows them all", self._unsaid)
            self._unsaid = 0
        long_ago = time.monotonic() - LINES_SECONDS
        self._said = [moment for moment in self._said if moment > long_ago]
