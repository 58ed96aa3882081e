"""Decisions of a history: drawn from a seed, or replayed from a list.

0 is always the plain choice: no fault, no change of task, the smallest number. So a list of decisions that is cut
short, or has a part set to 0, is a simpler history, which is all that shrinking needs.
"""

from collections.abc import Sequence
from random import Random

__all__ = ["Chance"]


class Chance:
    """Makes decisions and records them.

    Args:
        seed: where they come from.
        replay: decisions to be made again instead; 0 after the last one.

    Attributes:
        decisions: what was decided so far.
    """

    __slots__ = ("_random", "_replay", "decisions")

    def __init__(self, seed: int, replay: Sequence[int] | None = None) -> None:
        self._random = Random(seed)
        self._replay = replay
        self.decisions: list[int] = []

    def below(self, count: int) -> int:
        """Choose a number from 0 to ``count - 1``."""
        if count <= 1:
            return 0
        if self._replay is None:
            return self._note(int(self._random.random() * count))
        return self._next(count)

    def happens(self, share: float) -> bool:
        """Decide whether something happens that happens in this share of the cases."""
        if share <= 0:
            return False
        if self._replay is None:
            return bool(self._note(int(self._random.random() < share)))
        return bool(self._next(2))

    def pick(self, weights: Sequence[int]) -> int:
        """Choose an index by its weight."""
        if len(weights) <= 1:
            return 0
        if self._replay is not None:
            return self._next(len(weights))
        left = self._random.random() * sum(weights)
        for index, weight in enumerate(weights):
            left -= weight
            if left < 0:
                return self._note(index)
        return self._note(0)

    def up_to(self, least: int, most: int) -> int:
        """Choose a number of this range, both ends included."""
        return least + self.below(most - least + 1)

    def _note(self, value: int) -> int:
        self.decisions.append(value)
        return value

    def _next(self, count: int) -> int:
        replay = self._replay or ()
        at = len(self.decisions)
        return self._note(min(replay[at], count - 1) if at < len(replay) else 0)
