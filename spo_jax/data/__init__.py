"""What the networks are trained on: captioned pictures, prompts, tokenisers."""
