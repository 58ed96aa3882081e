"""The report as JUnit XML, which CI systems show."""

from xml.etree import ElementTree as ET

from writebehind.drills.result import Report, Result, Verdict
from writebehind.drills.text import headline, loss

__all__ = ["junit"]


def junit(report: Report) -> str:
    """Return the XML: one test case for each drill."""
    results = report.results
    suite = ET.Element(
        "testsuite",
        name="writebehind drills",
        timestamp=report.made_at,
        tests=str(len(results)),
        failures=str(len(report.failed)),
        skipped=str(len(results) - len(report.played)),
        time=f"{sum(result.seconds for result in results):.2f}",
    )
    for result in results:
        _case(suite, result)
    ET.SubElement(suite, "system-out").text = headline(report)
    ET.indent(suite)
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _case(suite: ET.Element, result: Result) -> None:
    case = ET.SubElement(suite, "testcase", classname="writebehind.drills", name=result.name, time=str(result.seconds))
    properties = ET.SubElement(case, "properties")
    for name in ("seed", "redis", "database", "level", "acknowledged", "lost", "doubled", "stale_refused"):
        ET.SubElement(properties, "property", name=name, value=str(getattr(result, name)))
    if result.verdict == Verdict.REFUSED:
        ET.SubElement(case, "skipped", message=result.reason)
    elif result.verdict == Verdict.FAILED:
        broken = [f"{check.code} {check.title}: {check.detail}" for check in result.checks if not check.passed]
        failure = ET.SubElement(case, "failure", message="; ".join(broken) or result.reason)
        failure.text = f"{loss(result)}\nagain: {result.replay}\n{result.trouble}"
