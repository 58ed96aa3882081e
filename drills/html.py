"""The report as one page: everything in it, nothing from elsewhere."""

from collections.abc import Iterator
from html import escape

from writebehind.drills.chart import chart
from writebehind.drills.result import IncidentResult, Report, Result, Verdict
from writebehind.drills.text import headline, loss, seconds

__all__ = ["page"]

STYLE = """
:root { color-scheme: light; --ink: #1b2330; --soft: #5b6675; --rule: #dfe4ea; --paper: #ffffff; --ground: #f5f7f9;
  --good: #12744a; --bad: #b3261e; --acked: #1d5fd1; --done: #14935f; --lag: #c06a00; --fault: #c0392b; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 0; } p { margin: 6px 0; }
.meta { color: var(--soft); font-size: 13px; } .headline { font-size: 17px; margin: 14px 0 18px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 12px; margin-bottom: 22px; }
.tile { background: var(--paper); border: 1px solid var(--rule); border-radius: 8px; padding: 10px 14px; }
.tile b { display: block; font-size: 24px; line-height: 1.25; } .tile span { color: var(--soft); font-size: 13px; }
.badge { display: inline-block; border-radius: 999px; padding: 1px 10px; font-size: 12px; font-weight: 600;
  vertical-align: 2px; white-space: nowrap; }
.passed { background: #e0f3e9; color: var(--good); } .failed { background: #fbe3e1; color: var(--bad); }
.refused { background: #e9edf1; color: var(--soft); } .bad { color: var(--bad); font-weight: 600; }
.scroll { overflow-x: auto; background: var(--paper); border: 1px solid var(--rule); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th, td { padding: 6px 9px; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } tr:last-child td { border-bottom: 0; }
th:first-child, td:first-child, th.text, td.text { text-align: left; } td.wrap { white-space: normal; }
section { background: var(--paper); border: 1px solid var(--rule); border-radius: 8px; padding: 18px 20px;
  margin-top: 20px; scroll-margin-top: 12px; }
section header { display: flex; gap: 10px; align-items: baseline; flex-wrap: wrap; }
section header .meta { margin-left: auto; }
svg { width: 100%; height: auto; display: block; margin: 12px 0 2px; }
svg text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; fill: var(--ink); }
svg .number { fill: var(--soft); } svg .axis { fill: var(--soft); font-weight: 600; } svg .label { fill: var(--fault); }
svg .axis, svg .label { paint-order: stroke; stroke: #ffffff; stroke-width: 5px; stroke-linejoin: round; }
svg .grid { stroke: #e9edf1; } svg .tick { stroke: #9aa5b1; } svg polyline { fill: none; stroke-width: 1.8; }
svg .acknowledged { stroke: var(--acked); } svg .committed { stroke: var(--done); } svg .lag { stroke: var(--lag); }
svg .committed-area { fill: #14935f22; } svg .lag-area { fill: #c06a0022; } svg .outage { fill: #c0392b14; }
svg .fault { stroke: var(--fault); stroke-width: 1; stroke-dasharray: 3 2; }
svg .noticed { fill: #c99700; } svg .taken-over { fill: #7b3fb5; } svg .recovered { fill: var(--done); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; color: var(--soft); font-size: 12.5px; margin-bottom: 12px; }
.legend i { display: inline-block; width: 16px; height: 0; border-top: 3px solid; vertical-align: 3px;
  margin-right: 5px; }
.legend i.sign { border: 6px solid transparent; border-bottom: 0; border-top: 10px solid; width: 0; vertical-align: 0; }
.legend i.zone { border: 0; height: 11px; background: #c0392b2e; vertical-align: -1px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 14px; margin: 10px 0; font-size: 13.5px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
ul.checks { list-style: none; margin: 12px 0 4px; padding: 0; columns: 2; column-gap: 28px; font-size: 13px; }
ul.checks li { break-inside: avoid; padding: 1px 0 1px 22px; text-indent: -22px; } ul.checks .meta { font-size: 12px; }
code, pre { font: 12.5px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { background: #eef1f4; border-radius: 4px; padding: 1px 5px; overflow-wrap: anywhere; }
pre { background: #eef1f4; border-radius: 6px; padding: 10px; overflow-x: auto; }
a { color: var(--acked); text-decoration: none; } a:hover { text-decoration: underline; }
@media (max-width: 720px) { ul.checks { columns: 1; } main { padding: 20px 12px 40px; } }
"""

LEGEND = (
    '<div class="legend">'
    '<span><i style="color:#1d5fd1"></i>acknowledged</span><span><i style="color:#14935f"></i>in SQL</span>'
    '<span><i style="color:#c06a00"></i>lag of SQL</span><span><i class="zone"></i>from fault to recovery</span>'
    '<span><i class="sign" style="color:#c99700"></i>noticed</span>'
    '<span><i class="sign" style="color:#7b3fb5"></i>taken over</span>'
    '<span><i class="sign" style="color:#14935f"></i>recovered</span></div>'
)


def page(report: Report) -> str:
    """Return the page."""
    return "".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>writebehind drills: {escape(_verdict(report))}</title><style>{STYLE}</style></head><body><main>",
            *_head(report),
            *_overview(report),
            *(part for result in report.played for part in _section(result)),
            "</main></body></html>\n",
        ]
    )


def _verdict(report: Report) -> str:
    played, failed = len(report.played), len(report.failed)
    return f"{failed} of {played} failed" if failed else f"all {played} passed"


def _head(report: Report) -> Iterator[str]:
    played = report.played
    state = "failed" if report.failed else "passed"
    yield f'<h1>Drills <span class="badge {state}">{_verdict(report)}</span></h1>'
    yield f'<div class="meta">writebehind {escape(report.product)}, {escape(report.system)}, {report.made_at}</div>'
    yield f'<p class="headline">{escape(headline(report))}</p><div class="tiles">'
    lost, doubled = sum(each.lost for each in played), sum(each.doubled for each in played)
    unexpected = sum(each.lost for each in report.failed)
    for value, what, bad in (
        (f"{sum(len(each.incidents) for each in played):,}", "faults", False),
        (f"{sum(each.acknowledged for each in played):,}", "acknowledged", False),
        (
            f"{lost:,}",
            "lost" if unexpected == lost else f"lost, {lost - unexpected:,} of them as predicted",
            unexpected,
        ),
        (f"{doubled:,}", "doubled", doubled),
        (f"{sum(each.stale_refused for each in played):,}", "stale commits refused", False),
        (f"{max((each.worst_recovery_seconds for each in played), default=0.0):.1f} s", "worst recovery", False),
    ):
        yield f'<div class="tile"><b class="{"bad" if bad else ""}">{value}</b><span>{what}</span></div>'
    yield "</div>"


def _overview(report: Report) -> Iterator[str]:
    yield '<div class="scroll"><table><thead><tr><th>drill</th><th class="text">verdict</th><th class="text">on</th>'
    yield "<th>writes</th><th>lost</th><th>doubled</th><th>stale</th><th>recovery</th></tr></thead>"
    yield "<tbody>"
    for result in report.results:
        badge = f'<span class="badge {result.verdict}">{result.verdict}</span>'
        name = escape(result.name)
        if result.verdict == Verdict.REFUSED:
            yield f'<tr><td>{name}</td><td class="text">{badge}</td>'
            yield f'<td class="text wrap" colspan="6">{escape(result.reason)}</td></tr>'
            continue
        failed = result.verdict == Verdict.FAILED
        yield f'<tr><td><a href="#{name}">{name}</a></td><td class="text">{badge}</td>'
        yield f'<td class="text wrap">{escape(result.redis)}, {escape(result.database)}</td>'
        yield f"<td>{result.acknowledged:,}</td><td>{_alarming(result.lost, failed)}</td>"
        yield f"<td>{_alarming(result.doubled, failed)}</td>"
        yield f"<td>{result.stale_refused}</td><td>{seconds(result.worst_recovery_seconds)}</td></tr>"
    yield "</tbody></table></div>"


def _alarming(number: int, failed: bool) -> str:  # noqa: FBT001 - one question, one answer
    return f'<span class="bad">{number:,}</span>' if number and failed else f"{number:,}"


def _section(result: Result) -> Iterator[str]:
    name = escape(result.name)
    servers = escape(", ".join(filter(None, (result.redis, result.database, f"{result.seconds:.1f} s"))))
    yield f'<section id="{name}"><header><h2>{name}</h2><span class="badge {result.verdict}">{result.verdict}</span>'
    yield f'<span class="meta">{servers}</span></header>'
    yield f"<p>{escape(_sentence(result.summary))} Promise: {escape(result.promise)}.</p>"
    if result.reason:
        yield f'<p class="bad">{escape(result.reason)}</p>'
    picture = chart(result)
    yield picture + (LEGEND if picture else "")
    yield from _incidents(result)
    yield from _facts(result)
    yield from _checks(result)
    if result.lost_operations:
        yield '<p class="meta">Lost operations, the first of them: ' + ", ".join(
            escape(f"{each.op} ({each.kind}, partition {each.partition}, entry {each.entry}, at {each.at:.2f} s)")
            for each in result.lost_operations
        ) + "</p>"  # fmt: skip
    if result.loss_reports:
        told = "; ".join(result.loss_reports)
        yield f'<p class="meta">Reported by the product: {escape(told)}</p>'
    if result.trouble:
        yield f"<details><summary>What the processes said last</summary><pre>{escape(result.trouble)}</pre></details>"
    yield "</section>"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _incidents(result: Result) -> Iterator[str]:
    if not result.incidents:
        return
    yield '<div class="scroll"><table><thead><tr><th>fault</th><th>at</th><th>noticed</th><th>taken over</th>'
    yield "<th>recovered</th></tr></thead><tbody>"
    for number, incident in enumerate(result.incidents, 1):
        at = f"{incident.notes[0][0]:.2f} s" if incident.notes else "-"
        yield f'<tr><td class="wrap">{number}. {_told(incident)}</td><td>{at}</td>'
        for moment in (incident.detected_seconds, incident.taken_over_seconds, incident.recovered_seconds):
            yield f"<td>{seconds(moment)}</td>"
        yield "</tr>"
    yield "</tbody></table></div>"


def _told(incident: IncidentResult) -> str:
    told = escape("; ".join(text for _, text in incident.notes) or incident.fault)
    return told + (f' <span class="bad">{escape(incident.error)}</span>' if incident.error else "")


def _facts(result: Result) -> Iterator[str]:
    settings = ", ".join(f"{name} {value}" for name, value in result.settings.items())
    writes = (
        f"{result.acknowledged:,} acknowledged at {result.level}, {result.indeterminate} uncertain, "
        f"{result.refused} refused"
    )
    yield "<dl>"
    for name, text in (
        ("writes", writes),
        *(("told", f"{times} x {error}") for error, times in result.errors.items()),
        ("loss", loss(result)),
        ("doubled", f"{result.doubled}"),
        ("stale commits", f"{result.stale_refused} refused"),
        ("settings", settings),
    ):
        yield f"<dt>{name}</dt><dd>{escape(text)}</dd>"
    yield f"<dt>again</dt><dd><code>{escape(result.replay)}</code></dd></dl>"


def _checks(result: Result) -> Iterator[str]:
    if not result.checks:
        return
    yield '<ul class="checks">'
    for check in result.checks:
        sign = "✓" if check.passed else '<span class="bad">✗</span>'
        detail = "meta" if check.passed else "bad"
        yield f"<li>{sign} {check.code} {escape(check.title)} "
        yield f'<span class="{detail}">{escape(check.detail)}</span></li>'
    yield "</ul>"
