"""Making and measuring the pipeline that is shipped in the package: ``python -m spo_jax.embedded.build``."""
