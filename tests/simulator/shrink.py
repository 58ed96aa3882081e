"""Making a history that violates something shorter, by its decisions.

0 is the plain choice everywhere, so parts of the list are set to 0, the end is cut off, parts are left out and numbers
made smaller, for as long as the same rule is violated.
"""

from collections.abc import Callable, Iterator, Sequence

from simulator.history import History

__all__ = ["cost", "shrink"]

LEFT_OUT_MIN = 4
"""Parts shorter than this are not left out: what follows them would only mean something else."""

Run = Callable[[Sequence[int]], History]


def cost(decisions: Sequence[int]) -> tuple[int, int, int]:
    """Return how much is decided otherwise than plainly: the less, the easier to read."""
    chosen = [value for value in decisions if value]
    return len(chosen), sum(chosen), len(decisions)


def shrink(found: History, run: Run, runs_max: int = 2000) -> History:
    """Return a simpler history with a violation of the same rule.

    Args:
        found: one with a violation.
        run: gives the history of a list of decisions.
        runs_max: how many to try at the most.
    """
    if found.violation is None:
        return found
    search = _Search(found, run, found.violation.rule, runs_max)
    while search.improve():
        pass
    return search.best


class _Search:
    def __init__(self, found: History, run: Run, rule: str, runs_max: int) -> None:
        self.best = found
        self._run = run
        self._rule = rule
        self._left = runs_max

    def improve(self) -> bool:
        """Try everything simpler once; tell whether something was."""
        improved = False
        for attempt in _simpler(self._current):
            if self._left <= 0:
                return False
            if cost(attempt) < cost(self._current()):
                self._left -= 1
                improved = self._try(attempt) or improved
        return improved

    def _current(self) -> list[int]:
        return _without_end(self.best.decisions)

    def _try(self, attempt: list[int]) -> bool:
        tried = self._run(attempt)
        if tried.violation is None or tried.violation.rule != self._rule:
            return False
        tried.decisions = _without_end(attempt)
        self.best = tried
        return True


def _without_end(decisions: Sequence[int]) -> list[int]:
    """Leave out the 0s at the end, which go without saying."""
    end = len(decisions)
    while end and not decisions[end - 1]:
        end -= 1
    return list(decisions[:end])


def _simpler(current: Callable[[], list[int]]) -> Iterator[list[int]]:
    """Give attempts at something simpler than the current decisions, which change with each success."""
    size = len(current())
    while size:
        at = 0
        while at < len(current()):
            decisions = current()
            if any(decisions[at : at + size]):
                yield [*decisions[:at], *[0] * len(decisions[at : at + size]), *decisions[at + size :]]
            at += size
        at = 0
        while size >= LEFT_OUT_MIN and at < len(current()):
            decisions = current()
            yield [*decisions[:at], *decisions[at + size :]]
            at += size
        size //= 2
    for at in range(len(current())):
        decisions = current()
        if at < len(decisions) and decisions[at] > 1:
            for smaller in (1, decisions[at] // 2, decisions[at] - 1):
                if smaller < current()[at]:
                    yield [*decisions[:at], smaller, *decisions[at + 1 :]]
