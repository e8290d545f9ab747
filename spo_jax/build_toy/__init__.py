"""Makes and measures the pipeline shipped in the package: ``python -m spo_jax.build_toy.build``."""
