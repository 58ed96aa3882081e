"""A deterministic world for the product: everything outside it is a model, and chance decides what happens.

The product's own code runs unchanged, from the engine's calls down to the bytes that it sends to Redis, and from the
flusher's loop down to its leases and transactions. What stands in for the outside: ``loop`` (threads, processes and
time), ``redis_*`` (servers, files, replicas, scripts), ``database`` (SQL behind the flusher's transactions and leases).
``chance`` makes every decision; a seed, or the list of its decisions, gives the same history again.
"""
