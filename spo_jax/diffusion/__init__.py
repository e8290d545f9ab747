"""Mathematics of sampling, without networks: schedules, stochastic DDIM steps, their log-probabilities, guidance."""

from spo_jax.core.drawing_limits import SOLVERS as SOLVERS  # described in `spo_jax.diffusion.steps`
