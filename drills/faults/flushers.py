"""Faults of flushers: killed at any moment, killed while they recover, frozen beyond their lease."""

import time

from writebehind.drills.app import LEASE_TTL_SECONDS
from writebehind.drills.fault import Fault
from writebehind.drills.processes import mortal_command
from writebehind.drills.stage import Stage

__all__ = ["KILLED", "KILLED_AT_EACH_STEP", "KILLED_IN_RECOVERY", "STEPS", "ZOMBIE", "ZOMBIE_IN_TRANSACTION"]

STEPS = tuple(
    (effect, side) for effect in ("Begin", "Fence", "Write", "Commit", "Acknowledge") for side in ("before", "after")
)
DEATH_SECONDS_MAX = 20.0
RECOVERY_EFFECTS_MAX = 14
RECOVERIES_KILLED = 2
FROZEN_SECONDS = 1.6 * LEASE_TTL_SECONDS


def killed(stage: Stage) -> None:
    """SIGKILL a flusher; the other one takes over, then it is started again."""
    victim = stage.victim()
    stage.hit(f"SIGKILL {victim.name}")
    victim.kill()
    stage.recover()
    victim.start()


def killed_at(effect: str, side: str) -> Fault:
    """Return the fault that a flusher dies at a step of the flush."""

    def strike(stage: Stage) -> None:
        victim = stage.victim()
        victim.stop()
        victim.start(mortal_command("kill", effect, side, stage.chance.randrange(3)))
        victim.await_death(DEATH_SECONDS_MAX)
        stage.hit(f"{victim.name} killed {side} {effect}")
        stage.recover()
        victim.start()

    return Fault(
        name=f"killed-{side}-{effect.lower()}",
        summary=f"a flusher is killed (SIGKILL) right {side} {effect} of a flush",
        strike=strike,
    )


def killed_in_recovery(stage: Stage) -> None:
    """Kill all flushers, then each that recovers from that, in the middle of its takeover."""
    first, second = stage.flushers
    stage.hit("SIGKILL both flushers")
    first.kill()
    second.kill()
    for number in range(RECOVERIES_KILLED):
        victim = stage.flushers[number % 2]
        skip, side = stage.chance.randrange(RECOVERY_EFFECTS_MAX), stage.chance.choice(["before", "after"])
        victim.start(mortal_command("kill", "any", side, skip))
        victim.await_death(DEATH_SECONDS_MAX)
        stage.hit(f"recovering {victim.name} killed")
    first.start()
    second.start()


def zombie(stage: Stage) -> None:
    """Freeze a flusher for longer than its lease; it goes on when another has its partitions."""
    victim = stage.victim()
    stage.hit(f"SIGSTOP {victim.name}")
    victim.freeze()
    begun = time.monotonic()
    if stage.sql.kind != "sqlite":
        # There a frozen writer keeps the file's lock until it goes on: no server can end its transaction.
        stage.recover()
    stage.load(FROZEN_SECONDS - (time.monotonic() - begun))
    stage.hit(f"SIGCONT {victim.name}")
    victim.thaw()


def zombie_in_transaction(stage: Stage) -> None:
    """Let a flusher freeze inside its transaction; it goes on when another has its partitions."""
    victim = stage.victim()
    victim.stop()
    effect = stage.chance.choice(["Begin", "Write", "Commit"])
    victim.start(mortal_command("freeze", effect, "before", stage.chance.randrange(3)))
    victim.await_freeze(DEATH_SECONDS_MAX)
    stage.hit(f"{victim.name} frozen before {effect}")
    begun = time.monotonic()
    stage.recover()
    stage.load(FROZEN_SECONDS - (time.monotonic() - begun))
    stage.hit(f"SIGCONT {victim.name}")
    victim.thaw()


KILLED = Fault(name="flusher-sigkill", summary="a flusher is killed (SIGKILL) at a random moment", strike=killed)
KILLED_AT_EACH_STEP = tuple(killed_at(effect, side) for effect, side in STEPS)
KILLED_IN_RECOVERY = Fault(
    name="recovery-sigkill",
    summary="both flushers are killed, then each recovering one in the middle of its takeover",
    strike=killed_in_recovery,
)
ZOMBIE = Fault(
    name="zombie", summary="a flusher is frozen (SIGSTOP) for longer than its lease, then goes on", strike=zombie
)
ZOMBIE_IN_TRANSACTION = Fault(
    name="zombie-in-transaction",
    summary="a flusher freezes inside its transaction for longer than its lease, then wants to commit",
    strike=zombie_in_transaction,
    sql=("postgresql", "mariadb"),
)
