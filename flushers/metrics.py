"""The figures of a namespace in Prometheus's text format, for whatever scrapes it or reads it from a file.

Source of the format: prometheus.io, "Text-based format", version 0.0.4.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Final

from writebehind.flushers.inspection import Status

__all__ = ["exposition"]

_ESCAPED: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})

Sample = tuple[dict[str, str], float]


def exposition(found: Status) -> str:
    """Return one line for each figure, with what it means; no value of a row is among them."""
    return "".join(f"{line}\n" for line in _lines(found))


def _lines(found: Status) -> Iterator[str]:
    def of_partitions(name: str) -> list[Sample]:
        figures = [(each.partition, getattr(each, name)) for each in found.partitions]
        return [({"partition": str(number)}, float(figure)) for number, figure in figures if figure is not None]

    letters = [
        ({"table": table, "state": state}, float(getattr(count, state)))
        for table, count in found.dead_letters.items()
        for state in ("refused", "retrying", "waiting")
    ]
    reads = [
        ({"table": table, "what": name}, float(amount))
        for table, counted in found.reads.items()
        for name, amount in asdict(counted).items()
        if name != "load_ms"
    ]
    cached = [
        ({"cache": cache, "what": name}, float(amount))
        for cache, counted in found.caches.items()
        for name, amount in asdict(counted).items()
        if name != "load_seconds"
    ]
    cache_seconds = [({"cache": cache}, counted.load_seconds) for cache, counted in found.caches.items()]
    load_seconds = [({"table": table}, counted.load_ms / 1000) for table, counted in found.reads.items()]
    everything: Sequence[tuple[str, str, str, list[Sample]]] = (
        ("backlog_entries", "gauge", "Entries that SQL has not applied; none where damaged.", of_partitions("backlog")),
        ("lag_seconds", "gauge", "Age of the oldest of them.", of_partitions("lag_seconds")),
        (
            "held",
            "gauge",
            "1 where a limit holds writes back, by limit.",
            [
                ({"partition": str(each.partition), "limit": each.pressure}, 1.0)
                for each in found.partitions
                if each.pressure
            ],
        ),
        (
            "halted",
            "gauge",
            "1 where a partition is not flushed until something is mended.",
            [({"partition": str(each.partition)}, float(each.halted is not None)) for each in found.partitions],
        ),
        (
            "damaged",
            "gauge",
            "1 where another program has overwritten a partition's log or meta hash.",
            [({"partition": str(each.partition)}, float(each.damaged is not None)) for each in found.partitions],
        ),
        ("missing_rows_total", "counter", "Patches that found no row.", of_partitions("missing_rows")),
        (
            "lost_entries_total",
            "counter",
            "Entries in neither Redis nor SQL, or in doubt.",
            [({}, float(found.lost_entries))],
        ),
        (
            "rewritten_entries_total",
            "counter",
            "Entries that Redis had lost and their writers wrote again.",
            [({}, float(sum(loss.rewritten for loss in found.losses)))],
        ),
        ("dead_letters", "gauge", "Writes that SQL refuses, and those that wait behind them.", letters),
        ("reads_total", "counter", "Records read, by what was met with; hits + misses is all.", reads),
        ("read_load_seconds_total", "counter", "Time spent asking SQL for them.", load_seconds),
        ("cache_reads_total", "counter", "Reads of caches, by what was met with.", cached),
        ("cache_load_seconds_total", "counter", "Time spent in their loaders.", cache_seconds),
        ("flushers", "gauge", "Flushers that are alive.", [({}, float(found.flushers))]),
    )
    for name, kind, meaning, samples in everything:
        yield f"# HELP writebehind_{name} {meaning}"
        yield f"# TYPE writebehind_{name} {kind}"
        for labels, value in samples:
            told = {"namespace": found.namespace, **labels}
            pairs = ",".join(f'{label}="{text.translate(_ESCAPED)}"' for label, text in told.items())
            yield f"writebehind_{name}{{{pairs}}} {value:.15g}"
