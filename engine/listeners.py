"""Telling the application what it asked to be told."""

import logging
from collections.abc import Callable
from typing import TypeVar

from writebehind.engine.core.letters import DeadLetter
from writebehind.engine.core.retention import DataLoss

__all__ = ["Listeners"]

logger = logging.getLogger(__name__)

Told = TypeVar("Told")


class Listeners:
    """Functions of the application. An error of theirs must not fail the write, or stop the flusher, that calls them.

    Args:
        on_data_loss: called with each loss, or None.
        on_dead_letter: called with each dead letter, or None.
    """

    __slots__ = ("_on_data_loss", "_on_dead_letter")

    def __init__(
        self,
        on_data_loss: Callable[[DataLoss], None] | None,
        on_dead_letter: Callable[[DeadLetter], None] | None,
    ) -> None:
        self._on_data_loss = on_data_loss
        self._on_dead_letter = on_dead_letter

    def loss(self, loss: DataLoss) -> None:
        """Call ``on_data_loss``; used by whoever finds a loss."""
        _call("on_data_loss", self._on_data_loss, loss)

    def dead_letter(self, letter: DeadLetter) -> None:
        """Call ``on_dead_letter``; used by the flusher that has set an entry aside."""
        _call("on_dead_letter", self._on_dead_letter, letter)


def _call(name: str, listener: Callable[[Told], None] | None, told: Told) -> None:
    if listener is not None:
        try:
            listener(told)
        except Exception:
            logger.exception("%s raised", name)
