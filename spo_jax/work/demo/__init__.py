"""The page of `spo_jax.demo`: a file for each tab, and what the tabs share."""
