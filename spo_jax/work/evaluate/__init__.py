"""What ``spo_jax.evaluate`` does once its checks are done: contestants drawn and scored, and what comes of the scores."""
