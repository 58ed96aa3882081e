"""Recovery from crashes, takeover and replay; comparison and repair; decisions about what SQL refused."""

from writebehind.engine.core.prediction import Extent, Fault, Prediction, predict
from writebehind.recovery.comparison import Verdict
from writebehind.recovery.dead_letters import dead_letters
from writebehind.recovery.doctor import Diagnosis, doctor
from writebehind.recovery.findings import Finding, Verification
from writebehind.recovery.from_cache import FromCache, from_cache
from writebehind.recovery.letters import DeadLetter, LetterChange, LetterFilter, LetterID, LetterState
from writebehind.recovery.log_audit import Gap, LogAudit
from writebehind.recovery.repair import Outcome, Repair, Winner
from writebehind.recovery.resolving import Fate, Resolution, discard, replay, resolutions
from writebehind.recovery.verify import Progress, verify

__all__ = [
    "DeadLetter",
    "Diagnosis",
    "Extent",
    "Fate",
    "Fault",
    "Finding",
    "FromCache",
    "Gap",
    "LetterChange",
    "LetterFilter",
    "LetterID",
    "LetterState",
    "LogAudit",
    "Outcome",
    "Prediction",
    "Progress",
    "Repair",
    "Resolution",
    "Verdict",
    "Verification",
    "Winner",
    "dead_letters",
    "discard",
    "doctor",
    "from_cache",
    "predict",
    "replay",
    "resolutions",
    "verify",
]
