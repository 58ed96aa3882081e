"""The timeline of a drill as an SVG picture: what was acknowledged, what was in SQL, how far SQL lagged, what happened.

Pure. No scripts, no fonts and no files from elsewhere, so that the page can be mailed.
"""

import math
from collections.abc import Iterator, Sequence
from html import escape

from writebehind.drills.result import IncidentResult, Result

__all__ = ["chart"]

WIDTH = 960
LEFT, RIGHT = 64, 16
ROW = 16
"""Height of a row of labels."""
MAIN, GAP, LAG, AXIS = 170, 26, 56, 26
CHARACTER = 6.3
"""Width of a character of the labels, roughly; rather too much, so that they do not touch."""
LABEL_MAX = 58
TICKS = 4
ROWS_MAX = 4
"""With more rows of labels than this, numbers stand in their place."""


class _Scale:
    """From values to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high = low, high if high > low else low + 1
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self._start + share * (self._end - self._start), 1)


def chart(result: Result) -> str:
    """Return the picture; an empty text where there is nothing to see."""
    points = result.points
    if len(points) < 2:  # noqa: PLR2004 - a line has two ends
        return ""
    x = _Scale(0.0, max(points[-1][0], *(end for _, _, end in _spans(result.incidents)), 0.0), LEFT, WIDTH - RIGHT)
    labels = _labels(result.incidents)
    rows = _rows(labels, x)
    if max(rows, default=0) >= ROWS_MAX:
        labels = _numbers(result.incidents)
        rows = _rows(labels, x)
    top = 8 + ROW * (max(rows, default=-1) + 1) + 6
    main = _Scale(0, max(point[1] for point in points) * 1.05, top + MAIN, top)
    low = top + MAIN + GAP
    lag = _Scale(0.0, max(0.5, *(point[3] for point in points)) * 1.1, low + LAG, low)
    height = low + LAG + AXIS
    parts = [
        *_bands(result.incidents, x, top, low + LAG),
        *_grid(x, main, lag, low + LAG),
        _area([(x(at), main(committed)) for at, _, committed, _ in points], main(0), "committed"),
        _line([(x(at), main(acknowledged)) for at, acknowledged, _, _ in points], "acknowledged"),
        _area([(x(at), lag(seconds)) for at, _, _, seconds in points], lag(0), "lag"),
        *_marks(result.incidents, x, low + LAG),
        *_texts(labels, rows, x, low + LAG),
        f'<text class="axis" x="{LEFT}" y="{top - 4}">writes</text>',
        f'<text class="axis" x="{LEFT}" y="{low - 4}">lag of SQL</text>',
    ]
    title = escape(f"Timeline of {result.name}: acknowledged and committed writes, lag, faults")
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{title}</title>{''.join(parts)}</svg>"
    )


def _spans(incidents: Sequence[IncidentResult]) -> Iterator[tuple[IncidentResult, float, float]]:
    """Give each incident with its beginning and its end."""
    for incident in incidents:
        if incident.notes:
            began = incident.notes[0][0]
            yield incident, began, max(began + (incident.recovered_seconds or 0.0), incident.notes[-1][0])


def _bands(incidents: Sequence[IncidentResult], x: _Scale, top: float, bottom: float) -> Iterator[str]:
    """Shade the time from a fault to the recovery."""
    for _, began, ended in _spans(incidents):
        width = max(1.0, x(ended) - x(began))
        yield f'<rect class="outage" x="{x(began)}" y="{top}" width="{width:.1f}" height="{bottom - top}"/>'


def _grid(x: _Scale, main: _Scale, lag: _Scale, bottom: float) -> Iterator[str]:
    """Draw axes, lines and numbers."""
    for scale, unit in ((main, ""), (lag, " s")):
        for value in _ticks(scale.high, TICKS if scale is main else 2):
            y = scale(value)
            yield f'<line class="grid" x1="{LEFT}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}"/>'
            yield f'<text class="number" x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{value:,g}{unit}</text>'
    for value in _ticks(x.high, 10):
        yield f'<line class="tick" x1="{x(value)}" y1="{bottom}" x2="{x(value)}" y2="{bottom + 4}"/>'
        yield f'<text class="number" x="{x(value)}" y="{bottom + 17}" text-anchor="middle">{value:g} s</text>'


def _marks(incidents: Sequence[IncidentResult], x: _Scale, bottom: float) -> Iterator[str]:
    """Draw when it was noticed, taken over, recovered: small signs upon the time axis."""
    for incident, began, _ in _spans(incidents):
        for name, seconds in (
            ("noticed", incident.detected_seconds),
            ("taken-over", incident.taken_over_seconds),
            ("recovered", incident.recovered_seconds),
        ):
            if seconds is not None:
                at = x(began + seconds)
                told = escape(f"{name.replace('-', ' ')} after {seconds:.2f} s")
                yield (f'<path class="{name}" d="M{at} {bottom} l-5 -9 h10 z"><title>{told}</title></path>')


def _labels(incidents: Sequence[IncidentResult]) -> list[tuple[float, str]]:
    return [
        (at, text if len(text) <= LABEL_MAX else f"{text[: LABEL_MAX - 1]}…")
        for incident in incidents
        for at, text in incident.notes
    ]


def _numbers(incidents: Sequence[IncidentResult]) -> list[tuple[float, str]]:
    """Number the incidents, as the table below the picture does."""
    return [(incident.notes[0][0], str(number)) for number, incident in enumerate(incidents, 1) if incident.notes]


def _rows(labels: Sequence[tuple[float, str]], x: _Scale) -> list[int]:
    """Give each label a row in which it touches no other."""
    ends: list[float] = []
    rows = []
    for at, text in labels:
        begin, end = _extent(x(at), text)
        row = next((number for number, taken in enumerate(ends) if taken < begin), len(ends))
        ends[row:] = [end, *ends[row + 1 :]]
        rows.append(row)
    return rows


def _extent(at: float, text: str) -> tuple[float, float]:
    width = len(text) * CHARACTER + 12
    return (at, at + width) if at + width <= WIDTH - RIGHT else (at - width, at)


def _texts(labels: Sequence[tuple[float, str]], rows: Sequence[int], x: _Scale, bottom: float) -> Iterator[str]:
    """Write what happened, each with a line down to the axis; the lines first, so that no text is struck through."""
    for (at, _), row in zip(labels, rows, strict=True):
        yield f'<line class="fault" x1="{x(at)}" y1="{ROW * (row + 1) - 2}" x2="{x(at)}" y2="{bottom}"/>'
    for (at, text), row in zip(labels, rows, strict=True):
        begin, _ = _extent(x(at), text)
        left = begin >= x(at)
        y = 8 + ROW * (row + 1)
        yield (
            f'<text class="label" x="{x(at) + (4 if left else -4)}" y="{y}" '
            f'text-anchor="{"start" if left else "end"}">{escape(text)}</text>'
        )


def _ticks(high: float, count: int) -> list[float]:
    """Return round numbers from 0 to at most ``high``."""
    rough = high / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [round(number * step, 6) for number in range(int(high / step) + 1)]


def _line(points: Sequence[tuple[float, float]], name: str) -> str:
    return f'<polyline class="{name}" points="{_path(points)}"/>'


def _area(points: Sequence[tuple[float, float]], floor: float, name: str) -> str:
    closed = [(points[0][0], floor), *points, (points[-1][0], floor)]
    return f'<polygon class="{name}-area" points="{_path(closed)}"/>' + _line(points, name)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)
