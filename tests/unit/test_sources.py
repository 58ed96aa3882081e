"""What must not stand in the sources: ways to run data as code, SQL made of content."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVING = ("engine", "flushers", "recovery")
"""What works on an application's own data; drills and benchmarks make theirs."""
ROOMS = (*SERVING, "drills", "bench", "examples")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
SCRIPTS = sorted((ROOT / "engine" / "adapters" / "lua").glob("*.lua"))

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle", "yaml"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}

SQL_WORDS = ("SELECT ", "INSERT ", "UPDATE ", "DELETE ", "CREATE ", "ALTER ", "DROP ", "REPLACE ", "COPY ")
QUOTED_BY_THE_DIALECT = {"flushers/bulk/postgresql.py", "flushers/bulk/screening.py", "flushers/bulk/staging.py"}
"""Where SQL is put together from names: those of declared tables, through SQLAlchemy's own quoting."""
OF_OWN_NAMES = {"engine/embedded/database.py", "engine/embedded/mariadb.py"}
"""Likewise, from names that the program itself has made, on servers of its own."""
FOR_PEOPLE = {"engine/core/database_rules.py"}
"""Advice to an operator."""


def name(path: Path) -> str:
    """Return a path as this repository names it."""
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_data_is_run_as_code(path: Path) -> None:
    """No pickle and its like, no eval, no shell."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [str(node.module)] if str(node.module).partition(".")[0] in UNSAFE_MODULES else []
        elif isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in UNSAFE_CALLS:
                found.append(called.id)
            found += [ast.unparse(called)] if ast.unparse(called) in SHELLS else []
            found += [str(each.arg) for each in node.keywords if each.arg == "shell"]
    assert found == []


def composed(path: Path) -> Iterator[str]:
    """Name the texts of a source that begin like SQL and have something put into them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr) and any(isinstance(part, ast.FormattedValue) for part in node.values):
            first = node.values[0]
            text = str(first.value) if isinstance(first, ast.Constant) else ""
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod | ast.Add):
            text = str(node.left.value) if isinstance(node.left, ast.Constant) else ""
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
            text = str(node.func.value.value) if isinstance(node.func.value, ast.Constant) else ""
        else:
            continue
        if text.lstrip().upper().startswith(SQL_WORDS):
            yield f"line {node.lineno}: {text}"


@pytest.mark.parametrize("path", [path for path in SOURCES if name(path).startswith(SERVING)], ids=name)
def test_no_sql_is_put_together(path: Path) -> None:
    """SQL comes from SQLAlchemy; where names are put into it, that is known here."""
    known = name(path) in QUOTED_BY_THE_DIALECT | OF_OWN_NAMES | FOR_PEOPLE
    assert known or list(composed(path)) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_scripts_run_no_data(path: Path) -> None:
    """Nor do the scripts that Redis runs, and a write's error is never swallowed."""
    text = path.read_text()
    assert not [word for word in ("loadstring", "load(", "dofile", "setfenv", "cjson", "pcall(") if word in text]
