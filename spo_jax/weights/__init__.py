"""Weights in and out: torch's files and names on one side, trees of a given shape on the other."""
