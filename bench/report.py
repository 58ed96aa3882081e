"""Figures, what was asked of them, and how both are printed."""

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

__all__ = ["Figure", "Target", "percentile", "rendered", "surroundings"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A bound for a figure's ratio, or for its value where it has none."""

    at_least: float | None = None
    at_most: float | None = None

    def met_by(self, number: float) -> bool:
        """Tell whether a number keeps within the bound."""
        return (self.at_least is None or number >= self.at_least) and (self.at_most is None or number <= self.at_most)

    def __str__(self) -> str:
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One measured thing.

    Attributes:
        part: the part of the benchmark.
        name: what was measured.
        value: the median over the rounds.
        unit: of the value.
        baseline: the median of what it is compared with, in the same unit.
        ratio: the median over the rounds of value / baseline.
        target: what is asked of the ratio; of the value where there is no ratio.
        note: what a reader has to know.
    """

    part: str
    name: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    target: Target | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        return None if self.target is None else self.target.met_by(self.value if self.ratio is None else self.ratio)

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {**asdict(self), "target": None if self.target is None else str(self.target), "met": self.met}

    @classmethod
    def compared(
        cls,
        part: str,
        name: str,
        unit: str,
        values: Sequence[float],
        baselines: Sequence[float],
        *,
        target: Target | None = None,
        note: str = "",
    ) -> "Figure":
        """Return the comparison of two series of rounds: each round's own ratio, then the median."""
        return cls(
            part=part,
            name=name,
            value=statistics.median(values),
            unit=unit,
            baseline=statistics.median(baselines),
            ratio=statistics.median(value / other for value, other in zip(values, baselines, strict=True)),
            target=target,
            note=note,
        )


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which this share of the values lies, 0 to 1."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def surroundings(redis: str, database: str) -> dict[str, Any]:
    """Return what the figures depend on: software, machine, and how busy that was at the beginning."""
    return {
        "python": platform.python_version(),
        "redis": redis,
        "database": database,
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def rendered(figures: Sequence[Figure], about: Mapping[str, Any]) -> Table:
    """Return the table to print."""
    caption = ", ".join(f"{name} {value}" for name, value in about.items())
    table = Table(title="writebehind bench", caption=caption, caption_justify="left")
    table.add_column("part")
    table.add_column("figure", overflow="fold")
    for name in ("measured", "compared with", "ratio", "target"):
        table.add_column(name, justify="right")
    table.add_column("met")
    table.add_column("note", overflow="fold")
    for figure in figures:
        table.add_row(
            figure.part,
            figure.name,
            f"{_number(figure.value)} {figure.unit}",
            "" if figure.baseline is None else f"{_number(figure.baseline)} {figure.unit}",
            "" if figure.ratio is None else f"{figure.ratio:.2f}",
            "" if figure.target is None else str(figure.target),
            {True: "yes", False: "[bold]no[/bold]", None: ""}[figure.met],
            figure.note,
        )
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"  # noqa: PLR2004 - three digits tell enough
