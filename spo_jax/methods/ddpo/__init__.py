"""Denoising diffusion policy optimisation, DDPO (arXiv 2305.13301), with clipped ratios."""

from spo_jax.core.lazy import late
from spo_jax.methods.common.prompts import read_data as read_data
from spo_jax.methods.common.trajectory_checks import check as check
from spo_jax.methods.ddpo.rules import RULES as RULES
from spo_jax.methods.ddpo.settings import DDPOTrainSettings as Settings  # noqa: F401

__getattr__, __dir__ = late(__name__, {"setup": "spo_jax.methods.ddpo.method"})
