"""What the proxy does to whole lines; most that it does to single requests, the tests of lost replies show."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from writebehind.drills.proxy import Mishap, Proxy


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends everything back."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def answer(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(1000):
                connection.sendall(data)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=answer, args=(connection,)))
            threads[-1].start()

    serving = threading.Thread(target=serve)
    serving.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    serving.join()
    for thread in threads:
        thread.join()


def connect(proxy: Proxy) -> socket.socket:
    """Connect through the proxy."""
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def ask(connection: socket.socket, words: bytes = b"hello") -> bytes:
    """Send something and return what comes back."""
    connection.sendall(words)
    return connection.recv(1000)


def test_a_half_open_connection_says_nothing(echo: int) -> None:
    """It stays open and carries nothing; a new one works; in the end it breaks."""
    with Proxy(echo) as proxy, connect(proxy) as old:
        assert ask(old) == b"hello"
        assert proxy.half_open() == 1
        old.settimeout(0.3)
        with pytest.raises(TimeoutError):
            ask(old)
        with connect(proxy) as new:
            assert ask(new) == b"hello"
            old.settimeout(5)
            proxy.break_half_open()
            assert old.recv(1000) == b""
            assert ask(new) == b"hello"


def test_nothing_arrives_after_what_has_vanished(echo: int) -> None:
    """A connection suffers one mishap at the most: a later answer would be taken for the one that is missing."""
    with Proxy(echo) as proxy:
        proxy.inject(Mishap.STALL, b"hello")
        proxy.inject(Mishap.CUT_INSIDE, b"hello")
        with connect(proxy) as stalled:
            stalled.sendall(b"hello")
            proxy.wait_for(Mishap.STALL)
            stalled.settimeout(0.3)
            with pytest.raises(TimeoutError):
                ask(stalled)
        with connect(proxy) as new:
            assert ask(new, b"hello hello") == b"hello"


def test_a_slow_line_delays_both_ways(echo: int) -> None:
    """A question and its answer take twice the latency."""
    with Proxy(echo) as proxy, connect(proxy) as connection:
        proxy.latency_seconds = 0.1
        begun = time.monotonic()
        assert ask(connection) == b"hello"
        assert time.monotonic() - begun >= 0.2
        proxy.latency_seconds = 0.0
        assert ask(connection) == b"hello"


def test_a_cut_line_breaks_and_comes_back(echo: int) -> None:
    """Open connections break, new ones are refused, until it accepts again on the same port."""
    with Proxy(echo) as proxy, connect(proxy) as connection:
        assert ask(connection) == b"hello"
        port = proxy.port
        proxy.refuse()
        assert connection.recv(1000) == b""
        with pytest.raises(OSError, match="refused"):
            connect(proxy)
        proxy.accept()
        assert proxy.port == port
        with connect(proxy) as new:
            assert ask(new) == b"hello"
