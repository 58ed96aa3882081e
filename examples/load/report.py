"""What came of a load."""

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["KILLS", "Kill", "Report"]

KILLS = 2
DIFFERING_SHOWN = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Kill:
    """One SIGKILL.

    Attributes:
        seconds: since the load began.
        pid: of the flusher that was killed.
        backlog: entries that SQL did not have when it was last looked at before.
    """

    seconds: float
    pid: int
    backlog: int


@dataclass(kw_only=True)
class Report:
    """What came of a load.

    Attributes:
        seconds: how long it lasted.
        requests: how many were answered.
        milliseconds_median: how long an answer took.
        milliseconds_99th: the longest, but for one in a hundred.
        errors: answers that were not 200 or cannot be true, and connections that broke.
        first_errors: some of them.
        acknowledged: likes that were acknowledged.
        kills: of the flusher.
        lag_seconds_max: age of the oldest entry that SQL did not have, the highest that was seen.
        ends: processes that ended by themselves.
        drained: whether SQL had everything afterwards.
        differing: articles whose likes in SQL are not those acknowledged: article, acknowledged, in SQL.
        verify_exit_code: of ``writebehind verify``; 0 where it finds no divergence.
    """

    seconds: float = 0.0
    requests: int = 0
    milliseconds_median: float = 0.0
    milliseconds_99th: float = 0.0
    errors: int = 0
    first_errors: list[str] = field(default_factory=list)
    acknowledged: int = 0
    kills: list[Kill] = field(default_factory=list)
    lag_seconds_max: float = 0.0
    ends: list[str] = field(default_factory=list)
    drained: bool = False
    differing: list[tuple[int, int, int]] = field(default_factory=list)
    verify_exit_code: int = -1

    @property
    def survived(self) -> bool:
        """Whether nothing went wrong, and something could have."""
        went_wrong = self.errors or self.ends or self.differing or self.verify_exit_code
        return self.drained and self.acknowledged > 0 and len(self.kills) == KILLS and not went_wrong

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return asdict(self) | {"survived": self.survived}

    def lines(self) -> list[str]:
        """Return it for people."""
        rate = self.requests / self.seconds
        took = f"median {self.milliseconds_median:.1f} ms, 99 % below {self.milliseconds_99th:.1f} ms"
        return [
            f"load       {self.requests} requests in {self.seconds:.1f} s: {rate:.0f}/s, {took}",
            *(
                f"kill       at {each.seconds:.1f} s: flusher {each.pid}, with {each.backlog} entries not in SQL"
                for each in self.kills
            ),
            f"lag        {self.lag_seconds_max:.1f} s at the most",
            f"errors     {self.errors}",
            *(f"           {each}" for each in [*self.first_errors, *self.ends]),
            f"likes      {self.acknowledged} acknowledged, {len(self.differing)} articles differ in SQL"
            + ("" if self.drained else ", NOT DRAINED"),
            *(
                f"           article {article}: {acknowledged} acknowledged, {found} in SQL"
                for article, acknowledged, found in self.differing[:DIFFERING_SHOWN]
            ),
            f"verify     exit code {self.verify_exit_code}",
            f"verdict    {'survived: every like counts once' if self.survived else 'NOT SURVIVED'}",
        ]
