"""An evaluation as a Markdown document, in which each table has the protocol above it."""

from collections.abc import Callable, Iterable, Sequence

from spo_jax.core.markdown import code, plain
from spo_jax.core.statistics import Share
from spo_jax.work.evaluate.compare import Cell, Comparison
from spo_jax.work.evaluate.wording import (
    MARKS,
    TRAINED,
    about,
    caption,
    difference_text,
    finding,
    group_text,
    knee_definition,
    knee_text,
    made_fields,
    percent_text,
    protocol_fields,
    remarks,
    title,
    value_text,
)


def results_markdown(comparison: Comparison) -> str:
    """Returns everything that was found, without the scores of single images."""
    evaluation = comparison.evaluation
    above = f"*{plain(caption(evaluation))}*"
    parts = [f"# {plain(title(evaluation))}", plain(about(evaluation))]
    parts.append(" · ".join(f"{name} {code(value)}" for name, value in protocol_fields(evaluation).items()))
    parts.append(above)
    parts.append(
        "\n".join(
            f"- **{plain(each.name)}**: {plain(_description(comparison, each.name))}" for each in evaluation.contestants
        )
    )
    scores = comparison.score_names
    parts += ["## Scores", above, _table(["contestant", *scores], _rows(comparison, scores, _value_cell))]
    if comparison.compared:
        rows = _rows(comparison, scores, _difference_cell)[1:]
        parts += [f"## Differences to {plain(comparison.first)}", above, _table(["contestant", *scores], rows)]
    parts += _group_parts(comparison, scores, above)
    parts += _win_parts(comparison, above)
    if comparison.knees:
        knees = [f"- {plain(knee_text(comparison, group, knee))}" for group, knee in comparison.knees.items()]
        parts += ["## Strengths", "\n".join(knees), plain(knee_definition(comparison))]
    parts += ["## How to read this", "\n".join(f"- {plain(remark)}" for remark in remarks(comparison))]
    meanings = [
        f"- {code(score)}: {plain(meaning)}" for score, meaning in evaluation.meanings.items() if score in scores
    ]
    if meanings:
        parts.append("\n".join(meanings))
    made = [f"- {plain(name)}: {code(str(value))}" for name, value in made_fields(evaluation).items()]
    if made:
        parts += ["## What made it", "\n".join(made)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _description(comparison: Comparison, name: str) -> str:
    what = next(each.what for each in comparison.evaluation.contestants if each.name == name)
    return what if name == comparison.first else f"{what}. {finding(comparison, name)}"


def _rows(comparison: Comparison, scores: Sequence[str], write: Callable[[Cell], str]) -> list[list[str]]:
    return [
        [plain(name), *(write(cells[score]) if score in cells else "–" for score in scores)]
        for name, cells in comparison.cells.items()
    ]


def _value_cell(cell: Cell) -> str:
    return value_text(cell.estimate) + (TRAINED if cell.trained else "")


def _difference_cell(cell: Cell) -> str:
    if cell.difference is None:
        return "–"
    return f"{difference_text(cell.difference)} {MARKS[cell.outcome]}{TRAINED if cell.trained else ''}"


def _group_parts(comparison: Comparison, scores: Sequence[str], above: str) -> list[str]:
    """The scores of each group of prompts; in brackets, the deviation of averages over blocks of prompts."""
    parts = []
    for group, found in comparison.groups.items():
        rows = [
            [plain(name), *(group_text(values[score]) if score in values else "–" for score in scores)]
            for name, values in found.items()
        ]
        blocks = max((value.blocks for values in found.values() for value in values.values()), default=0)
        size = comparison.evaluation.protocol.get("group_size")
        meaning = f"Mean (and deviation) of {blocks} averages over {size} prompts each." if blocks else ""
        parts += [f"## Prompts of {plain(group)}", above, meaning, _table(["contestant", *scores], rows)]
    return parts


def _win_parts(comparison: Comparison, above: str) -> list[str]:
    parts = []
    for score, matrix in comparison.wins.items():
        names = [name for name in matrix if matrix[name]]
        if names:
            rows = [
                [f"**{plain(name)}**", *(_share(matrix[name].get(opponent)) for opponent in names)] for name in names
            ]
            meaning = (
                f"How often the image of the row has the better {code(score)} than that of the column; a tie is half."
            )
            table = _table(["", *map(plain, names)], rows)
            parts += [f"## Wins by {plain(score)}", above, meaning, table]
    return parts


def _share(share: Share | None) -> str:
    return (
        "" if share is None else f"{percent_text(share.value)} [{percent_text(share.low)}, {percent_text(share.high)}]"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table, whose columns of numbers are aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
