"""What was found, for the terminal: a block for each score, a line for each contestant."""

from spo_jax.core.words import columns, counted, readable
from spo_jax.work.evaluate.compare import Cell, Comparison
from spo_jax.work.evaluate.wording import MARKS, TRAINED, caption, cautions, difference_text, value_text


def text_table(comparison: Comparison) -> str:
    """Writes scores, differences to the first contestant with intervals, what is beyond noise, and what that means."""
    evaluation = comparison.evaluation
    statistic = evaluation.protocol.get("statistic", "mean")
    what = f"{counted(len(evaluation.prompts), 'prompt')} with {counted(evaluation.images_per_prompt, 'image')} each"
    lines = [caption(evaluation), f"{what}; {statistic} ± standard error, and the difference to {comparison.first}"]
    for score in evaluation.score_names:
        rows = [
            [name, *_cells(cells[score])] if score in cells else [name, "–", "", ""]
            for name, cells in comparison.cells.items()
        ]
        notes = ", lower is better" if score in evaluation.lower_is_better else ""
        lines += ["", f"{readable(score)}{notes}: {evaluation.meanings.get(score, '')}".rstrip(": "), *columns(rows)]
    if any(cell.trained for cells in comparison.cells.values() for cell in cells.values()):
        lines += ["", f"{TRAINED} what the contestant was trained on"]
    said = cautions(comparison)
    return "\n".join([*lines, "", *said] if said else lines)


def _cells(cell: Cell) -> tuple[str, str, str]:
    value = f"{value_text(cell.estimate)}{TRAINED if cell.trained else ''}"
    if cell.difference is None:
        return value, "", ""
    return value, difference_text(cell.difference), MARKS[cell.outcome]
