"""Timings beside other tools, each answer checked first: ``python -m benchmarks.landscape``."""
