"""A flusher that freezes itself once, right before a given effect; run as a program by test_zombies.py.

Arguments: Redis URL, database URL, namespace, name of the effect, lease TTL in seconds.
"""

import os
import signal
import sys
import threading

import sqlalchemy as sa

from writebehind.engine import WriteBehind
from writebehind.flushers import Flusher, FlusherSettings
from writebehind.flushers.flusher import Effect
from writebehind.flushers.flusher import Reply as FlushReply

COUNTERS = sa.Table(
    "counters", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", sa.BigInteger, default=0)
)
PARTITIONS = 2


class Frozen(Flusher):
    """Sends itself SIGSTOP right before the first effect of the given name."""

    freeze_before: str | None = None

    def perform(self, effect: Effect) -> FlushReply:
        """Do an effect."""
        if type(effect).__name__ == self.freeze_before:
            self.freeze_before = None
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().perform(effect)


def main() -> None:
    """Flush until SIGTERM."""
    redis_url, database_url, namespace, effect, ttl = sys.argv[1:]
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    engine = WriteBehind(
        redis=redis_url, database=database_url, tables=[COUNTERS], namespace=namespace, partitions=PARTITIONS
    )
    flusher = Frozen(engine, FlusherSettings(lease_ttl_seconds=float(ttl), linger_seconds=0), stopping=stopping)
    flusher.freeze_before = effect
    flusher.run()
    engine.close()


if __name__ == "__main__":
    main()
