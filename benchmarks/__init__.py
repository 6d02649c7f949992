"""Benchmarks against the smallest app that asks the same agent and stores nothing: `python -m benchmarks [NAME]`."""
