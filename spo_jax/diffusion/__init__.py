"""Sampler mathematics: schedules, stochastic DDIM steps with their log-probabilities, guidance. No networks."""
