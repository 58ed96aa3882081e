"""Adapters: the only modules that speak to Redis and SQL."""
