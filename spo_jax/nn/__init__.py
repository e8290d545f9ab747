"""Networks and blocks that model families share, in Flax Linen, each with its config beside it."""
