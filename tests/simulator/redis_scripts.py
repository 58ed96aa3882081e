"""The product's Lua scripts, run by a real Lua 5.1 against the model's commands.

A full Redis refuses only a script's first write, and only if that may take memory: whatever comes after it is done.
"""

from collections.abc import Callable
from typing import Any

from lupa import lua51  # type: ignore[import-untyped,unused-ignore]

from simulator.redis_commands import COMMANDS, Kind
from simulator.redis_keyspace import Refusal, Server, Status, Unmodelled

__all__ = ["OOM", "Scripts", "grows"]

OOM = "OOM command not allowed when used memory > 'maxmemory'."

Call = Callable[..., Any]


def grows(name: bytes, arguments: Any) -> bool:
    """Tell whether a full Redis refuses a command."""
    if name == b"XGROUP":
        return bool(arguments[0].upper() in {b"CREATE", b"SETID"})
    return Kind.GROWS in COMMANDS[name].kind


class Scripts:
    """Compiled scripts; the same for all histories.

    Args:
        texts: the scripts' texts by their SHA-1.

    Attributes:
        texts: likewise.
        edits: by a script's text, what is run in its place.
    """

    def __init__(self, texts: dict[bytes, bytes]) -> None:
        self._lua: Any = lua51.LuaRuntime(encoding=None, register_eval=False, unpack_returned_tuples=False)
        self.texts = dict(texts)
        self.edits: dict[bytes, bytes] = {}
        self._functions: dict[bytes, Any] = {}

    def run(self, text: bytes, server: Server, keys: list[bytes], arguments: list[bytes], *, full: bool) -> Any:
        """Run a script.

        Raises:
            Refusal: it replies with an error; what it wrote before stays.
        """
        text = self.edits.get(text, text)
        function = self._functions.get(text)
        if function is None:
            function = self._functions[text] = self._lua.execute(
                b"return function(KEYS, ARGV, redis) " + text + b"\nend"
            )
        table = self._lua.table_from
        calls = table(
            {
                b"call": self._caller(server, full=full),
                b"error_reply": lambda message: table({b"err": message}),
                b"status_reply": lambda message: table({b"ok": message}),
            }
        )
        return self._reply(function(table(keys), table(arguments), calls))

    def _caller(self, server: Server, *, full: bool) -> Call:
        wrote = False

        def call(name: bytes, *given: Any) -> Any:
            nonlocal wrote
            command = COMMANDS.get(name.upper())
            if command is None:
                raise Unmodelled(name)
            arguments = [_text(value) for value in given]
            if command.kind or name == b"XGROUP":
                if full and not wrote and grows(name.upper(), arguments):
                    raise Refusal(OOM)
                wrote = True
            return self._value(command.run(server, arguments))

        return call

    def _value(self, reply: Any) -> Any:
        if reply is None:
            return False
        if isinstance(reply, list):
            return self._lua.table_from([self._value(each) for each in reply])
        return self._lua.table_from({b"ok": bytes(reply)}) if isinstance(reply, Status) else reply

    def _reply(self, value: Any) -> Any:
        if lua51.lua_type(value) != "table":
            return int(value) if isinstance(value, float) else None if value is False else 1 if value is True else value
        if value[b"err"] is not None:
            raise Refusal(value[b"err"].decode())
        if value[b"ok"] is not None:
            return Status(value[b"ok"])
        found = []
        for index in range(1, len(value) + 1):
            if value[index] is None:
                break
            found.append(self._reply(value[index]))
        return found


def _text(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    return b"%d" % value if value == int(value) else repr(float(value)).encode()
