"""Asking SQL what it has applied, on the way of writes that go on without an answer."""

import threading
import time

from writebehind.engine.adapters.looks import Look, Looks, unanswered
from writebehind.engine.adapters.rows import Applied, Rows
from writebehind.engine.errors import DatabaseUnavailable

__all__ = ["Asking"]

ASK_SECONDS_MAX = 2.0
"""How long a write waits for SQL where Redis has lost something that only SQL can tell of."""

SILENT_SECONDS = 5.0
"""How long SQL is not asked again after it left a question unanswered: a write may have one for each partition.

Where it answers that question after all, it is well again; where that fails, it is not.
"""


class Asking:
    """What SQL has applied, within a short time; safe to share between threads.

    Args:
        rows: the database.
        looks: asks it.
        namespace: its name.
    """

    def __init__(self, rows: Rows, looks: Looks, namespace: str) -> None:
        self._rows = rows
        self._looks = looks
        self._namespace = namespace
        self._lock = threading.Lock()
        self._silent_until = 0.0
        self._unanswered: Look[dict[int, Applied]] | None = None

    def applied(self, partition: int) -> Applied:
        """Return what SQL has applied of a partition.

        A database that does not answer in time is away, and stays so for a while, or until it answers.

        Raises:
            DatabaseUnavailable: it is.
        """
        with self._lock:
            silent = self._unanswered
            if silent is not None and not silent.succeeded() and time.monotonic() < self._silent_until:
                raise unanswered()
        look = self._looks.begin(self._rows.applied_of, self._namespace, [partition])
        if look.answered(ASK_SECONDS_MAX):
            return look.result()[partition]
        with self._lock:
            # It is asked further, for its answer ends the silence; the one before it is not.
            before, self._unanswered = self._unanswered, look
            self._silent_until = time.monotonic() + SILENT_SECONDS
        if before is not None:
            before.give_up()
        raise unanswered()

    def answers(self, partition: int) -> bool:
        """Tell whether SQL can be asked."""
        try:
            self.applied(partition)
        except DatabaseUnavailable:
            return False
        return True
