"""The terminal sessions in ``docs/sessions`` are what really happens.

``RECORD_SESSIONS=1 pytest tests/acceptance/test_sessions.py`` writes them anew: a line that begins with ``$ `` is a
command, what follows is its output; ``cat FILE`` makes the file, and a command that ends with ``&`` runs until the end.
"""

import os
import re
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

SESSIONS = sorted(Path(__file__).parents[2].joinpath("docs", "sessions").glob("*.txt"))
SECONDS_MAX = 60.0
LETTER = re.compile(r"(?<![\w-])\d{1,4}-\d+\b")
VARYING = {
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d": "TIME",
    r"\b[0-9a-f]{22,}(\.\d+)?\b": "MUTATION",
    r"\b\d{12,}-": "EPOCH-",
    r"\S+:\d+:[0-9a-f]{8}\b": "HOLDER",
    r"\b\d+\.\d\b": "SECONDS",
    LETTER.pattern: "LETTER",
    r"[ ]+\n": "\n",
    r"[ ]+": " ",
}


def steps(session: str) -> list[tuple[str, str]]:
    """Return commands and what they print."""
    parts = re.split(r"^\$ (.*)\n", session, flags=re.MULTILINE)
    assert parts[0] == ""
    return list(zip(parts[1::2], parts[2::2], strict=True))


def told(commands: list[tuple[str, str]]) -> str:
    """Return a session as text."""
    return "".join(f"$ {command}\n{output}" for command, output in commands)


def normal(text: str) -> str:
    """Return a session without what is different each time."""
    for pattern, name in VARYING.items():
        text = re.sub(pattern, name, text)
    return text


class Letters:
    """Dead letters have other numbers each time: those of the record stand for those that are there now."""

    def __init__(self) -> None:
        self._now: dict[str, str] = {}

    def meet(self, recorded: str, printed: str) -> None:
        """Learn which is which from what a command prints."""
        was, now = LETTER.findall(recorded), LETTER.findall(printed)
        if len(was) == len(now):
            self._now |= dict(zip(was, now, strict=True))

    def now(self, command: str) -> str:
        """Return a command about the letters that are there."""
        return LETTER.sub(lambda found: self._now.get(found[0], found[0]), command)


class Terminal:
    """A directory, and commands that run in it."""

    def __init__(self, directory: Path, redis_url: str, namespace: str, stack: ExitStack) -> None:
        self._directory = directory
        self._environment = {**os.environ, "REDIS_URL": redis_url, "PYTHONPATH": str(directory)}
        self._namespace = namespace
        self._stack = stack

    def run(self, command: str, recorded: str) -> str:
        """Do one command; return what it prints."""
        words = shlex.split(command.removesuffix("&"))
        if words[0] == "cat":
            made = recorded.replace('namespace="shop"', f'namespace="{self._namespace}"')
            (self._directory / words[1]).write_text(made)
            return recorded
        if words[0] == "sqlite3":
            with closing(sqlite3.connect(self._directory / words[1])) as connection:
                rows = connection.execute(words[2]).fetchall()
            return "".join("|".join(map(str, row)) + "\n" for row in rows)
        start = {"writebehind": ["-m", "writebehind.flushers.cli"], "python": []}[words[0]]
        arguments = [sys.executable, *start, *words[1:]]
        if command.endswith("&"):
            log = arguments.pop()
            assert arguments.pop() == "2>"
            self._stack.enter_context(self._background(arguments, self._directory / log))
            return ""
        done = subprocess.run(
            arguments, cwd=self._directory, env=self._environment, capture_output=True, text=True,
            timeout=SECONDS_MAX, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout.replace(self._namespace, "shop")

    @contextmanager
    def _background(self, arguments: list[str], log: Path) -> Iterator[None]:
        with log.open("w") as stderr:
            process = subprocess.Popen(arguments, cwd=self._directory, env=self._environment, stderr=stderr)
        try:
            yield
        finally:
            process.terminate()
            assert process.wait(SECONDS_MAX) == 0, log.read_text()


@pytest.mark.parametrize("path", SESSIONS, ids=[path.stem for path in SESSIONS])
def test_the_session_is_what_happens(path: Path, redis_url: str, namespace: str, tmp_path: Path) -> None:
    """Each command prints what is recorded, but for times, names and numbers that differ each time."""
    recorded = steps(path.read_text())
    with ExitStack() as stack:
        terminal, letters = Terminal(tmp_path, redis_url, namespace, stack), Letters()
        found: list[tuple[str, str]] = []
        for command, output in recorded:
            now = letters.now(command)
            found.append((now, terminal.run(now, output)))
            letters.meet(output, found[-1][1])
    if os.environ.get("RECORD_SESSIONS"):
        path.write_text(told(found))
    else:
        assert normal(told(found)) == normal(told(recorded))
