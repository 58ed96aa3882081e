"""What the documentation shows runs as it stands.

The Python of a page is one program, its blocks one after the other. A block of text right behind one is what it prints.
"""

import ast
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner  # noqa: TID251 - asks the command line's own parser

from writebehind.flushers.cli import main

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PRINTED = re.compile(r"^```python\n.*?^```\n\s*^```text\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?:^ {4}.*\n|^\n)+", re.MULTILINE)
LANGUAGES = {"python", "text", "shell"}
SECONDS_MAX = 60.0


def name_of(page: Path) -> str:
    """Name a page."""
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return the fenced blocks of a page, each with its language."""
    return [(found[1], found[2]) for found in FENCE.finditer(page.read_text())]


def program_of(page: Path) -> str:
    """Return the Python of a page."""
    return "\n".join(block for language, block in blocks(page) if language == "python")


def commands() -> Iterator[tuple[str, str]]:
    """Find what the pages tell people to type, each with its page."""
    for page in PAGES:
        for found in re.finditer(r"^(?: {4})?(?:\$ )?((?:writebehind|make) .*)$", page.read_text(), re.MULTILINE):
            yield name_of(page), found[1]


WITH_PYTHON = [page for page in PAGES if program_of(page)]
COMMANDS = sorted(set(commands()))


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_the_python_of_a_page_runs(page: Path, redis_url: str, namespace: str, tmp_path: Path) -> None:
    """It ends well, warns of nothing, and prints what the page says."""
    (tmp_path / "program.py").write_text(re.sub(r'namespace="\w+"', f'namespace="{namespace}"', program_of(page)))
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "program.py"],
        env={**os.environ, "REDIS_URL": redis_url, "DATABASE_URL": f"sqlite:///{tmp_path}/shop.db"},
        cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS_MAX, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not re.search("Warning|Traceback|Exception", done.stderr), done.stderr
    told = "".join(PRINTED.findall(page.read_text()))
    assert not told or done.stdout == told


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_python_of_a_page_is_passed_over(page: Path) -> None:
    """Each fence has a language, and what is only indented is no Python."""
    assert {language for language, _ in blocks(page)} <= LANGUAGES
    assert len(re.findall(r"^\s*```", page.read_text(), re.MULTILINE)) == 2 * len(blocks(page))
    for found in INDENTED.finditer(FENCE.sub("", page.read_text())):
        code = textwrap.dedent(found[0])
        try:
            tree = ast.parse(code)
        except SyntaxError:
            continue
        assert not [each for each in ast.walk(tree) if isinstance(each, ast.Call | ast.Assign | ast.Import)], code


def test_there_is_something_to_run() -> None:
    """The patterns above find what the pages have."""
    assert len(WITH_PYTHON) > 10
    assert len(COMMANDS) > 40


@pytest.fixture
def _as_before() -> Iterator[None]:
    """Undo what the command line does to the process that it believes is its own."""
    logger, handler = logging.getLogger("writebehind"), signal.getsignal(signal.SIGTERM)
    level = logger.level
    yield
    logger.setLevel(level)
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.usefixtures("_as_before")
@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda text: text)
def test_a_command_of_a_page_is_one(page: str, command: str) -> None:
    """Its subcommand and its options exist; a target of make does."""
    program, *words = shlex.split(command, comments=True)
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words if "=" not in word} <= set(targets)
    else:
        shown = CliRunner().invoke(main, [*words, "--help"])
        assert shown.exit_code == 0, shown.output
