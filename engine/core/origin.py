"""What an entry says of itself that may be in SQL already: the field ``o``, as docs/wire-format.md has it.

Pure. An entry that was written again names the one that it repeats. An entry of a write of which an attempt was lost
with another history names, for each such history, the first entry lost with it: if SQL has that one, a flusher went on
with what Redis has lost, and nobody can know whether the attempt was among it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from writebehind.engine.core.positions import EntryID

__all__ = ["Origin"]

DOUBT = "?"


@dataclass(frozen=True, slots=True)
class Origin:
    """By which entries SQL may have a write already.

    Attributes:
        original: where it stood first; None where it was not written again.
        doubts: of each history in which an attempt was lost, the first entry that was lost with it.
    """

    original: EntryID | None = None
    doubts: Sequence[EntryID] = ()

    @classmethod
    def parse(cls, field: bytes) -> "Origin":
        """Read the field.

        Raises:
            ValueError: it is none.
        """
        original: EntryID | None = None
        doubts: list[EntryID] = []
        for text in field.decode().split(" "):
            if text.endswith(DOUBT):
                doubts.append(EntryID.parse(text.removesuffix(DOUBT)))
            elif original is None:
                original = EntryID.parse(text)
            else:
                raise ValueError("an entry repeats one other at the most")
        return cls(original, tuple(doubts))

    def __str__(self) -> str:
        texts = [f"{doubt}{DOUBT}" for doubt in self.doubts]
        return " ".join(texts if self.original is None else [str(self.original), *texts])
