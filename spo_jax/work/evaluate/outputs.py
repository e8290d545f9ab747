"""Writes what an evaluation found, in every form: JSON, tables, Markdown and a page."""

from pathlib import Path

from spo_jax.core.files import write_json, write_text
from spo_jax.work.evaluate.compare import Comparison
from spo_jax.work.evaluate.markdown import results_markdown
from spo_jax.work.evaluate.page import write_page
from spo_jax.work.evaluate.tables import results_csv, results_json, scores_csv


def write_results(comparison: Comparison, out: Path) -> list[Path]:
    """Writes ``results.json``, ``results.csv``, ``scores.csv`` (a row an image), ``results.md`` and ``index.html``.

    Args:
      comparison: what was found, perhaps with NaN where scores are missing.
      out: folder, which is created.

    Returns:
      The files.

    Raises:
      UserError: a file cannot be written.
    """
    files = [out / name for name in ("results.json", "results.csv", "scores.csv", "results.md")]
    write_json(files[0], results_json(comparison))
    write_text(files[1], results_csv(comparison))
    write_text(files[2], scores_csv(comparison.evaluation, out))
    write_text(files[3], results_markdown(comparison))
    page = out / "index.html"
    write_page(page, comparison)
    return [*files, page]
