"""The report of a run: one HTML file with verdict, images, scores, curves, advice and settings."""
