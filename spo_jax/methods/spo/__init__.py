"""Step-by-step preference optimisation, SPO (arXiv 2406.04314)."""

from spo_jax.methods.spo.method import read_data as read_data
from spo_jax.methods.spo.method import setup as setup
from spo_jax.methods.spo.settings import SPOTrainSettings as Settings  # noqa: F401
