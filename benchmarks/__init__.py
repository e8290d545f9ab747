"""Measurements of speed and memory; each module is a script, ``python -m benchmarks.NAME`` (see README.md)."""
