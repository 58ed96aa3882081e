"""The load generator notices what a service does wrong."""

import asyncio
from collections.abc import Callable

import pytest

from writebehind.examples.load.client import Client

Answer = Callable[[str], str]
REQUESTS = 50


def after(answer: Answer) -> Client:
    """Let a client visit a service that answers as it is told to, or closes the connection where it is told nothing."""

    async def visit() -> Client:
        stopping = asyncio.Event()
        served = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal served
            try:
                while request := (await reader.readuntil(b"\r\n\r\n")).decode():
                    served += 1
                    if served == REQUESTS:
                        stopping.set()
                    told = answer(request.split(" HTTP", 1)[0])
                    if not told:
                        break
                    status, _, body = told.partition(" ")
                    writer.write(f"HTTP/1.1 {status} -\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
            except asyncio.IncompleteReadError:
                pass  # the client has ended
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        client = Client(server.sockets[0].getsockname()[1], stopping)
        async with server:
            await client.visit(seed=1)
        return client

    return asyncio.run(asyncio.wait_for(visit(), 30))


def test_a_service_that_is_right() -> None:
    """Nothing is wrong, and every like is counted."""
    likes: dict[str, int] = {}

    def answer(request: str) -> str:
        method, path = request.split(" ")
        article = path.removesuffix("/likes")
        likes[article] = likes.get(article, 0) + (method == "POST")
        return f'200 {{"likes": {likes[article]}}}'

    client = after(answer)
    assert client.errors == []
    assert sum(client.acknowledged.values()) == sum(likes.values()) > 0
    assert client.result(1.0)["requests"] == REQUESTS


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (lambda _: '200 {"likes": -1}', " had -1 likes, not "),
        (lambda _: '200 {"likes": 1000}', " had 1000 likes, not "),
        (
            lambda request: "503 away" if request.startswith("POST") else '200 {"likes": 0}',
            "/likes: HTTP/1.1 503 - away",
        ),
        (lambda _: "", "a connection broke: "),
    ],
    ids=["too few", "too many", "refused", "broken"],
)
def test_what_is_wrong_is_an_error(answer: Answer, complaint: str) -> None:
    """Reads that cannot be true, refusals, broken connections; a like that was refused does not count."""
    client = after(answer)
    assert any(complaint in error for error in client.errors)
    if complaint.endswith("away") or "broke" in complaint:
        assert not client.acknowledged
