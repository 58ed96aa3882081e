"""Recovery: what a crash left pending is taken over and replayed exactly; what does not agree is found and repaired."""

from writebehind.engine.core.prediction import Extent, Fault, Prediction, predict
from writebehind.recovery.comparison import Verdict
from writebehind.recovery.doctor import Diagnosis, doctor
from writebehind.recovery.findings import Finding, Verification
from writebehind.recovery.from_cache import FromCache, from_cache
from writebehind.recovery.log_audit import Gap, LogAudit
from writebehind.recovery.repair import Outcome, Repair, Winner
from writebehind.recovery.verify import Progress, verify

__all__ = [
    "Diagnosis",
    "Extent",
    "Fault",
    "Finding",
    "FromCache",
    "Gap",
    "LogAudit",
    "Outcome",
    "Prediction",
    "Progress",
    "Repair",
    "Verdict",
    "Verification",
    "Winner",
    "doctor",
    "from_cache",
    "predict",
    "verify",
]
