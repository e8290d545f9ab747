"""Step-by-step preference optimisation (SPO) of text-to-image diffusion models, in JAX."""

__version__ = "0.1.0"
