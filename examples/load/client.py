"""The load generator, a process of its own: ``python -m writebehind.examples.load.client PORT CONNECTIONS RESULT``.

Likes articles and reads them, over connections that are kept, until SIGTERM or the end of its standard input; then
waits for the answers that are due and writes what it knows to the file RESULT. A like that was not answered with 200 is
an error and not counted as acknowledged.
"""

import asyncio
import contextlib
import json
import random
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

__all__ = ["ARTICLES", "Client"]

ARTICLES = 200
READS_SHARE, FRONTS_SHARE = 0.2, 0.02
ERRORS_SHOWN = 5
LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


class Client:
    """What many connections do together, and what they were told.

    Args:
        port: of the service, on this machine.
        stopping: set when the load is to end.

    Attributes:
        acknowledged: likes that were answered with 200, by article.
        sent: likes that were sent, by article.
        milliseconds: how long each request took.
        errors: what went wrong; anything but 200 with an answer that can be true.
    """

    def __init__(self, port: int, stopping: asyncio.Event) -> None:
        self._port = port
        self._stopping = stopping
        self.acknowledged: Counter[int] = Counter()
        self.sent: Counter[int] = Counter()
        self.milliseconds: list[float] = []
        self.errors: list[str] = []

    async def publish(self) -> None:
        """Write each article, and read it: so it is whole in Redis before anybody likes it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        with contextlib.closing(writer):
            for number in range(1, ARTICLES + 1):
                await self._request(reader, writer, f"PUT /articles/{number}?title=Article+{number}")
            for number in range(1, ARTICLES + 1):
                await self._request(reader, writer, f"GET /articles/{number}")

    async def visit(self, seed: int) -> None:
        """Like and read over one connection until it is time to stop; a connection that breaks is not made again."""
        chance = random.Random(seed)
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            with contextlib.closing(writer):
                while not self._stopping.is_set():
                    await self._act(reader, writer, chance)
        except (OSError, EOFError) as error:
            self.errors.append(f"a connection broke: {error!r}")

    async def _act(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chance: random.Random) -> None:
        number = 1 + int(ARTICLES * chance.random() ** 2)  # some are liked more than others
        share = chance.random()
        if share < FRONTS_SHARE:
            await self._request(reader, writer, "GET /front")
        elif share < READS_SHARE:
            await self._read(reader, writer, number)
        else:
            await self._like(reader, writer, number)

    async def _like(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.sent[number] += 1
        if await self._request(reader, writer, f"POST /articles/{number}/likes") is not None:
            self.acknowledged[number] += 1

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        least = self.acknowledged[number]
        body = await self._request(reader, writer, f"GET /articles/{number}")
        if body is not None:
            likes = json.loads(body)["likes"]
            if not least <= likes <= self.sent[number]:
                self.errors.append(f"article {number} had {likes} likes, not {least} to {self.sent[number]}")

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: str) -> bytes | None:
        """Send a request without a body; return the answer's, or None where the answer is not 200."""
        begun = time.perf_counter()
        writer.write(f"{request} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        self.milliseconds.append(1000 * (time.perf_counter() - begun))
        if head.split(b" ", 2)[1] == b"200":
            return body
        self.errors.append(f"{request}: {head.splitlines()[0].decode()} {body.decode(errors='replace')[:200]}")
        return None

    def result(self, seconds: float) -> dict[str, Any]:
        """Return what it knows, as JSON takes it."""
        took = sorted(self.milliseconds)
        return {
            "seconds": seconds,
            "requests": len(took),
            "milliseconds_median": took[len(took) // 2],
            "milliseconds_99th": took[len(took) * 99 // 100],
            "errors": len(self.errors),
            "first_errors": self.errors[:ERRORS_SHOWN],
            "acknowledged": self.acknowledged,
        }


async def main(port: int, connections: int) -> dict[str, Any]:
    """Put the service under load until it is time to stop; return what is known then."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    loop.add_reader(sys.stdin.fileno(), stopping.set)  # nothing is ever written there: it has ended
    client = Client(port, stopping)
    await client.publish()
    begun = time.monotonic()
    await asyncio.gather(*(client.visit(seed) for seed in range(connections)))
    return client.result(time.monotonic() - begun)


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(json.dumps(asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))))
