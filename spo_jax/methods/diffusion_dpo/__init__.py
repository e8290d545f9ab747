"""Diffusion-DPO (arXiv 2311.12908) on prepared preference pairs, and its relatives: IPO, SmPO, InPO, MaPO."""

from spo_jax.core.lazy import late
from spo_jax.methods.diffusion_dpo.checks import check as check
from spo_jax.methods.diffusion_dpo.data import read_data as read_data
from spo_jax.methods.diffusion_dpo.rules import RULES as RULES
from spo_jax.methods.diffusion_dpo.settings import DPOTrainSettings as Settings  # noqa: F401

__getattr__, __dir__ = late(__name__, {"setup": "spo_jax.methods.diffusion_dpo.method"})
