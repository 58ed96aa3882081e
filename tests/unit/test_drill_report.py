"""What a reader of a report sees: text, JSON, JUnit XML, a page, a chart, a campaign's summary."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import msgspec
import pytest

from writebehind.drills.chart import LEFT, WIDTH, chart
from writebehind.drills.checkers import Snapshot
from writebehind.drills.html import page
from writebehind.drills.incident import Incident
from writebehind.drills.journal import Kind, Operation, Outcome
from writebehind.drills.junit import junit
from writebehind.drills.processes import LogLine
from writebehind.drills.result import CheckResult, IncidentResult, LostOperation, Report, Result
from writebehind.drills.summary import summarise, summary_lines
from writebehind.drills.text import headline, lines
from writebehind.drills.timeline import POINTS_MAX, timeline
from writebehind.engine.core.positions import EntryID

HOSTILE = '<script>alert(1)</script> & "quotes"'


def incident(began: float, recovered: float | None = 1.5, *notes: str) -> IncidentResult:
    """Make a fault with notes half a second apart."""
    texts = notes or ("SIGKILL flusher-0",)
    return IncidentResult(
        "flusher-sigkill",
        [(began + 0.5 * number, text) for number, text in enumerate(texts)],
        detected_seconds=0.2,
        taken_over_seconds=1.1,
        recovered_seconds=recovered,
    )


PASSED = Result(
    name="flusher-sigkill",
    summary="a flusher is killed",
    promise="nothing is lost",
    verdict="passed",
    seed=7,
    replay="writebehind drill run flusher-sigkill --seed 7",
    redis="Redis 7.0.15",
    database="PostgreSQL 15.18",
    settings={"appendfsync": "everysec", "synchronous_commit": "on"},
    level="ACCEPTED",
    seconds=6.25,
    acknowledged=12_345,
    indeterminate=1,
    stale_refused=2,
    incidents=[incident(1.0), incident(3.0, 6.24)],
    checks=[CheckResult("K1", "set", True, "all there"), CheckResult("K8", "in time", True, "empty after 0.1 s")],  # noqa: FBT003
    points=[(0.1 * step, 100 * step, 90 * step, 0.1) for step in range(60)],
)
FAILED = msgspec.structs.replace(
    PASSED,
    name="flushall",
    summary=HOSTILE,
    verdict="failed",
    lost=3,
    doubled=1,
    lost_operations=[LostOperation(17, "set", 2, "459622224883200-904", 2.5)],
    loss_reports=["partition 2: 3 own entries"],
    predicted_loss_seconds=2.0,
    observed_loss_seconds=0.94,
    checks=[CheckResult("K1", "set", False, f"lost: 17, 18, 19 {HOSTILE}")],  # noqa: FBT003
    trouble=f"== flusher-0\n{HOSTILE}",
    replay="writebehind drill run flushall --seed 7",
)
REFUSED = Result(
    name="failover", summary="a replica", promise="none", verdict="refused", reason="needs embedded servers", seed=0,
    replay="",
)  # fmt: skip


def report(*results: Result) -> Report:
    """Make a report."""
    return Report(made_at="2026-01-02T03:04:05+00:00", product="0.1.0", system="Python 3.11", results=list(results))


def test_the_headline_says_it_in_one_line() -> None:
    """Faults, acknowledged, lost, doubled, stale commits, the worst recovery; a bound where one was predicted."""
    assert headline(report(PASSED, REFUSED)) == (
        "2 faults, 12,345 acknowledged, 0 lost, 0 doubled, 2 stale commits refused, worst recovery 6.2 s"
    )
    assert headline(report(PASSED, FAILED)).endswith("loss predicted <= 2 s, observed 0.94 s")


def test_the_text_names_what_matters() -> None:
    """Versions, settings, level, loss, lost operations, times, broken checks, and how to play it again."""
    text = "\n".join(lines(report(PASSED, FAILED, REFUSED)))
    for words in (
        "PASSED  flusher-sigkill", "FAILED  flushall", "REFUSED failover", "needs embedded servers", "Redis 7.0.15",
        "PostgreSQL 15.18", "appendfsync everysec", "level ACCEPTED", "12,345 acknowledged, 1 uncertain, 0 refused",
        "predicted <= 2 s, observed 3 lost, 0.94 s", "BROKEN    K1", "entry 459622224883200-904", "seed 7",
        "noticed 0.20 s, taken over 1.10 s, recovered 6.24 s", "again: writebehind drill run flushall --seed 7",
        "2 drills, 1 failed, 1 refused", "reported  partition 2: 3 own entries",
    ):  # fmt: skip
        assert words in text


def test_json_comes_back_as_it_was() -> None:
    """The report of an earlier run can be read."""
    made = report(PASSED, FAILED, REFUSED)
    assert msgspec.json.decode(msgspec.json.encode(made), type=Report) == made


def test_junit_counts_and_explains() -> None:
    """One test case each; a failure carries what is broken, a refusal its reason."""
    suite = ET.fromstring(junit(report(PASSED, FAILED, REFUSED)))  # noqa: S314 - made right here
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    failure = cases["flushall"].find("failure")
    assert failure is not None
    assert "lost: 17, 18, 19" in str(failure.get("message"))
    assert "writebehind drill run flushall --seed 7" in str(failure.text)
    skipped = cases["failover"].find("skipped")
    assert skipped is not None
    assert skipped.get("message") == "needs embedded servers"
    assert cases["flusher-sigkill"].find("failure") is None


class _Page(HTMLParser):
    """Collects what a page would fetch, and whether its elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.fetched += [
            str(value) for name, value in attrs if name in {"src", "href"} and not str(value).startswith("#")
        ]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element that closes itself."""

    def handle_endtag(self, tag: str) -> None:
        """Close the element that was opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note text."""
        self.words.append(data)


def test_the_page_is_whole_and_needs_nothing_else() -> None:
    """Well-formed, nothing fetched from elsewhere, every drill in it, text from outside escaped."""
    html = page(report(PASSED, FAILED, REFUSED))
    parser = _Page()
    parser.feed(html)
    assert parser.open == []
    assert parser.fetched == []
    assert "url(" not in html
    assert "@import" not in html
    assert "<script" not in html
    text = " ".join(parser.words)
    for words in ("1 of 2 failed", "flusher-sigkill", "failover", "12,345", HOSTILE, "entry 459622224883200-904"):
        assert words in text
    assert html.count("<svg") == 2
    assert "all 1 passed" in page(report(PASSED))


def _texts(svg: str) -> list[tuple[float, float, str, str]]:
    return [
        (float(node.get("x", 0)), float(node.get("y", 0)), node.get("text-anchor", "start"), node.text or "")
        for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")  # noqa: S314 - made right here
        if node.get("class") == "label"
    ]


def test_labels_of_the_chart_do_not_touch() -> None:
    """Faults close together get rows of their own, and all stay inside the picture."""
    crowded = [
        incident(0.5 + 0.2 * number, 0.4, f"SIGKILL flusher-{number % 2}", "power is back") for number in range(12)
    ]
    svg = chart(msgspec.structs.replace(PASSED, incidents=crowded))
    texts = _texts(svg)
    assert [text for *_, text in texts] == [str(number) for number in range(1, 13)]
    boxes = []
    for x, y, anchor, text in texts:
        width = 6.0 * len(text)
        left = x if anchor == "start" else x - width
        assert left >= 0
        assert left + width <= WIDTH
        boxes.append((left, left + width, y))
    for number, (left, right, y) in enumerate(boxes):
        for other_left, other_right, other_y in boxes[number + 1 :]:
            assert y != other_y or right < other_left or other_right < left


def test_the_chart_shows_curves_outages_and_marks() -> None:
    """Both curves, the lag, one shade for each fault, three marks each; lines stay inside."""
    svg = chart(PASSED)
    assert svg.count('class="outage"') == 2
    for name in ("noticed", "taken-over", "recovered"):
        assert svg.count(f'class="{name}"') == 2
    for name in ("acknowledged", "committed", "lag"):
        (path,) = re.findall(rf'class="{name}" points="([^"]+)"', svg)
        xs = [float(point.split(",")[0]) for point in path.split()]
        assert xs == sorted(xs)
        assert min(xs) >= LEFT
        assert max(xs) <= WIDTH
    assert chart(REFUSED) == ""


def _acknowledged(number: int, at: float, sequence: int, epoch: int = 5) -> Operation:
    return Operation(number, Kind.SET, (), at - 0.01, at, Outcome.ACKNOWLEDGED, 0, EntryID(epoch, sequence))


def test_the_timeline_counts_what_sql_had() -> None:
    """Lag is the age of the oldest acknowledged operation that SQL did not have."""
    history = [_acknowledged(number, 10.0 + number, number) for number in range(4)]
    snapshots = [
        Snapshot(at=9.0),
        Snapshot(at=11.5, applied={(0, 5): 0}),
        Snapshot(at=13.5, applied={(0, 5): 0}),
        Snapshot(at=14.0, applied={(0, 5): 3}),
    ]
    assert timeline(history, snapshots, 10.0, []) == [(1.5, 2, 1, 0.5), (3.5, 4, 1, 2.5), (4.0, 4, 4, 0.0)]


def test_what_was_written_again_counts_from_the_recovery() -> None:
    """Its own epoch never gets that far, so the end of the incident is when it is taken for committed."""
    history = [_acknowledged(1, 10.0, 0), _acknowledged(2, 11.0, 1), _acknowledged(3, 13.0, 0, epoch=6)]
    snapshots = [
        Snapshot(at=at, applied={(0, 5): 0, **({(0, 6): 0} if at > 13 else {})}) for at in (10.5, 12.0, 13.5, 14.5)
    ]
    points = timeline(history, snapshots, 10.0, [14.0])
    assert [point[2] for point in points] == [1, 1, 2, 3]


def test_a_long_timeline_is_thinned() -> None:
    """Peaks of the lag and the end are kept."""
    history = [_acknowledged(number, float(number), number) for number in range(5000)]
    snapshots = [Snapshot(at=number + 0.5, applied={(0, 5): number - (number == 777)}) for number in range(5000)]
    points = timeline(history, snapshots, 0.0, [])
    assert len(points) <= POINTS_MAX + 1
    assert points[-1][:3] == (4999.5, 5000, 5000)
    assert max(point[3] for point in points) == pytest.approx(0.5)


def test_logs_tell_when_it_was_noticed_and_taken_over() -> None:
    """The first warning after the fault, and the last takeover before the recovery."""
    made = Incident("flusher-sigkill")
    made.notes.append((100.0, "SIGKILL"))
    made.recovered = 102.0
    offset = 1_000.0
    made.learn(
        [
            LogLine(1_099.9, "WARNING", "partition 0: taking over from x"),
            LogLine(1_100.5, "INFO", "nothing"),
            LogLine(1_101.0, "WARNING", "partition 1: taking over from x"),
            LogLine(1_101.5, "WARNING", "partition 2: taking over from x"),
            LogLine(1_103.0, "ERROR", "partition 3: taking over from x"),
        ],
        offset,
    )
    assert (made.seconds(made.detected), made.seconds(made.taken_over), made.seconds(made.recovered)) == (1.0, 1.5, 2.0)


def test_a_summary_counts_by_fault_and_by_servers() -> None:
    """Times, recoveries, combinations, and each violation with the command to replay it."""
    other = msgspec.structs.replace(FAILED, redis="Valkey 8.1.8", incidents=[incident(1.0, None)])
    made = summarise(report(PASSED, other, REFUSED), seed=7, seconds=61.23)
    assert (made.rounds, made.faults, made.kinds, made.seconds) == (2, 3, 1, 61.2)
    assert (made.acknowledged, made.lost, made.doubled, made.stale_refused) == (24_690, 3, 1, 4)
    (count,) = made.by_fault
    assert (count.times, count.recovery_worst_seconds) == (3, 6.24)
    assert [(each.redis, each.faults) for each in made.by_servers] == [("Redis 7.0.15", 2), ("Valkey 8.1.8", 1)]
    (violation,) = made.violations
    assert violation.replay == "writebehind drill run flushall --seed 7"
    text = "\n".join(summary_lines(made))
    assert "VIOLATION in flushall: writebehind drill run flushall --seed 7" in text
    assert "1 violations" in text


def test_predicted_losses_are_no_violation() -> None:
    """They are counted by themselves."""
    made = summarise(report(msgspec.structs.replace(FAILED, verdict="passed")), seed=7, seconds=1.0)
    assert (made.lost, made.lost_as_predicted, made.violations) == (0, 3, [])
