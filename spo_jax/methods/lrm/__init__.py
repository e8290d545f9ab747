"""Training of latent reward models, the judges of LPO."""

from spo_jax.core.lazy import late
from spo_jax.methods.common.preference.data import read_data as read_data
from spo_jax.methods.common.preference.rules import RULES as RULES
from spo_jax.methods.lrm.checks import check as check
from spo_jax.methods.lrm.settings import LRMTrainSettings as Settings  # noqa: F401

__getattr__, __dir__ = late(__name__, {"setup": "spo_jax.methods.lrm.method"})
