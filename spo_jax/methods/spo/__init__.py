"""Step-by-step preference optimisation (arXiv 2406.04314)."""
