"""Mathematics of sampling, without networks: schedules, stochastic DDIM steps, their log-probabilities, guidance."""

SOLVERS = ("ddim", "euler", "dpm++")  # described in `spo_jax.diffusion.steps`; here, flags can list them without jax
