"""Training methods; a method is a folder, found by its name or by a dotted path."""
