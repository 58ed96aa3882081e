"""Known mistakes with what SQL refuses; see ``mutants``."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from simulator.adapters import ModelLeases
from simulator.letters import ModelLetters
from simulator.mutant import KILLS, Mutant
from simulator.sessions import Session
from simulator.theme import Theme
from simulator.transaction import ModelTransaction
from writebehind.engine.core.payload import Mutation
from writebehind.engine.core.positions import EntryID
from writebehind.flushers.quarantine import Quarantine

__all__ = ["REFUSING"]

Held = dict[int, tuple[int, EntryID, int]]


class _Whatever(int):
    """A number that passes for any other."""

    def __eq__(self, _: object) -> bool:
        return True

    def __ne__(self, _: object) -> bool:
        return False

    __hash__ = int.__hash__


@contextmanager
def _letters_unfenced() -> Iterator[None]:
    """Neither the fence nor the holder of the lease looks where the letters stand."""
    move, held = ModelTransaction._move, ModelLeases.held

    def moving(transaction: Any, session: Session, segments: Any, letters: Mapping[int, int]) -> int:
        return move(transaction, session, segments, dict.fromkeys(letters, _Whatever()))

    def holding(leases: ModelLeases) -> Held:
        return {number: (token, offset, _Whatever()) for number, (token, offset, _) in held(leases).items()}

    with mock.patch.object(ModelTransaction, "_move", moving), mock.patch.object(ModelLeases, "held", holding):
        yield


def _apart(insert: Callable[..., None]) -> Callable[..., None]:
    def inserting(letters: ModelLetters, session: Session, *arguments: Any, **options: Any) -> None:
        """Commit the letters before the offset that passes them."""
        other = session.database.session(session.process)
        insert(letters, other, *arguments, **options)
        other.commit()

    return inserting


def _unread(*_: Any) -> Quarantine:
    return Quarantine()


def _any_supersedes(quarantine: Quarantine, mutations: Sequence[Mutation], place: float = float("inf")) -> Any:
    places = [other for other in quarantine.letters if other < place]
    keys = {(table, key) for _, table, key, _ in mutations}
    return tuple(other for other in places if not keys.isdisjoint(quarantine.letters[other].keys))


REFUSING = [
    Mutant(
        name="nobody waits behind a letter",
        harm="a later write of the key is in SQL before the one that was set aside",
        rules=frozenset({"overtaken"}),
        make=lambda: mock.patch.object(Quarantine, "holds", return_value=False),
        theme=Theme(refuses=True),
    ),
    Mutant(
        name="a part supersedes the whole",
        harm="a patch makes the refused put of before go",
        rules=frozenset({"overtaken"}),
        make=lambda: mock.patch.object(Quarantine, "superseded_by", _any_supersedes),
        theme=Theme(refuses=True),
    ),
    Mutant(
        name="who waits is not written down",
        harm="a write behind a letter is passed and forgotten",
        rules=frozenset({"overtaken"}),
        make=lambda: mock.patch.object(ModelLetters, "park", return_value=None),
        theme=Theme(refuses=True),
    ),
    Mutant(
        name="an applied letter stays",
        harm="it is applied once more with the next replay",
        rules=frozenset({"overtaken", "letters", "rows"}),
        make=lambda: mock.patch.object(ModelLetters, "remove", return_value=None),
        theme=Theme(refuses=True),
    ),
    Mutant(
        name="a takeover without the letters",
        harm="the new holder lets writes overtake what the last one has set aside",
        rules=frozenset({"overtaken"}),
        make=lambda: mock.patch.object(ModelLetters, "load", _unread),
        theme=Theme(refuses=True, faults=KILLS),
    ),
    Mutant(
        name="letters committed before the offset",
        harm="a crash between the two leaves a letter of an entry that is then tried again",
        rules=frozenset({"letters", "errors", "once"}),
        make=lambda: mock.patch.object(ModelLetters, "_insert", _apart(ModelLetters._insert)),
        theme=Theme(refuses=True, faults=KILLS),
    ),
    Mutant(
        name="letters not fenced",
        harm="a flusher does not see that a rollback of SQL has brought a letter back",
        rules=frozenset({"overtaken", "stuck", "letters", "rows", "liveness", "order"}),
        make=_letters_unfenced,
        theme=Theme(refuses=True, events=["sql rollback"], only=True),
        seeds_max=600,
    ),
]
