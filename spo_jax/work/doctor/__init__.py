"""The work of `spo_jax.doctor`: what this machine has, how a run goes, and whether a model fits."""
