"""The report of a run: one HTML file with verdict, images, scores, curves, advice and settings."""

from spo_jax.run.report.page import write_report as write_report
