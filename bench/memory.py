"""What an entry takes in Redis until it is flushed and trimmed."""

import redis

from writebehind.bench.report import Figure
from writebehind.bench.trial import Plan, trial

__all__ = ["memory"]


def memory(plan: Plan) -> list[Figure]:
    """Measure a backlog of one entry for each key, with the records' hashes and without."""
    with trial(plan) as now, redis.Redis.from_url(plan.redis) as client:
        before = _data_bytes(client)
        keys = now.fill("sequential", plan.entries)
        with_hashes = _data_bytes(client) - before
        logs = sum(client.memory_usage(log, samples=0) or 0 for log in now.engine.keys.logs)
    note = f"{keys:,} entries, each with a key of its own"
    return [
        Figure(part="memory", name="log and hash", value=with_hashes / plan.entries, unit="bytes/entry", note=note),
        Figure(part="memory", name="log alone", value=logs / plan.entries, unit="bytes/entry", note=note),
    ]


def _data_bytes(client: redis.Redis) -> int:
    """Return the bytes in use, without the connections' and the append-only file's buffers."""
    facts = client.info("memory")
    return int(facts["used_memory"]) - int(facts.get("mem_clients_normal", 0)) - int(facts.get("mem_aof_buffer", 0))
