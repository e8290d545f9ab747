"""The same images at several strengths of a LoRA, and their scores, so that a person picks a strength."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from spo_jax.core.errors import UserError
from spo_jax.core.files import write_json
from spo_jax.core.images import to_uint8, write_png
from spo_jax.core.json_text import finite_or_null
from spo_jax.core.progress import stage
from spo_jax.core.words import columns, counted, readable, with_error
from spo_jax.data.contact_sheet import labelled_grid
from spo_jax.data.prompts import load_prompts
from spo_jax.methods.common.before_after import BeforeAfter, load_rewards
from spo_jax.methods.common.checks import reward_options
from spo_jax.methods.common.judged import is_judge
from spo_jax.methods.common.settings import AdapterSettings, EvalSettings
from spo_jax.models.base import Pipeline
from spo_jax.models.lora import check_fits
from spo_jax.nn.lora import scaled
from spo_jax.rewards import check_reward
from spo_jax.rewards.base import Context, Reward, Scores
from spo_jax.run.report.scores import MARKS
from spo_jax.run.verdict import outcomes
from spo_jax.work.export.checks import STRENGTHS_SHEET, STRENGTHS_TABLE
from spo_jax.work.export.metadata import model_name
from spo_jax.work.export.source import Base, Source, read_source

SHOWN_PROMPTS = 16  # rows of the grid


def compare_strengths(
    place: Path,
    scales: Sequence[float],
    out: Path,
    given: Base,
    *,
    rewards: str,
    prompts: str | list[str],
    count: int | None,
) -> dict[str, Any]:
    """Draws and scores images, after `spo_jax.export.compare_strengths` has checked what it can without jax.

    Both files are written anew after every strength, so that an interrupted sweep keeps what is finished.

    Args:
      place: run folder, checkpoint folder or LoRA file; the other arguments are those of
        `spo_jax.export.compare_strengths`.
      given: the base model that the user named.

    Returns:
      The content of ``strengths.json``.

    Raises:
      UserError: as `spo_jax.export.compare_strengths`.
    """
    source = read_source(place, given, needs_shapes=False)
    if not source.base.model:
        raise UserError(f"--run={place} is a LoRA file: name its base model with --model")
    is_list = isinstance(prompts, list)
    settings = _settings(source, rewards, "" if is_list else prompts, count)
    texts = prompts if is_list else _prompts(settings.eval.prompts, prompts)
    for spec in settings.eval.reward_names if rewards else ():
        check_reward(spec, Context(options=reward_options(settings, spec), field="--rewards"))
    evaluation = _evaluation(source, settings, texts, bool(rewards), bool(given.model))
    named = prompts if is_list else settings.eval.prompts
    return _sweep(source, (0.0, *scales), evaluation, out, named)


def _settings(source: Source, rewards: str, prompts: str, count: int | None) -> AdapterSettings:
    """Returns the run's settings, with what the user chose for the evaluation; the defaults for a LoRA file."""
    settings = source.record.settings if source.record else AdapterSettings(model=source.base.model)
    chosen = {"rewards": rewards, "prompts": prompts, "images": count}
    chosen = {name: value for name, value in chosen.items() if value}
    if chosen.get("rewards", settings.eval.rewards) != settings.eval.rewards:
        chosen["weights"] = ""  # the run's weights are those of its own rewards
    return dataclasses.replace(settings, eval=dataclasses.replace(settings.eval, **chosen))


def _prompts(place: str, given: str) -> list[str]:
    try:
        return load_prompts(place)
    except UserError as error:
        if given:
            raise
        raise UserError(f"the run's prompts are not there any more ({error}): name others with --prompts") from error


def _evaluation(
    source: Source, settings: AdapterSettings, prompts: Sequence[str], scored: bool, is_other_model: bool
) -> BeforeAfter:
    """Reads the base model and the rewards."""
    vae = "" if is_other_model else settings.vae
    with stage(f"reading {source.base.model}"):
        pipeline: Pipeline = source.base.open(vae=vae, dtype=jnp.dtype(settings.dtype))
    lora = source.lora
    check_fits(lora.tree, pipeline.params[pipeline.TRAINED], f"--run={source.place}", source.base.model)
    judges: list[Reward] = load_rewards(settings.eval.reward_names, pipeline, None, settings, {}) if scored else []
    return BeforeAfter(pipeline, settings.eval, lora.alpha / lora.rank, prompts, judges)


def _sweep(
    source: Source, scales: Sequence[float], evaluation: BeforeAfter, out: Path, prompts: str | list[str]
) -> dict[str, Any]:
    """Draws the images of each strength in the same compiled program, because a strength is folded into the tree."""
    tree = jax.tree.map(jnp.asarray, source.lora.tree)
    shown, table = [], []
    base = {}
    for scale in scales:
        images = evaluation.images(scaled(tree, scale), title=f"images at strength {scale:g}")
        with stage(f"scoring the images at strength {scale:g}"):
            scores = evaluation.measure(images) if base else evaluation.measure_base(images)
        base = base or scores
        shown.append(to_uint8(images[:SHOWN_PROMPTS]))
        table.append({"strength": scale, "scores": _compared(source, evaluation, base, scores)})
        rows = list(zip(evaluation.prompts, zip(*shown, strict=True), strict=False))
        sheet = labelled_grid(rows, [_label(entry["strength"]) for entry in table])
        write_png(out / STRENGTHS_SHEET, sheet)
        result = _result(source, evaluation.settings, table, prompts)
        write_json(out / STRENGTHS_TABLE, result)
    return result


def _compared(source: Source, evaluation: BeforeAfter, base: Scores, scores: Scores) -> dict[str, dict[str, Any]]:
    """Compares scores with those at strength 0, and says which are the judge's that the LoRA was trained to please."""
    settings = source.record.settings if source.record else None
    return {
        name: score | {"is_judge": settings is not None and is_judge(score["reward"], settings)}
        for name, score in evaluation.compare(base, scores).items()
    }


def _label(scale: float) -> str:
    return f"{scale:g}" if scale else "0 (base model)"


def _result(
    source: Source, settings: EvalSettings, table: Sequence[Mapping[str, Any]], prompts: str | list[str]
) -> dict[str, Any]:
    """Returns the content of ``strengths.json``; ``prompts`` is their file or, if the user gave a list, the list."""
    how = {name: getattr(settings, name) for name in ("images", "prompts", "seed", "steps", "guidance_scale")}
    how["prompts"] = prompts
    about = {"run": str(source.place), "model": model_name(source.base.model)}
    return finite_or_null({**about, **how, "strengths": list(table)})


def text_table(result: Mapping[str, Any]) -> str:
    """Writes the scores of `compare_strengths` for people: a block for each score, a line for each strength.

    A change is called better or worse only beyond the noise, with the limit widened for all that is compared.
    """
    strengths = result["strengths"]
    names = list(strengths[0]["scores"])
    compared = {f"{entry['strength']} {name}": entry["scores"][name] for entry in strengths[1:] for name in names}
    found = outcomes(compared)
    lines = [f"{counted(result['images'], 'image')} at each strength, same prompts and noise; mean ± standard error"]
    for name in names:
        score = strengths[0]["scores"][name]
        notes = [", lower is better"] if score["lower_is_better"] else []
        notes += [", the judge that the LoRA was trained to please"] if score["is_judge"] else []
        lines += ["", f"{readable(name)}{''.join(notes)}: {score['meaning']}"]
        lines += columns([_cells(entry["strength"], entry["scores"][name], found, name) for entry in strengths])
    return "\n".join(lines)


def _cells(strength: float, score: Mapping[str, Any], found: Mapping[str, str], name: str) -> tuple[str, ...]:
    mean = with_error(score["after"], score["after_se"])
    if not strength:
        return _label(strength), mean, "", ""
    change = with_error(score["change"], score["change_se"], sign="+")
    return _label(strength), mean, f"change {change}", MARKS[found[f"{strength} {name}"]]
