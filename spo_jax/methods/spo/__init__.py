"""Step-by-step preference optimisation, SPO (arXiv 2406.04314)."""

from spo_jax.core.lazy import late
from spo_jax.methods.common.prompts import read_data as read_data
from spo_jax.methods.spo.checks import check as check
from spo_jax.methods.spo.rules import RULES as RULES
from spo_jax.methods.spo.settings import SPOTrainSettings as Settings  # noqa: F401

__getattr__, __dir__ = late(__name__, {"setup": "spo_jax.methods.spo.method"})
