"""What the product itself predicts that a fault may take, under the settings that the servers have now."""

from writebehind.engine import Durability, WriteBehind
from writebehind.engine.adapters.facts import redis_facts
from writebehind.engine.core.facts import Facts
from writebehind.engine.core.prediction import Extent, Fault, predict

__all__ = ["power_loss_seconds"]

UNFLUSHED_SECONDS = 60.0
"""In place of a bound where all that SQL does not have may go: longer than anything waits in a drill."""


def power_loss_seconds(app: WriteBehind, level: Durability) -> float:
    """Return how much a power loss of Redis may take where no service survives, in seconds before the fault.

    Raises:
        RedisUnavailable: Redis cannot be asked.
    """
    with app.links.link() as link:
        facts = Facts(level=level, redis=redis_facts(link, app.keys.metas[0]))
    prediction = predict(facts, Fault.REDIS_POWER_LOSS, level)
    if prediction.extent is Extent.NONE:
        return 0.0
    return UNFLUSHED_SECONDS if prediction.seconds is None else prediction.seconds
