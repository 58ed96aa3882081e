"""A process with many threads that read one key of a cache at once; run as a program by test_cache.py.

Arguments: Redis URL, namespace, threads, seconds that a load takes. It says "ready", begins when it is told anything on
its standard input, counts its loads in a key of Redis, and prints what the threads were given.
"""

import json
import sys
import threading
import time
from typing import Any

import redis

from writebehind.engine import WriteBehind


def main() -> None:
    """Read."""
    url, namespace, threads, load_seconds = sys.argv[1:]
    client: Any = redis.Redis.from_url(url)
    engine = WriteBehind(redis=url, database="sqlite://", tables=[], namespace=namespace)
    cache = engine.cache("profile", ttl_seconds=60)
    found: list[int] = []

    def load() -> int:
        number = int(client.incr(f"loads-of-{namespace}"))
        time.sleep(float(load_seconds))
        return number

    def read() -> None:
        barrier.wait()
        found.append(cache.get_or_load("cold", load))

    barrier = threading.Barrier(int(threads) + 1)
    readers = [threading.Thread(target=read) for _ in range(int(threads))]
    for reader in readers:
        reader.start()
    print("ready", flush=True)
    sys.stdin.readline()
    barrier.wait()
    for reader in readers:
        reader.join()
    print(json.dumps(found), flush=True)
    engine.close()
    client.close()


if __name__ == "__main__":
    main()
