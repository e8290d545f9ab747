"""Mathematics of sampling, without networks: schedules, stochastic DDIM steps, their log-probabilities, guidance."""
