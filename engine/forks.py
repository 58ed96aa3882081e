"""After a fork the child's engines become clients of their own."""

import os
import weakref
from typing import Protocol

__all__ = ["told_of_forks"]


class Forked(Protocol):
    """What has connections, threads or an identity that a child must not share with its parent."""

    def after_fork(self) -> None:
        """Become a client of its own, in a forked child; called by the interpreter."""


_live: "weakref.WeakSet[Forked]" = weakref.WeakSet()


def told_of_forks(engine: Forked) -> None:
    """Have an engine told of each fork, in the child, for as long as it lives."""
    _live.add(engine)


def _after_fork() -> None:
    for engine in list(_live):
        engine.after_fork()


os.register_at_fork(after_in_child=_after_fork)
