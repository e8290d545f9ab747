"""The step-aware preference model: a time-conditioned CLIP that judges half-denoised pictures."""
