"""What runs read: prompts, tokens, arrays on disk and preference pairs."""
