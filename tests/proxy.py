"""A TCP proxy inside the test's process, which can do to a connection what a network does.

Faults are injected into requests: the next chunk from a client that contains the given bytes suffers them, once.
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

CHUNK_BYTES = 1 << 20
DEADLINE_SECONDS = 10.0


class Fault(enum.Enum):
    """What happens to a request."""

    CUT_BEFORE = "the connection breaks before the request reaches the server"
    CUT_AFTER = "the server answers, but the connection breaks before the client hears it"
    CUT_INSIDE = "the connection breaks in the middle of the reply"
    STALL = "the server answers, but nothing ever reaches the client"
    DELAY = "the request reaches the server only when release() is called"


@dataclasses.dataclass
class _Injection:
    """A fault to come."""

    fault: Fault
    match: bytes
    skip: int


class Proxy:
    """Forwards connections to a server on this machine.

    Args:
        port: the server's port.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._lock = threading.Lock()
        self._injected: deque[_Injection] = deque()
        self._delayed: list[_Session] = []
        self._suffered: list[Fault] = []
        self._sessions: list[_Session] = []
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self.port = 0
        self.accept()

    def inject(self, fault: Fault, match: bytes, *, skip: int = 0) -> None:
        """Have a request that contains ``match`` suffer a fault, after ``skip`` of them that pass; faults queue up."""
        with self._lock:
            self._injected.append(_Injection(fault, match, skip))

    def suffered(self, fault: Fault) -> int:
        """Count how often a fault has happened."""
        with self._lock:
            return self._suffered.count(fault)

    def wait_for(self, fault: Fault, times: int = 1) -> None:
        """Wait until a fault has happened so often."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self.suffered(fault) < times:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{fault} has not happened {times} times")
            time.sleep(0.002)

    def release(self) -> list[bytes]:
        """Deliver delayed requests in the order of their arrival; give the server's replies."""
        with self._lock:
            delayed, self._delayed = self._delayed, []
        return [session.deliver() for session in delayed]

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

    def retarget(self, port: int) -> None:
        """Lead to another server, as an address does after a failover; open connections break."""
        self.refuse()
        self._target = ("127.0.0.1", port)
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

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True, name="proxy")
        with self._lock:
            self._threads.append(thread)
        thread.start()

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
                self._sessions.append(session)
            self._start(session.pump_requests)
            self._start(session.pump_replies)

    def fault_for(self, session: "_Session", request: bytes) -> Fault | None:
        """Tell which fault a request suffers."""
        with self._lock:
            if not self._injected or self._injected[0].match not in request:
                return None
            if self._injected[0].skip:
                self._injected[0].skip -= 1
                return None
            fault = self._injected.popleft().fault
            self._suffered.append(fault)
            if fault is Fault.DELAY:
                self._delayed.append(session)
            return fault


class _Session:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._reply_fault: Fault | None = None
        self._delayed = b""
        self._replied = threading.Condition()
        self._reply = b""
        self._ended = False

    def pump_requests(self) -> None:
        """Forward what the client sends."""
        with contextlib.suppress(OSError):
            while request := self._client.recv(CHUNK_BYTES):
                match self._proxy.fault_for(self, request):
                    case Fault.CUT_BEFORE:
                        break
                    case Fault.DELAY:
                        self._delayed = request
                        return
                    case fault:
                        self._reply_fault = fault or self._reply_fault
                self._server.sendall(request)
        self.close()

    def pump_replies(self) -> None:
        """Forward what the server answers."""
        with contextlib.suppress(OSError):
            while reply := self._server.recv(CHUNK_BYTES):
                with self._replied:
                    self._reply += reply if self._delayed else b""
                    self._replied.notify_all()
                if self._reply_fault is Fault.CUT_INSIDE:
                    self._client.sendall(reply[: max(1, len(reply) // 2)])
                if self._reply_fault in {Fault.CUT_INSIDE, Fault.CUT_AFTER}:
                    break
                if self._reply_fault is not Fault.STALL and not self._delayed:
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
            self._replied.wait_for(lambda: self._reply or self._ended, DEADLINE_SECONDS)
        self.close()
        return self._reply

    def close(self) -> None:
        """Break both halves."""
        with self._replied:
            self._ended = True
            self._replied.notify_all()
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
