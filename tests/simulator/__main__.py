"""Run histories, and show how one went.

``--seeds 2000`` runs the seeds from 0 on and shows the first that violates something, made as short as possible.
``--seed 17`` runs one and shows it. ``--decisions 3:1,9:2`` replays a history that was made short.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from simulator.history import History, run
from simulator.shrink import shrink
from simulator.substitution import substituted

CHUNK_SEEDS = 25


def main() -> int:
    """Do what the command line says; return the exit code."""
    arguments = _parser().parse_args()
    with substituted():
        if arguments.decisions is not None:
            return _show(run(arguments.seed or 0, _parsed(arguments.decisions), trace=True), everything=arguments.all)
        if arguments.seed is not None:
            found = run(arguments.seed, trace=True)
            if found.violation is None or not arguments.shrink:
                return _show(found, everything=arguments.all)
            return _show(_shortened(found), everything=arguments.all)
    return _search(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="simulator", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, help="how many histories to run")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="run and show this one")
    parser.add_argument("--decisions", help="replay these decisions, as place:value,place:value")
    parser.add_argument("--all", action="store_true", help="show routine, too")
    parser.add_argument("--keep-going", action="store_true", help="list all violations instead of showing the first")
    parser.add_argument("--no-shrink", dest="shrink", action="store_false", help="show histories as they were found")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    return parser


def _search(arguments: argparse.Namespace) -> int:
    begun = time.perf_counter()
    effects, happened, violated = 0, Counter[str](), list[History]()
    done = 0
    for history in _histories(range(arguments.first, arguments.first + arguments.seeds), arguments.jobs):
        done += 1
        effects += history.effects
        happened += history.happened
        if history.violation is not None:
            violated.append(history)
            print(f"seed {history.seed}: {history.violation}", flush=True)
            if not arguments.keep_going:
                break
    seconds = time.perf_counter() - begun
    print(
        f"{done} histories, {effects} effects, {happened.total()} faults of {len(happened)} kinds in {seconds:.0f} s "
        f"({60 * done / seconds:.0f} a minute); {len(violated)} with a violation"
    )
    print(", ".join(f"{kind} {count}" for kind, count in sorted(happened.items())))
    if not violated:
        return 0
    if not arguments.keep_going:
        with substituted():
            first = min(violated, key=lambda history: history.seed)
            shown = run(first.seed, trace=True)
            _show(_shortened(shown) if arguments.shrink else shown, everything=arguments.all)
    return 1


def _histories(seeds: Sequence[int], jobs: int) -> Iterator[History]:
    chunks = [seeds[at : at + CHUNK_SEEDS] for at in range(0, len(seeds), CHUNK_SEEDS)]
    if jobs <= 1 or len(chunks) <= 1:
        for chunk in chunks:
            yield from _run_all(chunk)
        return
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        for histories in pool.imap(_run_all, chunks):
            yield from histories


def _run_all(seeds: Sequence[int]) -> list[History]:
    with substituted():
        return [run(seed) for seed in seeds]


def _shortened(found: History) -> History:
    seed = found.seed
    shortest = shrink(found, lambda decisions: run(seed, decisions))
    return run(seed, shortest.decisions, trace=True)


def _show(history: History, *, everything: bool) -> int:
    for name, value in history.facts.items():
        print(f"{name}: {value}")
    for line in history.trace:
        if everything or not line.startswith("."):
            print(line)
    print(f"replay: --seed {history.seed} --decisions {_written(history.decisions)}")
    print(history.violation or "no violation")
    return 1 if history.violation else 0


def _written(decisions: Sequence[int]) -> str:
    return ",".join(f"{place}:{value}" for place, value in enumerate(decisions) if value)


def _parsed(text: str) -> list[int]:
    pairs = [pair.partition(":") for pair in text.split(",") if pair]
    decisions = [0] * (1 + max((int(place) for place, _, _ in pairs), default=-1))
    for place, _, value in pairs:
        decisions[int(place)] = int(value)
    return decisions


if __name__ == "__main__":
    sys.exit(main())
