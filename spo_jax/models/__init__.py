"""The networks, in Flax Linen: UNet, autoencoders, CLIP and its time-conditioned form, LoRA."""
