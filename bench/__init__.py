"""Benchmarks: throughput, lag, recovery and loss, measured."""
