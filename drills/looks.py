"""A look at what SQL has set aside, and at the rows that it is about."""

from collections.abc import Sequence

import sqlalchemy as sa

from writebehind.drills.checkers import Look
from writebehind.drills.stories import Story, Ward
from writebehind.drills.tables import wards
from writebehind.engine import WriteBehind
from writebehind.engine.core.positions import EntryID
from writebehind.recovery import LetterState, dead_letters

__all__ = ["look_at", "named"]

WAITING, REFUSED = "waits", "refused"


def look_at(
    app: WriteBehind,
    when: str,
    stories: Sequence[Story],
    *,
    aside: Sequence[str] | None = None,
    troubles: Sequence[str] = (),
) -> Look:
    """Look at all letters of the namespace, and at the rows of stories.

    Args:
        app: the engine.
        when: the moment, in words.
        stories: whose rows to look at.
        aside: the letters that there should be, while the stories are held up; None where they have ended.
        troubles: what else was not as it should be.

    Raises:
        DatabaseUnavailable, sqlalchemy.exc.SQLAlchemyError: the database cannot be read.
    """
    found = [
        named(
            letter.letter_id.partition,
            EntryID.parse(letter.entry_id),
            letter.subject,
            waits=letter.state is LetterState.WAITING,
        )
        for letter in dead_letters(app)
    ]
    keys = [story.key for story in stories]
    with app.database.connect() as connection:
        rows: dict[int, Ward] = {
            row["id"]: dict(row) for row in connection.execute(sa.select(wards).where(wards.c.id.in_(keys))).mappings()
        }
    return Look(
        when=when,
        expected=aside or (),
        found=found,
        rows_expected={story.key: story.final if aside is None else story.held for story in stories},
        rows_found={key: rows.get(key) for key in keys},
        troubles=troubles,
    )


def named(partition: int, entry: EntryID, subject: str, *, waits: bool) -> str:
    """Name a letter: where its entry stood, which record it is about, what it waits for."""
    return f"partition {partition} {entry} {subject} {WAITING if waits else REFUSED}"
