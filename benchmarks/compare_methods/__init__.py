"""Compares training methods on the toy world: ``python -m benchmarks.compare_methods``."""
