"""Makes and measures the assets shipped in the package: ``python -m spo_jax.build_toy.build``."""
