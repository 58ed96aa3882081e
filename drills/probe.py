"""The probe: whether a write to each partition comes through to SQL, and when."""

import itertools
import time

from writebehind.drills.tables import probes
from writebehind.engine import Durability, DurabilityTimeout, Receipt, TransientError, WriteBehind, WriteBehindError

__all__ = ["Probe"]

WAIT_SECONDS = 1.0
PAUSE_SECONDS = 0.02


class Probe:
    """One record in each partition, written again and again.

    Args:
        app: the engine to write with.
    """

    def __init__(self, app: WriteBehind) -> None:
        self._app = app
        self._beats = itertools.count(1)
        self.keys = _one_key_each(app)

    def beat(self, seconds: float) -> None:
        """Write to every partition and wait until SQL has it; what fails meanwhile is tried again.

        Raises:
            TransientError: not in so many seconds; the message names the partitions and the last error.
        """
        deadline = time.monotonic() + seconds
        waiting: dict[int, Receipt | None] = dict.fromkeys(self.keys)
        last: WriteBehindError | None = None
        while waiting:
            for number in list(waiting):
                try:
                    receipt = waiting[number] or self._write(number)
                    waiting[number] = receipt
                    receipt.wait(Durability.PERSISTED, WAIT_SECONDS)
                    del waiting[number]
                except DurabilityTimeout as error:
                    last = error
                except WriteBehindError as error:
                    last = error
                    waiting[number] = None
                    time.sleep(PAUSE_SECONDS)
                if time.monotonic() > deadline:
                    raise TransientError(
                        f"no write came through to SQL in {seconds:g} s on partitions {sorted(waiting)}: {last}",
                        "look at the flushers' logs",
                    )

    def _write(self, partition: int) -> Receipt:
        return self._app.put(probes, {"id": self.keys[partition], "beat": next(self._beats)})


def _one_key_each(app: WriteBehind) -> dict[int, int]:
    """Find a key for every partition."""
    keys: dict[int, int] = {}
    for key in itertools.count():
        keys.setdefault(app.composer.delete(app.plan_of(probes), key).partition, key)
        if len(keys) == app.keys.partitions:
            return keys
    raise AssertionError("unreachable")
