"""Scripts that measure speed and memory: ``python -m benchmarks.NAME`` (see README.md)."""
