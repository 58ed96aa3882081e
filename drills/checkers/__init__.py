"""The checkers: what must hold after a drill, whatever was done to the servers.

Pure: each takes a history (what writers meant and were told) and a final or intermediate state, and gives a ``Check``.

- K1 set-full: an acknowledged operation is in SQL once; an indeterminate one at most once; a refused one never.
- K2 counters: acknowledged <= value <= acknowledged + indeterminate.
- K3 order: of each list SQL holds a beginning without holes at any moment, and of each record what was written last.
- K4 bank: in every committed snapshot each bank's sum is what it was; money moved exactly as the groups say.
- K5 tails: a record in Redis and the log agree on the record's last entry.
- K6 fencing: fencing tokens never go back, and no offset is committed twice.
- K7 convergence: once everything is flushed, reads through the engine and the rows in SQL are the same.
- K8 liveness: the backlog empties, and nothing is halted.
- K9 hygiene: no process, lease, session or pending entry is left behind.
- K10 honesty: the losses that the product reports are those that happened.
- K11 dead letters: exactly what SQL refuses is set aside, in order, with what waits behind it; in the end nothing is.
- K12 halts: a partition whose writes SQL cannot take, whatever their values, halts and names what is missing.

An operation that the allowance covers may be lost: it is listed, and does not fail the check.
"""

from writebehind.drills.checkers.check import Allowance, Audited, Check, Row, Snapshot
from writebehind.drills.checkers.letters import Halt, Look, dead_letters, halts
from writebehind.drills.checkers.state import convergence, fencing, honesty, hygiene, liveness, tails
from writebehind.drills.checkers.writes import bank, counters, lists, records, set_full

__all__ = ["Allowance", "Audited", "Check", "Halt", "Look", "Row", "Snapshot", "bank", "convergence", "counters"]
__all__ += [
    "dead_letters",
    "fencing",
    "halts",
    "honesty",
    "hygiene",
    "lists",
    "liveness",
    "records",
    "set_full",
    "tails",
]
