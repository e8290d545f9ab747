"""The page: everything that an evaluation found in one file, which needs neither a network nor any other file."""

import os
import shlex
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import jinja2

from spo_jax.core.files import write_text
from spo_jax.core.trees import flatten
from spo_jax.core.words import listed, readable
from spo_jax.run.report.page import page_environment
from spo_jax.work.evaluate.compare import Comparison
from spo_jax.work.evaluate.front import fronts_of, strengths_of
from spo_jax.work.evaluate.gallery import MOST_BYTES, gallery
from spo_jax.work.evaluate.wording import (
    MARKS,
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


def write_page(path: str | os.PathLike, comparison: Comparison, most_bytes: int = MOST_BYTES) -> None:
    """Writes the page.

    Args:
      path: path of the file.
      comparison: what was found.
      most_bytes: bytes that the images in the page may have; see `spo_jax.work.evaluate.gallery`.

    Raises:
      UserError: the file cannot be written.
    """
    path = Path(path)
    evaluation = comparison.evaluation
    shown = gallery(evaluation, path.parent, most_bytes)
    scores = comparison.score_names
    text = _template().render(
        title=title(evaluation),
        about=about(evaluation),
        caption=caption(evaluation),
        overridden=bool(evaluation.overridden),
        findings=_findings(comparison),
        scores=[{"name": score, "text": readable(score), "sign": score in evaluation.signs} for score in scores],
        lower=[readable(score) for score in scores if score in evaluation.lower_is_better],
        rows=_rows(comparison, scores),
        first=comparison.first,
        groups=_groups(comparison, scores),
        block=evaluation.protocol.get("group_size"),
        wins=_wins(comparison),
        knees=[knee_text(comparison, group, knee) for group, knee in comparison.knees.items()],
        knee_definition=knee_definition(comparison),
        remarks=remarks(comparison),
        meanings={readable(score): evaluation.meanings[score] for score in scores if evaluation.meanings.get(score)},
        fields=protocol_fields(evaluation),
        made=flatten(made_fields(evaluation), sep="."),
        elsewhere=listed(evaluation.from_elsewhere),
        gallery=shown,
        votes_folder=str(path.parent / shown["folder"]),  # the folder is absolute, if it is not below the page
        data=_data(comparison, scores) | shown,
    )
    write_text(path, text + "\n")


def _template() -> jinja2.Template:
    environment = page_environment(Path(__file__).parent / "template")
    environment.filters |= {"percent": percent_text, "quoted": shlex.quote}
    # The order of contestants and scores is that of the tables, and JSON has no NaN.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "allow_nan": False}
    return environment.get_template("page.html")


def _findings(comparison: Comparison) -> list[dict[str, Any]]:
    evaluation = comparison.evaluation
    return [
        {
            "name": each.name,
            "what": each.what,
            "guidance": "" if each.guidance is None else f"{each.guidance:g}",
            "finding": "" if each.name == comparison.first else finding(comparison, each.name),
            "trained": ", ".join(map(readable, filter(None, evaluation.trained_on.get(each.name, "").split(",")))),
        }
        for each in evaluation.contestants
    ]


def _rows(comparison: Comparison, scores: list[str]) -> list[dict[str, Any]]:
    knees = {knee.knee for knee in comparison.knees.values()}
    return [
        {
            "name": name,
            "knee": name in knees,
            "cells": [
                {
                    "value": value_text(cells[score].estimate),
                    "trained": cells[score].trained,
                    "difference": difference_text(difference) if (difference := cells[score].difference) else "",
                    "outcome": cells[score].outcome,
                    "mark": MARKS[cells[score].outcome],
                }
                if score in cells
                else None
                for score in scores
            ],
        }
        for name, cells in comparison.cells.items()
    ]


def _groups(comparison: Comparison, scores: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "name": group,
            "blocks": max((value.blocks for values in found.values() for value in values.values()), default=0),
            "rows": [
                (name, [group_text(values[score]) if score in values else "–" for score in scores])
                for name, values in found.items()
            ],
        }
        for group, found in comparison.groups.items()
    ]


def _wins(comparison: Comparison) -> list[dict[str, Any]]:
    """The win-rate matrices; shares in whole per cent, as people read them."""
    found = []
    for score, matrix in comparison.wins.items():
        names = [name for name in matrix if matrix[name]]
        if names:
            rows = [(name, [matrix[name].get(opponent) for opponent in names]) for name in names]
            found.append({"score": score, "text": readable(score), "names": names, "rows": rows})
    return found


def _data(comparison: Comparison, scores: list[str]) -> dict[str, Any]:
    """What the scripts of the page need."""
    evaluation = comparison.evaluation
    values = {
        name: {score: cell.estimate.value for score, cell in row.items()} for name, row in comparison.cells.items()
    }
    errors = {
        name: {score: cell.estimate.error for score, cell in row.items()} for name, row in comparison.cells.items()
    }
    lines = {group: [member.name for member in members] for group, members in strengths_of(evaluation).items()}
    knees = [knee.knee for knee in comparison.knees.values() if knee.knee]
    return {
        "contestants": [
            {"name": each.name, "group": each.group or each.name, "strength": each.strength, "knee": each.name in knees}
            for each in evaluation.contestants
        ],
        "scores": [
            {"name": score, "text": readable(score), "sign": score in evaluation.signs}
            | {"lower": score in evaluation.lower_is_better}
            for score in scores
        ],
        "values": values,
        "errors": errors,
        "lines": lines,
        "fronts": {
            f"{across}/{up}": fronts_of(evaluation, values, across, up)
            for across, up in permutations(evaluation.rewards, 2)
        },
        "wins": _shares(comparison.wins),
    }


def _shares(wins: Mapping[str, Any]) -> dict[str, Any]:
    return {
        score: {name: {other: list(share[:3]) for other, share in row.items()} for name, row in matrix.items()}
        for score, matrix in wins.items()
    }
