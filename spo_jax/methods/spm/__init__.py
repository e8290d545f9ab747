"""Training of step-aware preference models, the judges of SPO."""

from spo_jax.core.lazy import late
from spo_jax.methods.common.preference.data import read_data as read_data
from spo_jax.methods.common.preference.rules import RULES as RULES
from spo_jax.methods.spm.checks import check as check
from spo_jax.methods.spm.settings import SPMTrainSettings as Settings  # noqa: F401

__getattr__, __dir__ = late(__name__, {"setup": "spo_jax.methods.spm.method"})
