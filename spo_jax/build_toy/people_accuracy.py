"""Measures what a judge hears: ``python -m spo_jax.build_toy.people_accuracy --spm=toy_people``.

The judge is a preference model (``--spm``) or a latent reward model (``--lrm``). The pairs are the held-out ones that
``spo_jax.build_toy.people`` has prepared (``--config.data_dir``). At each timestep of the config it prints, with
standard errors:

people     pairs that are ordered as the annotator of the pair has labelled them, ties counting half
truth      pairs that are ordered as by the truth, likewise
alone      pairs ordered right where only one of three differs: the terms of the aesthetic, the layout, the accuracy
rank       rank correlation of the difference of the two scores with the difference of each measure

The first row of the ranks is about the labels themselves: what a model that heard everything could find in them.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from scipy.stats import spearmanr

from spo_jax.core.cli import callable_module, run_command
from spo_jax.core.config_flag import define_config
from spo_jax.core.errors import UserError
from spo_jax.core.files import check_free, check_writable, local_path, write_json
from spo_jax.core.progress import stage
from spo_jax.core.statistics import mean_and_error
from spo_jax.core.typing import Float, Int
from spo_jax.data.preferences.format import Preferences, open_preferences
from spo_jax.data.preferences.images import decode_rgb
from spo_jax.evaluate_spm import check_judge_settings, check_judges
from spo_jax.methods import read_settings
from spo_jax.methods.common.checks import check_model
from spo_jax.methods.common.preference.settings import JudgeTrainSettings
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.toy import annotators

HEARD = "heard.json"
GROUPS = tuple(group for group in annotators.SHARES if group != "noise")
CLEAR = 0.8  # standard deviations by which a group differs clearly
EQUAL = 0.4  # and by which it hardly does

Differences = Mapping[str, Float[np.ndarray, " n"]]


def people_accuracy(
    settings: JudgeTrainSettings, spm: str, out: str | os.PathLike, overwrite: bool = False, lrm: str = ""
) -> dict[str, Any]:
    """Measures a judge on pairs of `spo_jax.build_toy.people`, and writes ``heard.json`` to ``out``.

    Args:
      settings: settings of the training of a judge; ``data_dir`` is the folder ``people`` of the pairs,
        beside which ``exact`` holds the labels by the truth.
      spm: folder, file or hub id of the preference model, ``toy`` or ``toy_people``; empty for none.
      out: folder for the results.
      overwrite: whether to replace an earlier measurement.
      lrm: the latent reward model in place of ``spm``: folder, hub id or ``toy_people``.

    Returns:
      What was written: the measurements of `summarised` by timestep, and those of the labels under ``labels``.

    Raises:
      UserError: a setting, file or folder cannot be used.
    """
    check_judge_settings(settings, "configs/spm_toy_people.py")
    if bool(spm) == bool(lrm):
        raise UserError("expected --spm or --lrm: a preference model, or a latent reward model, to measure")
    out = local_path(out)
    check_writable(out)
    check_free(out / HEARD, overwrite)
    check_model(settings)
    check_judges(settings, (spm,), lrm)
    if isinstance(settings, SPMTrainSettings) and settings.relabel.model:
        raise UserError(f"--config.relabel.model={settings.relabel.model}: expected none, the labels are people's")
    people = open_preferences(settings.data_dir, settings.eval_split, "eval_split")
    exact = open_preferences(local_path(settings.data_dir).parent / "exact", settings.eval_split, "eval_split")
    if people.prompts != exact.prompts or len(people) != len(exact):
        raise UserError(f"{people.folder} and {exact.folder} hold different pairs: make both with one command")
    with stage("importing JAX"):
        from spo_jax.work.evaluate_spm import Judges, score_pairs

    ((rows, scores),) = score_pairs(settings, Judges(spm, lrm=lrm), people).values()
    with stage("measuring the images"):
        differences = measured_differences(people, rows)
    labels = {"people": people.labels[rows], "truth": exact.labels[rows]}
    told = {kind: {"rank": ranks(values[:, 0], differences)} for kind, values in labels.items()}
    heard = {str(t): summarised(values, labels, differences) for t, values in scores.items()}
    summary = {**({"spm": spm} if spm else {"lrm": lrm}), "pairs": len(rows), "labels": told, "timesteps": heard}
    write_json(out / HEARD, summary)
    return summary


def measured_differences(pairs: Preferences, rows: Int[np.ndarray, " n"]) -> Differences:
    """Returns the measures of the first image of each pair minus those of the second."""
    prompts = [pairs.prompts[pairs.prompt[row]] for row in rows]
    sides = zip(*(pairs.images(int(row)) for row in rows), strict=True)
    first, second = (
        annotators.measures(np.stack([decode_rgb(file) for file in files]).astype(np.float32) / 127.5 - 1, prompts)
        for files in sides
    )
    return {name: first[name] - second[name] for name in first}


def summarised(
    scores: Float[np.ndarray, "n 2"], labels: Mapping[str, annotators.Labels], differences: Differences
) -> dict[str, Any]:
    """Compares scores with labels and with measures.

    Args:
      scores: scores of both images of each pair.
      labels: labels of the pairs by kind.
      differences: differences of the measures.

    Returns:
      ``people`` and ``truth``: accuracy and standard error; ``alone``: likewise by group, with the number of pairs;
      ``rank``: rank correlations by measure.
    """
    difference = scores[:, 0] - scores[:, 1]
    ordered = annotators.labels_of(difference, 0.0)
    summary: dict[str, Any] = {kind: _estimate(annotators.agreement(ordered, own)) for kind, own in labels.items()}
    groups = group_differences(differences)
    summary["alone"] = {}
    for group, own in groups.items():
        others = [np.abs(values) < EQUAL for name, values in groups.items() if name != group]
        alone = np.logical_and.reduce([np.abs(own) > CLEAR, *others])
        right = annotators.agreement(ordered[alone], annotators.labels_of(own[alone], 0.0))
        summary["alone"][group] = _estimate(right) | {"pairs": int(alone.sum())}
    return summary | {"rank": ranks(difference, differences)}


def group_differences(differences: Differences) -> Differences:
    """Returns the sum of each group's differences, each measure and the sum in standard deviations."""
    groups = {}
    for group in GROUPS:
        own = [values for name, values in differences.items() if name.startswith(f"{group}/")]
        groups[group] = _standard(np.sum([_standard(values) for values in own], axis=0))
    return groups


def _standard(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Divides by the standard deviation; differences that are always 0 stay 0."""
    return values / max(float(values.std()), 1e-6)


def ranks(ours: Float[np.ndarray, " n"], differences: Differences) -> dict[str, float | None]:
    """Returns the rank correlations with each measure; None for a measure in which no pair differs."""
    return {
        name: float(spearmanr(ours, values).statistic) if np.ptp(values) and np.ptp(ours) else None
        for name, values in differences.items()
    }


def _estimate(values: Float[np.ndarray, " n"]) -> dict[str, float | None]:
    if not len(values):
        return {"value": None, "error": None}
    return dict(zip(("value", "error"), mean_and_error(values), strict=True))


def _shown(estimate: Mapping[str, Any]) -> str:
    error = "" if estimate["error"] is None else f" ± {estimate['error']:.3f}"
    return "none" if estimate["value"] is None else f"{estimate['value']:.3f}{error}"


def print_heard(summary: Mapping[str, Any]) -> None:
    """Prints what was measured, as the tables of docs/toy_people.md."""
    alone = next(iter(summary["timesteps"].values()))["alone"]
    heads = ["t", "people", "truth", *(f"{group} alone ({alone[group]['pairs']})" for group in GROUPS)]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for t, values in summary["timesteps"].items():
        cells = [values["people"], values["truth"], *values["alone"].values()]
        print(f"| {t} | " + " | ".join(map(_shown, cells)) + " |")
    names = list(summary["labels"]["people"]["rank"])
    print("\n| rank correlation of | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|")
    lines = {f"labels by {kind}": values for kind, values in summary["labels"].items()}
    lines |= {f"scores at t = {t}": values for t, values in summary["timesteps"].items()}
    for line, values in lines.items():
        cells = ["–" if value is None else f"{value:.2f}" for value in values["rank"].values()]
        print(f"| {line} | " + " | ".join(cells) + " |")


def run() -> None:
    """Runs the command."""
    config = define_config(default="configs/spm_toy_people.py", example="configs/spm_toy_people.py")
    spm = flags.DEFINE_string("spm", "", "Measure this preference model: folder, file, 'toy' or 'toy_people'.")
    lrm = flags.DEFINE_string("lrm", "", "Measure this latent reward model: folder, hub id or 'toy_people'.")
    out = flags.DEFINE_string("out", "runs/people_accuracy", f"Write {HEARD} to this folder.")
    overwrite = flags.DEFINE_bool("overwrite", False, "Replace an earlier measurement in --out.")

    def main(_) -> None:
        settings = read_settings(config.value)
        print_heard(people_accuracy(settings, spm.value, Path(out.value), overwrite.value, lrm.value))

    run_command(main)


callable_module(__name__, people_accuracy)

if __name__ == "__main__":
    sys.exit(run())
