"""An entry that is tried alone or with few others, because SQL has refused it among many."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from writebehind.engine.core.payload import LETTER, MEANT, Damaged, Mutation, Op, PayloadError, decode, encode
from writebehind.flushers.quarantine import Key, Letter, keys_of, letter_of

__all__ = ["Control", "Suspect"]

CONTROLLING = frozenset({Op.REPLAY, Op.DISCARD})


@dataclass(frozen=True, slots=True)
class Control:
    """What an entry says about a letter.

    Attributes:
        op: ``REPLAY`` or ``DISCARD``.
        place: the letter's.
        meant: its mutation ID: after a rollback of SQL the place may be another's.
        corrections: what replaces its values.
    """

    op: int
    place: int
    meant: str
    corrections: dict[str, Any]


@dataclass(slots=True)
class Suspect:
    """An entry to be tried.

    Attributes:
        entry_id: where it stands in the log, or stood.
        mutation_id: that it carries.
        payload: its encoded mutations.
        place: of the letter that it is or may become.
        letter: whether it is a letter already.
        attempts: how often it was tried before.
        failure: of the last of those.
        mutations: decoded; None where that fails. Not to be merged, which would take the values away.
        unreadable: why it cannot be decoded: damaged, or of a release that is not known here.
    """

    entry_id: bytes
    mutation_id: str
    payload: bytes
    place: int
    letter: bool = False
    attempts: int = 0
    failure: str = ""
    mutations: Sequence[Mutation] | None = None
    unreadable: PayloadError | None = None

    def __post_init__(self) -> None:
        try:
            self.mutations = decode(self.payload)
        except PayloadError as error:
            self.unreadable = error
            return
        first = self.mutations[0] if self.mutations else None
        if first is not None and first[0] in CONTROLLING and not _names_letter(first[3]):
            self.mutations = None
            self.unreadable = Damaged("it names no dead letter", "find out who else writes to this stream")

    @property
    def keys(self) -> tuple[Key, ...]:
        """What it changes."""
        return keys_of(self.mutations or ())

    def as_letter(self, retry_at: float | None = None, retry_until: float = 0.0) -> Letter:
        """Return what the flusher has to remember of it once it is a letter."""
        return letter_of(self.mutations or (), retry_at, retry_until)

    @property
    def control(self) -> Control | None:
        """What it says about a letter, where it is about one."""
        if not self.mutations or self.mutations[0][0] not in CONTROLLING:
            return None
        op, _, _, values = self.mutations[0]
        corrections = {name: value for name, value in values.items() if name not in {LETTER, MEANT}}
        return Control(op, values[LETTER], values[MEANT], corrections)

    def correct(self, values: dict[str, Any]) -> None:
        """Replace some values of its one mutation."""
        if values and self.mutations is not None and len(self.mutations) == 1:
            op, table, key, before = self.mutations[0]
            self.payload = encode(op, table, key, {**before, **values})
            self.mutations = decode(self.payload)


def _names_letter(values: Mapping[str, Any]) -> bool:
    return type(values.get(LETTER)) is int and type(values.get(MEANT)) is str
