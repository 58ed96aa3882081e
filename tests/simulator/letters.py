"""The dead letters as the product sees them in the model of SQL; what it does with them is its own code."""

from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from simulator.sessions import Session
from writebehind.flushers.failures import describe
from writebehind.flushers.letters import FOREIGN_KEY, Letters, failure_of
from writebehind.flushers.suspect import Suspect

__all__ = ["ModelLetters", "seen"]

PAGE_LETTERS = 2
"""So few that a takeover reads several pages, and something may happen between them."""


def seen(row: dict[str, Any]) -> Any:
    """Return a letter's row as SQLAlchemy gives it."""
    return SimpleNamespace(**row)


class ModelLetters(Letters):
    """Stands for ``Letters``: does what its statements do."""

    def _pages(self, connection: Any, partition: int) -> Iterator[Sequence[Any]]:
        session: Session = connection

        def select() -> list[Any]:
            now_ms = session.database.now_ms()
            rows = [row for place, row in session.letters_of(partition).items() if place > after]
            return [
                (
                    row["place"],
                    row["payload"],
                    row["failure"],
                    until - now_ms if (until := row["retry_until_ms"]) else None,
                )
                for row in rows[:PAGE_LETTERS]
            ]

        after = -1
        while page := session.statement(f"letters of {partition} behind {after}", select):
            yield page
            after = page[-1][0]

    def _at(self, connection: Any, partition: int, places: Sequence[int]) -> list[Any]:
        session: Session = connection

        def select() -> list[Any]:
            found = session.letters_of(partition)
            return [seen(found[place]) for place in places if place in found]

        rows: list[Any] = session.statement(f"letters {list(places)} of {partition}", select) if places else []
        return rows

    def _given_up(self, connection: Any, partition: int, first: int, last: int) -> Sequence[Any]:
        session: Session = connection

        def select() -> list[Any]:
            rows = session.letters_of(partition)
            return [seen(row) for row in rows.values() if first <= row["place"] <= last and row["failure"]]

        rows: list[Any] = session.statement(f"letters {first} to {last} of {partition}", select)
        return [row for row in rows if row.retry_until_ms == 0]

    def _insert(self, connection: Any, partition: int, rows: Sequence[dict[str, Any]], *, retrying: bool) -> None:
        session: Session = connection

        def insert() -> None:
            now_ms = session.database.now_ms()
            until = now_ms + self._foreign_key_ms if retrying else 0
            for row in rows:
                if row["place"] in session.letters_of(partition):
                    raise ValueError(f"place {row['place']} of partition {partition} is taken")
                session.letters[partition, row["place"]] = {
                    **row, "partition": partition, "dead_ms": now_ms, "retry_until_ms": until
                }  # fmt: skip

        if rows:
            told = [(row["place"], row["entry_id"], row["failure"]) for row in rows]
            session.statement(f"letters of {partition} are made: {told}", insert)

    def _refuse_again(self, connection: Any, partition: int, suspect: Suspect, error: Exception, *, over: bool) -> None:
        session: Session = connection
        failure = failure_of(suspect, error)

        def update() -> None:
            former = session.letters_of(partition).get(suspect.place)
            if former is None:
                return
            until = former["retry_until_ms"]
            if failure == FOREIGN_KEY != suspect.failure:
                until = session.database.now_ms() + self._foreign_key_ms
            elif over or failure != FOREIGN_KEY:
                until = 0
            session.letters[partition, suspect.place] = {
                **former,
                "failure": failure,
                "error": describe(error),
                "attempts": former["attempts"] + 1,
                "retry_until_ms": until,
            }

        session.statement(f"letter {suspect.place} of {partition} is refused again", update)

    def remove(self, connection: Any, partition: int, places: Iterable[int]) -> None:
        """Delete letters."""
        session: Session = connection
        ordered = sorted(places)

        def delete() -> None:
            for place in ordered:
                session.letters[partition, place] = None

        if ordered:
            session.statement(f"letters {ordered} of {partition} go", delete)
