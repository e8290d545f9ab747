"""The Stable Diffusion bundle: reading it from a folder, and what it does (encode, denoise, decode, sample)."""
