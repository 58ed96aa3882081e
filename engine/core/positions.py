"""Entry IDs and the order they do and do not have.

An entry ID is ``<epoch>-<sequence>``. Inside one epoch sequences count from 0 without gaps, so a gap is a
loss and its size is exact. Epochs of one log grow; IDs of two histories (before and after a failover) must
never be compared to tell what was applied: the applied sequence is kept for each epoch.
"""

from typing import NamedTuple

__all__ = ["ORIGIN", "EntryID"]

NUMBER_MAX = 2**63 - 1


class EntryID(NamedTuple):
    """A position in a partition's log.

    Attributes:
        epoch: number of the timeline, up to 2**53.
        sequence: position inside the epoch, from 0; -1 before its first entry.
    """

    epoch: int
    sequence: int

    @classmethod
    def parse(cls, text: bytes | str) -> "EntryID":
        """Read ``<epoch>-<sequence>`` as Redis gives it.

        Raises:
            ValueError: it is something else, or beyond what SQL can hold.
        """
        epoch, _, sequence = (text.decode("ascii") if isinstance(text, bytes) else text).partition("-")
        found = cls(int(epoch), int(sequence))
        # int() is not strict: it takes blanks, signs and underscores.
        if not (epoch.isdigit() and sequence.removeprefix("-").isdigit()):
            raise ValueError("no entry ID")
        if not (0 <= found.epoch <= NUMBER_MAX and -1 <= found.sequence <= NUMBER_MAX):
            raise ValueError("an entry ID beyond 63 bits")
        return found

    def next(self) -> "EntryID":
        """Return the position after this one in the same epoch."""
        return EntryID(self.epoch, self.sequence + 1)

    def __str__(self) -> str:
        return f"{self.epoch}-{self.sequence}"


ORIGIN = EntryID(0, -1)
"""Before the first entry of a log that nothing was ever applied from."""
