"""A TCP proxy inside the drill's process, which can do to a connection what a network does.

Mishaps are injected into requests: the next chunk from a client that contains the given bytes suffers one, once. A
connection suffers one at the most, because the bytes that arrive are always the first ones of those that were sent.
Beside that the whole line can be slow, cut, or half open: connected, with nothing arriving any more.
"""

import contextlib
import dataclasses
import enum
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

__all__ = ["Mishap", "Proxy"]

CHUNK_BYTES = 1 << 20
DEADLINE_SECONDS = 10.0


class Mishap(enum.Enum):
    """What happens to a request."""

    CUT_BEFORE = "the connection breaks before the request reaches the server"
    CUT_AFTER = "the server answers, but the connection breaks before the client hears it"
    CUT_INSIDE = "the connection breaks in the middle of the reply"
    STALL = "the server answers, but nothing ever reaches the client"
    DELAY = "the request reaches the server only when release() is called"


@dataclasses.dataclass
class _Injection:
    """A mishap to come."""

    mishap: Mishap
    match: bytes
    skip: int


class Proxy:
    """Forwards connections to a server.

    Args:
        port: the server's port.
        host: the server's address.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._target = (host, port)
        self._lock = threading.Lock()
        self._injected: deque[_Injection] = deque()
        self._delayed: list[_Session] = []
        self._suffered: list[Mishap] = []
        self._sessions: list[_Session] = []
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self.latency_seconds = 0.0
        """How long every chunk is held back, in both directions; may be changed at any time."""
        self.port = 0
        self.accept()

    def inject(self, mishap: Mishap, match: bytes, *, skip: int = 0) -> None:
        """Have a request that contains ``match`` suffer a mishap, after ``skip`` of them that pass; they queue up."""
        with self._lock:
            self._injected.append(_Injection(mishap, match, skip))

    def withdraw(self) -> None:
        """Forget the mishaps that have not happened."""
        with self._lock:
            self._injected.clear()

    def suffered(self, mishap: Mishap) -> int:
        """Count how often a mishap has happened."""
        with self._lock:
            return self._suffered.count(mishap)

    def wait_for(self, mishap: Mishap, times: int = 1) -> None:
        """Wait until a mishap has happened so often."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self.suffered(mishap) < times:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{mishap} has not happened {times} times")
            time.sleep(0.002)

    def release(self) -> list[bytes]:
        """Deliver delayed requests in the order of their arrival; give the server's replies."""
        with self._lock:
            delayed, self._delayed = self._delayed, []
        return [session.deliver() for session in delayed]

    def half_open(self) -> int:
        """Let nothing more through on the connections that are open now, and say so to nobody; count them."""
        sessions = self._open_sessions()
        for session in sessions:
            session.half_open = True
        return len(sessions)

    def break_half_open(self) -> None:
        """Break the half-open connections, as a keepalive or a firewall does in the end."""
        for session in self._open_sessions():
            if session.half_open:
                session.close()

    def refuse(self) -> None:
        """Refuse new connections and break the open ones, except those of delayed requests."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            sessions = [session for session in self._sessions if session not in self._delayed]
        for session in sessions:
            session.close()

    def accept(self) -> None:
        """Accept connections, on the same port as before."""
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
            self.port = self._listener.getsockname()[1]
            self._start(self._serve, self._listener)

    def retarget(self, port: int, host: str = "127.0.0.1") -> None:
        """Lead to another server, as an address does after a failover; open connections break."""
        self.refuse()
        self._target = (host, port)
        self.accept()

    def close(self) -> None:
        """End everything."""
        self.refuse()
        with self._lock:
            sessions, threads = list(self._sessions), list(self._threads)
        for session in sessions:
            session.close()
        for thread in threads:
            thread.join(DEADLINE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()

    def _open_sessions(self) -> "list[_Session]":
        with self._lock:
            return [session for session in self._sessions if not session.ended]

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True, name="proxy")
        thread.start()
        with self._lock:
            self._threads = [known for known in self._threads if known.is_alive()]
            self._threads.append(thread)

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target, timeout=DEADLINE_SECONDS)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            session = _Session(self, client, server)
            with self._lock:
                self._sessions = [known for known in self._sessions if not known.ended or known in self._delayed]
                self._sessions.append(session)
            if self._listener is not listener:
                session.close()  # refused while it was being made
            self._start(session.pump_requests)
            self._start(session.pump_replies)

    def mishap_for(self, session: "_Session", request: bytes) -> Mishap | None:
        """Tell which mishap a request suffers."""
        if not self._injected:
            return None
        with self._lock:
            if not self._injected or self._injected[0].match not in request:
                return None
            if self._injected[0].skip:
                self._injected[0].skip -= 1
                return None
            mishap = self._injected.popleft().mishap
            self._suffered.append(mishap)
            if mishap is Mishap.DELAY:
                self._delayed.append(session)
            return mishap


class _Session:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._reply_mishap: Mishap | None = None
        self._delayed = b""
        self._replied = threading.Condition()
        self._reply = b""
        self.ended = False
        self.half_open = False

    def pump_requests(self) -> None:
        """Forward what the client sends."""
        with contextlib.suppress(OSError):
            while request := self._client.recv(CHUNK_BYTES):
                if self._held_back():
                    continue
                # One for a connection: half of a later reply after one that has vanished would pass for that one.
                match self._reply_mishap or self._proxy.mishap_for(self, request):
                    case Mishap.CUT_BEFORE:
                        break
                    case Mishap.DELAY:
                        self._delayed = request
                        return
                    case mishap:
                        self._reply_mishap = mishap
                self._server.sendall(request)
        self.close()

    def pump_replies(self) -> None:
        """Forward what the server answers."""
        with contextlib.suppress(OSError):
            while reply := self._server.recv(CHUNK_BYTES):
                if self._held_back():
                    continue
                with self._replied:
                    self._reply += reply if self._delayed else b""
                    self._replied.notify_all()
                if self._reply_mishap is Mishap.CUT_INSIDE:
                    self._client.sendall(reply[: max(1, len(reply) // 2)])
                if self._reply_mishap in {Mishap.CUT_INSIDE, Mishap.CUT_AFTER}:
                    break
                if self._reply_mishap is not Mishap.STALL and not self._delayed:
                    self._client.sendall(reply)
        self.close()

    def deliver(self) -> bytes:
        """Send the delayed request; give what the server answers."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not self._delayed and time.monotonic() < deadline:
            time.sleep(0.001)
        with self._replied:
            self._reply = b""  # requests before it on this connection may have been answered since
        self._server.sendall(self._delayed)
        with self._replied:
            self._replied.wait_for(lambda: self._reply or self.ended, DEADLINE_SECONDS)
        self.close()
        return self._reply

    def close(self) -> None:
        """Break both halves."""
        with self._replied:
            self.ended = True
            self._replied.notify_all()
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _held_back(self) -> bool:
        """Wait as long as the line is slow; tell whether the chunk is to vanish."""
        if self._proxy.latency_seconds:
            time.sleep(self._proxy.latency_seconds)
        return self.half_open
