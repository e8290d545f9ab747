"""An evaluation as JSON and CSV."""

import csv
import functools
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from spo_jax.core.json_text import finite_or_null
from spo_jax.work.evaluate.compare import Cell, Comparison
from spo_jax.work.evaluate.front import fronts_of
from spo_jax.work.evaluate.result import Evaluation
from spo_jax.work.evaluate.wording import finding, remarks


def results_json(comparison: Comparison) -> dict[str, Any]:
    """Returns everything that was found, without the scores of single images, as JSON."""
    evaluation = comparison.evaluation
    scores = {name: {score: _cell_json(cell) for score, cell in row.items()} for name, row in comparison.cells.items()}
    values = {
        name: {score: cell.estimate.value for score, cell in row.items()} for name, row in comparison.cells.items()
    }
    return finite_or_null(
        {
            "protocol": dict(evaluation.protocol),
            "overridden": list(evaluation.overridden),
            "prompts": len(evaluation.prompts),
            "images_per_prompt": evaluation.images_per_prompt,
            "contestants": [
                {"name": each.name, "what": each.what, "group": each.group, "strength": each.strength}
                | {"guidance": each.guidance, "trained_on": evaluation.trained_on.get(each.name)}
                | {"finding": finding(comparison, each.name) if each.name != comparison.first else None}
                for each in evaluation.contestants
            ],
            "meanings": dict(evaluation.meanings),
            "lower_is_better": list(evaluation.lower_is_better),
            "signs": list(evaluation.signs),
            "scores": scores,
            "groups": _as_dicts(comparison.groups),
            "wins": _as_dicts(comparison.wins),
            "knees": {group: knee._asdict() for group, knee in comparison.knees.items()},
            "fronts": {
                f"{across}/{up}": fronts_of(evaluation, values, across, up)
                for across, up in permutations(evaluation.rewards, 2)
            },
            "noise_limit": comparison.limit,
            "differences_compared": comparison.compared,
            "remarks": remarks(comparison),
            "about": dict(evaluation.about),
        }
    )


def _cell_json(cell: Cell) -> dict[str, Any]:
    difference = None if cell.difference is None else cell.difference._asdict() | {"outcome": cell.outcome}
    return cell.estimate._asdict() | {"trained": cell.trained, "difference": difference}


def _as_dicts(tree: Any) -> Any:
    """Returns a tree whose leaves are named tuples as dicts."""
    return {name: _as_dicts(inner) for name, inner in tree.items()} if isinstance(tree, Mapping) else tree._asdict()


def results_csv(comparison: Comparison) -> str:
    """Returns a row for each contestant, score and group of prompts."""
    evaluation = comparison.evaluation
    head = [
        "protocol",
        "overridden",
        "contestant",
        "group_of_prompts",
        "score",
        "kind",
        "trained",
        "statistic",
        "value",
    ]
    head += ["standard_error", "low", "high", "deviation", "prompts", "difference", "difference_se", "difference_low"]
    head += ["difference_high", "outcome", "wins_against_first", "wins_low", "wins_high"]
    fixed = [evaluation.protocol.get("name", ""), " ".join(evaluation.overridden)]
    statistic = evaluation.protocol.get("statistic", "mean")
    rows = []
    for name, cells in comparison.cells.items():
        for score, cell in cells.items():
            kind = "sign" if score in evaluation.signs else "reward"
            share = comparison.wins.get(score, {}).get(name, {}).get(comparison.first)
            rows.append(
                [*fixed, name, "", score, kind, int(cell.trained), statistic, *cell.estimate[:4], None]
                + [cell.estimate.clusters, *(cell.difference[:4] if cell.difference else [None] * 4), cell.outcome]
                + list(share[:3] if share else [None] * 3)
            )
            for group, found in comparison.groups.items():
                value = found[name].get(score)
                if value is not None:
                    rows.append(
                        [*fixed, name, group, score, kind, int(cell.trained), statistic, value.value, value.error]
                        + [None, None, value.deviation]
                    )
    return _csv(head, rows)


def scores_csv(evaluation: Evaluation, out: Path) -> str:
    """Returns a row for each image with all of its scores; files below ``out`` are named relative to it."""
    scores = evaluation.score_names
    return _csv(
        ["contestant", "prompt_number", "image_number", "group_of_prompts", "file", *scores, "prompt"],
        _image_rows(evaluation, scores, out.resolve()),
    )


def _image_rows(evaluation: Evaluation, scores: Sequence[str], out: Path) -> Iterator[list[Any]]:
    folder_of = functools.cache(lambda folder: Path(relative(folder, out)))  # one for thousands of images
    for contestant in evaluation.contestants:
        measured = evaluation.scores.get(contestant.name, {})
        path = evaluation.images.get(contestant.name)
        for number, prompt in enumerate(evaluation.prompts):
            for image in range(evaluation.images_per_prompt):
                values = [measured[score][number, image] if score in measured else None for score in scores]
                drawn = None if path is None else path(number, image)
                file = "" if drawn is None else (folder_of(drawn.parent) / drawn.name).as_posix()
                yield [contestant.name, number, image, evaluation.groups[number], file, *values, prompt]


def relative(file: Path, folder: Path) -> str:
    """Returns the name of a file relative to a resolved folder, or its whole path if it lies elsewhere."""
    file = file.resolve()
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.as_posix()


def _csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        cells = [_number(cell) if isinstance(cell, float | np.floating) else cell for cell in row]
        writer.writerow([*cells, *[None] * (len(head) - len(cells))])
    return stream.getvalue()


def _number(value: float | np.floating) -> str:
    """Writes a number with the digits that single precision has; what is not finite is an empty field."""
    return f"{value:.9g}" if np.isfinite(value) else ""
