"""The work of `spo_jax.export`: LoRA files and merged models, a model's page for the hub, and a sweep of strengths."""
