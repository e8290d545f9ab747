"""Direct preference for denoising diffusion policy optimisation, D3PO (arXiv 2311.13231)."""

from spo_jax.core.lazy import late
from spo_jax.methods.common.prompts import read_data as read_data
from spo_jax.methods.common.trajectory_checks import check as check
from spo_jax.methods.d3po.rules import RULES as RULES
from spo_jax.methods.d3po.settings import D3POTrainSettings as Settings  # noqa: F401

__getattr__, __dir__ = late(__name__, {"setup": "spo_jax.methods.d3po.method"})
