"""Training of step-aware preference models, the judges of SPO."""

from spo_jax.methods.spm.method import read_data as read_data
from spo_jax.methods.spm.method import setup as setup
from spo_jax.methods.spm.settings import SPMTrainSettings as Settings  # noqa: F401
