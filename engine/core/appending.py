"""The write protocol: append entries to a log exactly once, whatever happens to connections and servers.

Pure: it decides what to do and yields it; a shell does it and sends the reply in. Every yielded effect is a
point at which a crash is possible.

Invariants:

1. A call whose reply was lost is only ever repeated with the same call ID and as a retry, which finds the
   first attempt in the log or fences it off before it appends.
2. An error that says "nothing was written" is raised only when that is certain; otherwise the error is
   ``WriteOutcomeUnknown``. It is certain again once a retry was refused after it has searched the log in vain and
   fenced the lost attempts off, and the history is still the one that they were made in.
3. No entry is appended under an epoch that began on another primary.
4. A call that has waited, and of which nothing is written for certain, gets a new ID: it tells how old its entries are,
   and they are as old as the attempt that was let in.

::

    run --Accepted--> done
     |--Refused TIMELINE--> open epoch --> run
     |--Refused FENCED--> run
     |--Full (the backlog, or Redis)--> pause --> run, or raise, or run whatever the limits say, or end for now
     |--Refused, passing--> pause --> run
     |--Lost (sent, no reply)--> pause --> run as a retry
     |--Unsent--> pause --> run
     |--Unfit--> raise
     '--Refused, final--> raise, or end for one of several calls
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from writebehind.engine.config import Backpressure
from writebehind.engine.core.positions import EntryID
from writebehind.engine.core.pressure import OUT_OF_MEMORY, Held
from writebehind.engine.errors import (
    ConfigurationError,
    RedisUnavailable,
    ValidationError,
    WriteBehindError,
    WriteOutcomeUnknown,
)

__all__ = [
    "Call",
    "Effect",
    "Full",
    "Lost",
    "OpenEpoch",
    "Pause",
    "Refused",
    "Reply",
    "Run",
    "Unfit",
    "Unsent",
    "append",
    "exhausted",
    "final",
]


@dataclass(slots=True)
class Call:
    """One script call: entries of one partition, appended and applied to their records as one.

    Attributes:
        partition: number of the partition.
        call_id: stem of the mutation IDs; the same on every attempt as long as one before may have been executed.
        entries: how many entries it appends.
        records: names of the record hashes, in the order of the operations.
        arguments: the script's arguments from the number of entries on.
        payload_bytes: size of the payloads together.
        through: it was appended whatever the limits say, on condition that its writer waits until SQL has it.
        doubts: of each history in which an attempt was lost before it was accepted, the first entry that was lost with
            it: a flusher that finds SQL to have one of them passes the call's entries over.
    """

    partition: int
    call_id: str
    entries: int
    records: list[str]
    arguments: list[Any] = field(repr=False)
    payload_bytes: int
    through: bool = False
    doubts: Sequence[EntryID] = ()

    def begin(self, call_id: str) -> None:
        """Be sent as if for the first time, since no attempt before was executed, or will be."""
        self.call_id = call_id
        self.through = False
        self.doubts = ()


@dataclass(slots=True)
class Run:
    """Run the script. ``through``: whatever the limits say.

    ``retry``: an earlier attempt may have been executed; if not, none was or will be, and the call may begin anew.
    """

    retry: bool
    through: bool = False


@dataclass(slots=True)
class OpenEpoch:
    """Read the primary's identity anew on this connection and open an epoch on it where that is needed."""


@dataclass(slots=True)
class Pause:
    """Wait before the next attempt. ``attempt`` counts from 1; the shell knows the time."""

    attempt: int


Effect = Run | OpenEpoch | Pause


@dataclass(slots=True)
class Refused:
    """The server answered with an error; the call had no effect.

    Attributes:
        code: the error's first word.
        text: the others.
        fenced_off: as ``Full``'s; only what the script itself computes is refused after the search.
    """

    code: str
    text: str
    fenced_off: bool = False


@dataclass(slots=True)
class Full:
    """There is no room: a limit on what is not in SQL yet is reached, or Redis is full. The call had no effect.

    Attributes:
        policy: what is to become of the call.
        partition: its partition.
        held: what the script says, or Redis itself.
        retry_after_seconds: when there may be room again.
        fenced_off: earlier attempts whose replies were lost have not been executed and never will be: the script has
            looked for them and fenced them off, in the history that they were made in, before it refused this one.
    """

    policy: Backpressure
    partition: int
    held: Held
    retry_after_seconds: float
    fenced_off: bool = False

    @property
    def out_of_memory(self) -> bool:
        """Whether Redis is full: then it can accept nothing, whatever the policy."""
        return self.held.reason == OUT_OF_MEMORY


@dataclass(slots=True)
class Lost:
    """The call was sent, or partly, and no answer came: it may have been executed, or may be yet."""

    error: Exception


@dataclass(slots=True)
class Unsent:
    """The call was not sent."""

    error: Exception


@dataclass(slots=True)
class Unfit:
    """The call was not sent, nor would another be: the server or the log is not fit for it, as the error says."""

    error: WriteBehindError


Reply = bytes | Refused | Full | Lost | Unsent | Unfit | bool | None
"""``Run`` gets the last entry's ID or a failure; ``OpenEpoch`` None or a failure; ``Pause`` whether time is left."""

PASSING = frozenset(
    {
        "BUSY",
        "CLUSTERDOWN",
        "FENCED",
        "LOADING",
        "MASTERDOWN",
        "MISCONF",
        "NOREPLICAS",
        "READONLY",
        "TIMELINE",
        "TRYAGAIN",
        "UNBLOCKED",
    }
)
"""Refusals before any effect that another try may overcome."""

UNSETTLED = frozenset({"DOUBT", "UNSEARCHED"})
"""Refusals of a retry that leave unknown what became of the attempts before it."""


def append(*, together: bool = False) -> Generator[Effect, Reply, bytes | Full | Refused]:
    """Append one call's entries once.

    Args:
        together: it is one of several calls, none of which has to wait where another one finds no room.

    Returns:
        The ID of the last entry; or, for one of several calls, why there is no room now, or what it is refused for by
        the server itself: nothing is written, and it may be sent again, or in parts, as if for the first time.

    Raises:
        RedisUnavailable: time ran out; nothing was written.
        BacklogFull: time ran out, or the policy is not to wait; nothing was written.
        WriteOutcomeUnknown: after a reply was lost time ran out, or the log cannot be searched.
        ValidationError: an increment leaves its column's range; nothing was written.
        ConfigurationError: the server refuses the script for good, or hides what identifies it; nothing was written.
    """
    attempt = 0
    lost: Exception | None = None
    through = False
    while True:
        reply = yield Run(retry=lost is not None, through=through)
        if type(reply) is bytes:
            return reply
        if isinstance(reply, Refused) and reply.code == "TIMELINE":
            reply = yield OpenEpoch()
            if reply is None and attempt == 0:
                attempt = 1
                continue
        lost = still_lost(reply, lost)
        if not through and is_to_go_through(reply):
            through = True
            continue
        if together and lost is None and is_without_effect(reply):
            return reply
        if (error := hopeless(reply, lost)) is not None:
            raise error
        attempt += 1
        if (yield Pause(attempt)) is False:
            raise exhausted(reply, lost)


def is_to_go_through(reply: Reply) -> bool:
    """Tell whether a call is to be made again, whatever the limits say."""
    return isinstance(reply, Full) and reply.policy is Backpressure.WRITE_THROUGH and not reply.out_of_memory


def is_without_effect(reply: Reply) -> TypeGuard[Full | Refused]:
    """Tell whether the server has refused a call, no attempt of which is lost, so that its caller may send it anew."""
    if isinstance(reply, Full):
        return reply.policy is not Backpressure.REJECT
    return isinstance(reply, Refused) and reply.code not in PASSING | UNSETTLED


def hopeless(reply: Reply, lost: Exception | None) -> WriteBehindError | None:
    """Return the error for a reply after which no further try is made, or None."""
    if isinstance(reply, Refused) and reply.code not in PASSING:
        return final(reply, lost)
    if isinstance(reply, Full) and reply.policy is Backpressure.REJECT:
        return exhausted(reply, lost)
    if isinstance(reply, Unfit):
        return reply.error if lost is None else _unknown(f" and nobody can look for it: {reply.error.message}", lost)
    return None


def still_lost(reply: Reply, lost: Exception | None) -> Exception | None:
    """Return why nothing is known of an attempt, or None where each one is known not to have been executed."""
    if isinstance(reply, Lost):
        return reply.error
    return None if isinstance(reply, Full | Refused) and reply.fenced_off else lost


def exhausted(reply: Reply, lost: Exception | None = None) -> WriteBehindError:
    """Return the error for a write that ran out of time, or will not wait.

    Args:
        reply: the last one.
        lost: why nothing is known of an attempt, if that is so.
    """
    if lost is not None:
        return WriteOutcomeUnknown(
            f"the reply to a write was lost ({lost}) and Redis could not be asked again in time",
            "the write may be in the log; read the record before you repeat it",
        )
    if isinstance(reply, Full):
        if reply.out_of_memory and reply.policy is not Backpressure.REJECT:
            return RedisUnavailable(
                "Redis refuses writes: it is out of memory", "nothing was written; flushing frees some, try later"
            )
        return reply.held.error(reply.partition, reply.retry_after_seconds)
    if isinstance(reply, Refused):
        return RedisUnavailable(
            f"Redis refuses writes: {reply.code} {reply.text}".rstrip(), "nothing was written; try later"
        )
    cause = reply.error if isinstance(reply, Lost | Unsent) else "the primary kept changing"
    return RedisUnavailable(f"Redis cannot be reached: {cause}", "nothing was written; try later")


def final(reply: Refused, lost: Exception | None = None) -> WriteBehindError:
    """Return the error for a refusal that no further try overcomes.

    Args:
        reply: it.
        lost: why nothing is known of an attempt, if that is so.
    """
    if reply.code == "DOUBT":
        return _unknown(f", then Redis lost its tail, and SQL has {reply.text} of that", lost, "SQL")
    if reply.code == "UNSEARCHED":
        return _unknown(" and the log is too long to look for it", lost)
    if lost is not None:
        return _unknown(f" and Redis refuses to look for it: {reply.code} {reply.text}".rstrip(), lost)
    if reply.code == "RANGE":
        return ValidationError(
            f"an increment of column {reply.text} would leave the column's range", "nothing was written"
        )
    if reply.code == "WRONGTYPE":
        return ConfigurationError(
            "a key of this namespace in Redis holds something that is not the engine's",
            "remove the foreign key, or choose another namespace; nothing was written",
        )
    return ConfigurationError(
        f"Redis refuses the write script: {reply.code} {reply.text}".rstrip(),
        "check the user's permissions and that the server is Redis 7 or Valkey; nothing was written",
    )


def _unknown(why: str, lost: Exception | None, where: str = "the log") -> WriteOutcomeUnknown:
    """Return the error for what leaves unknown what became of an earlier attempt."""
    return WriteOutcomeUnknown(
        f"the reply to a write was lost ({lost}){why}",
        f"the write may be in {where}; read the record before you repeat it",
    )
