"""What the curves of a run say in plain words: rules, each with a threshold and its reason, and what they read."""
