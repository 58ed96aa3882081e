"""Test the tests: plant known faults in copies of the code, and see that the suite notices each of them.

    python tests/mutants/run.py [--only NAME] [--list]

For each entry of the catalogue:

1. the packages are copied to a temporary directory, where one textual change is made (an error where its ``old`` text
   is not there exactly once, so that a fault which the code has outgrown cannot pass for noticed);
2. the tests named for it run with that directory first on PYTHONPATH, which child processes inherit. A plugin checks
   that every package of the product really comes from there;
3. the fault counts as caught only where pytest ends with 1 and a test itself has failed: an import error, a wrong test
   ID, a fixture that fails or a run that hangs is no proof.

Before that, the tests of every selection must pass on an unchanged copy. Where a server for all of a fault's tests is
missing they are skipped, and the fault is reported as skipped; with CI=true a missing server is a failure.

The exit code is 1 when a fault survives or a selection does not pass on the unchanged code.

To add a fault: put it into the catalogue, with the fastest test that should notice it. Where none does, that is the
finding: write the test (``tests/integration/test_known_faults.py``) first.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from mutants.catalogue import Edit, Mutant

Item = TypeVar("Item")
Result = TypeVar("Result")

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ("engine", "flushers", "recovery", "drills", "bench", "examples")
PARALLEL = 2
RUN_SECONDS_MAX = 150
TEST_SECONDS_MAX = 60
END_SECONDS_MAX = 15

PLUGIN = '''
"""Check where the product comes from, and write down what became of each test."""

import importlib.util
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def pytest_configure():
    for room in {rooms!r}:
        spec = importlib.util.find_spec("writebehind." + room)
        if spec is None or not Path(spec.origin).resolve().is_relative_to(HERE):
            raise pytest.UsageError("writebehind." + room + " comes from " + str(spec and spec.origin))


def pytest_runtest_logreport(report):
    if report.when == "call" or not report.passed:
        with (HERE / "outcomes").open("a") as file:
            print(report.when, report.outcome, report.nodeid, file=file)


def pytest_sessionfinish():
    import writebehind.engine

    assert Path(writebehind.engine.__file__).resolve().is_relative_to(HERE)
'''


class Verdict(Enum):
    """What became of a fault."""

    CAUGHT = "caught"
    SURVIVED = "SURVIVED"
    SKIPPED = "skipped"
    BROKEN = "NO BASELINE"
    ERROR = "ERROR"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of pytest.

    Attributes:
        code: its exit code, or None where it hung.
        failed: tests that failed themselves.
        passed: whether at least one test passed.
        output: what it printed.
        seconds: how long it took.
    """

    code: int | None
    failed: Sequence[str]
    passed: bool
    output: str
    seconds: float


class StaleMutantError(Exception):
    """The text to change is not in the code exactly once."""


@contextlib.contextmanager
def copied(edits: Iterable["Edit"] = ()) -> Iterator[Path]:
    """Copy the packages, with changes, to a directory that can be put on PYTHONPATH.

    Raises:
        StaleMutantError: a change does not fit the code.
    """
    with tempfile.TemporaryDirectory(prefix="writebehind-mutant-") as name:
        directory = Path(name).resolve()
        ignored = shutil.ignore_patterns("__pycache__", "*.xz")
        for room in ROOMS:
            shutil.copytree(REPOSITORY / room, directory / "writebehind" / room, ignore=ignored)
        for edit in edits:
            path = directory / "writebehind" / edit.path
            text = path.read_text()
            if text.count(edit.old) != 1:
                raise StaleMutantError(f"{edit.path} has {text.count(edit.old)} times:\n{edit.old}")
            path.write_text(text.replace(edit.old, edit.new))
        (directory / "mutant_plugin.py").write_text(PLUGIN.format(rooms=ROOMS))
        yield directory


def run_tests(directory: Path, tests: Iterable[str]) -> Run:
    """Run tests against a copy, up to the first failure."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(directory), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HYPOTHESIS_STORAGE_DIRECTORY": str(directory / "hypothesis"),
    }
    # -P: the working directory must not come before PYTHONPATH.
    command = [sys.executable, "-P", "-m", "pytest", "-p", "mutant_plugin", "-p", "no:cacheprovider", "-x", "-q"]
    command += ["--no-header", "--tb=short", "--show-capture=no", f"--timeout={TEST_SECONDS_MAX}", *tests]
    log = directory / "log"
    begun = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(RUN_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            code = None
            end(process)
    outcomes = directory / "outcomes"
    lines = [line.split(" ", 2) for line in outcomes.read_text().splitlines()] if outcomes.exists() else []
    return Run(
        code=code,
        failed=[test for when, outcome, test in lines if (when, outcome) == ("call", "failed")],
        passed=any((when, outcome) == ("call", "passed") for when, outcome, _ in lines),
        output=log.read_text(),
        seconds=time.monotonic() - begun,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """End a run that hangs: in order, so that its servers end with it; else with all that it has started."""
    process.terminate()
    try:
        process.wait(END_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def baseline(tests: Sequence[str]) -> tuple[Verdict | None, str]:
    """Run a selection on the unchanged code; return None where it passes, else the verdict and why."""
    with copied() as directory:
        run = run_tests(directory, tests)
    if run.code != 0:
        return Verdict.BROKEN, run.output
    return (None, "") if run.passed else (Verdict.SKIPPED, "")


def judge(mutant: "Mutant") -> tuple[Verdict, Run | None, str]:
    """Run a fault's tests on the faulty code."""
    try:
        with copied(mutant.edits) as directory:
            run = run_tests(directory, mutant.tests)
    except StaleMutantError as stale:
        return Verdict.ERROR, None, str(stale)
    if run.code == 1 and run.failed:
        return Verdict.CAUGHT, run, ""
    return (Verdict.SURVIVED if run.code == 0 else Verdict.ERROR), run, run.output


def in_parallel(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Do the work for each item, a few at a time."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        return list(pool.map(work, items))


def report(mutant: "Mutant", verdict: Verdict, run: Run | None) -> None:
    """Print one row of the table."""
    by = run.failed[0].rpartition("/")[2] if run and run.failed else ""
    seconds = f"{run.seconds:5.1f} s" if run else "       "
    print(f"{verdict.value:<12} {seconds}  {mutant.name:<36} {by}", flush=True)


def main() -> int:
    """Run the catalogue; return the exit code."""
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from mutants.catalogue import MUTANTS  # noqa: PLC0415 - the tests' directory is not on the path before

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", action="append", help="only this fault; may be repeated")
    parser.add_argument("--list", action="store_true", help="show the faults and what they would do")
    arguments = parser.parse_args()
    if arguments.list:
        for mutant in MUTANTS:
            print(f"{mutant.name:<36} {mutant.harm}")
        return 0
    unknown = set(arguments.only or ()) - {mutant.name for mutant in MUTANTS}
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}; see --list")
    chosen = [mutant for mutant in MUTANTS if not arguments.only or mutant.name in arguments.only]
    return examine(chosen)


def examine(chosen: Sequence["Mutant"]) -> int:
    """Check the selections on the unchanged code, then every fault; return the exit code."""
    begun = time.monotonic()
    selections = list(dict.fromkeys(tuple(mutant.tests) for mutant in chosen))
    baselines = dict(zip(selections, in_parallel(baseline, selections), strict=True))
    print(f"{len(selections)} selections on the unchanged code: {time.monotonic() - begun:.0f} s", flush=True)
    details: list[tuple[str, str]] = []

    def examined(mutant: "Mutant") -> Verdict:
        verdict, text = baselines[tuple(mutant.tests)]
        run = None
        if verdict is None:
            verdict, run, text = judge(mutant)
        report(mutant, verdict, run)
        if text:
            details.append((mutant.name, text))
        return verdict

    verdicts = in_parallel(examined, chosen)
    for name, text in details:
        print(f"\n--- {name}\n{text}")
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict.value}" for verdict in Verdict if verdict in verdicts)
    print(f"\n{len(chosen)} faults: {counts}; {time.monotonic() - begun:.0f} s")
    return 0 if {*verdicts} <= {Verdict.CAUGHT, Verdict.SKIPPED} else 1


if __name__ == "__main__":
    sys.exit(main())
