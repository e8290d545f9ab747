"""The work of ``spo_jax.evaluate``: contestants are drawn and scored, and compared in tables and on a page."""
