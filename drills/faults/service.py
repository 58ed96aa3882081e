"""Faults of the service that writes."""

from writebehind.drills.fault import Fault
from writebehind.drills.stage import Stage

__all__ = ["KILLED"]

DOWN_SECONDS = (0.0, 0.3)


def killed(stage: Stage) -> None:
    """SIGKILL the service in the middle of its writes and start it again."""
    stage.hit("SIGKILL the service")
    stage.kill_service()
    stage.load(stage.chance.uniform(*DOWN_SECONDS))
    stage.start_service()
    stage.await_service()


KILLED = Fault(
    name="service-sigkill", summary="the service that writes is killed (SIGKILL) and started again", strike=killed
)
