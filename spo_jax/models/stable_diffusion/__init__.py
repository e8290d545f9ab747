"""Stable Diffusion 1.x, 2.x and SDXL: UNet, pipeline, names of weights and formats of files."""
