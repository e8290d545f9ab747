"""Stable Diffusion 1.x, 2.x and SDXL: UNet, pipeline, weight names and files."""
