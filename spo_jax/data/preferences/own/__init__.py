"""The forms in which people keep preferences of their own; the source ``folder`` finds out which one a folder has."""
