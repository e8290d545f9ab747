"""Writes what an evaluation found, in every form: JSON, tables, Markdown and a page."""

from pathlib import Path

from spo_jax.work.evaluate.result import Evaluation


def write_results(evaluation: Evaluation, out: Path) -> list[Path]:
    """Writes ``results.json``, ``results.csv``, ``scores.csv``, ``results.md`` and ``index.html``.

    Args:
      evaluation: what was found, perhaps with NaN where scores are missing.
      out: folder, which is created.

    Returns:
      The files.

    Raises:
      UserError: a file cannot be written.
    """
    raise NotImplementedError
