"""How well a preference model orders pairs that people have decided, against timestep; and a plain CLIP beside it."""

import os
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from spo_jax.core.errors import UserError
from spo_jax.core.files import check_free, check_writable, write_json
from spo_jax.core.typing import Float, Key
from spo_jax.data.preferences.format.format import Preferences, open_preferences
from spo_jax.data.tokenizer import Tokenizer
from spo_jax.methods.spm.accuracy import Agreement, Evaluator, summarised
from spo_jax.methods.spm.init import Start, load_start
from spo_jax.methods.spm.plot import accuracy_figure, write_figure
from spo_jax.methods.spm.programs import Networks
from spo_jax.methods.spm.relabel import clean_scores, load_judge, new_labels
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.methods.spm.split import Split
from spo_jax.models.stable_diffusion.pipeline import Pipeline, load_pipeline
from spo_jax.parallel.mesh import check_divides, make_mesh
from spo_jax.parallel.multihost import is_writer
from spo_jax.parallel.sharding import make
from spo_jax.rewards.common.preference_model import check_kind, read_config, resolve_model

ACCURACY = "accuracy.json"
SPM_LINE, PLAIN_LINE = "step-aware preference model", "plain CLIP on the same pictures"


def load_frozen_pipeline(settings: SPMTrainSettings, mesh: Mesh) -> Pipeline:
    """The diffusion model whose clean predictions are judged."""
    logging.info("reading %s", settings.model)
    return load_pipeline(
        settings.model, revision=settings.revision or None, dtype=jnp.dtype(settings.dtype), mesh=mesh,
        vae=settings.vae, base=settings.base,
    )  # fmt: skip


def load_clip(settings: SPMTrainSettings, model: str, key: Key, mesh: Mesh, random: bool = False) -> Start:
    """A preference model, or a plain CLIP as one that its time conditioning does not change."""
    logging.info("reading %s", model)
    tokenizer, dtype = settings.tokenizer or None, jnp.dtype(settings.dtype)
    return load_start(
        model, key, tokenizer=tokenizer, random=random, remat=settings.remat, dtype=dtype, mesh=mesh
    )  # fmt: skip


def relabelled(
    settings: SPMTrainSettings, folder: Path, mesh: Mesh, *splits: Preferences
) -> list[Float[np.ndarray, "n 2"] | None]:
    """Labels of each split: made anew where the settings ask for it, else None.

    Args:
      folder: where scores are kept if the settings name no other.
    """
    relabel, loading = settings.relabel, settings.loading
    if not relabel.model:
        return [None] * len(splits)
    logging.info("reading %s for labels", relabel.model)
    # float32, as the reference has it: labels are made once, and small gaps decide about ties.
    judge = load_judge(relabel.model, tokenizer=relabel.tokenizer or None, mesh=mesh)
    folder = Path(relabel.folder or folder)
    return [
        new_labels(
            clean_scores(folder / split.split, split, judge, threads=loading.threads, workers=loading.workers),
            relabel.margin,
        )
        for split in splits
    ]


def evaluate_spm(
    settings: SPMTrainSettings, spm: str, out: str | os.PathLike, plain: str = "", overwrite: bool = False
) -> dict[str, Agreement]:
    """Measures a preference model on the settings' evaluation pairs; ``accuracy.json``, ``.svg``, ``.png`` in ``out``.

    Args:
      spm: folder, file or hub id of the preference model.
      plain: of a plain CLIP, measured on the same pictures; empty is none.
      overwrite: replace those files if they are there.

    Returns:
      Line of the plot to timestep to what each pair counts.

    Raises:
      UserError: a setting, file or folder that does not work.
    """
    out = Path(out)
    check_writable(out)
    check_free(out / ACCURACY, overwrite)
    preferences = open_preferences(settings.data_dir, settings.eval_split)
    path = resolve_model(spm)
    config, _ = read_config(path)
    mesh = make_mesh(settings.mesh)
    check_divides("eval.batch", settings.eval.batch, mesh)
    with jax.set_mesh(mesh):
        pipeline = load_frozen_pipeline(settings, mesh)
        check_kind(path, config, pipeline.kind, "--spm")
        key = make(lambda: jax.random.key(settings.seed), mesh)
        starts = {}
        for line, model in ((SPM_LINE, spm), (PLAIN_LINE, plain)):
            if model:
                starts[line] = start = load_clip(settings, model, key, mesh)
                if start.is_plain != (line == PLAIN_LINE):
                    flag, expected = ("--plain", "without") if line == PLAIN_LINE else ("--spm", "with")
                    raise UserError(f"{flag}={model}: expected a model {expected} time conditioning")
        (labels,) = relabelled(settings, out / "labels", mesh, preferences)
        measured = {}
        for line, start in starts.items():
            networks = Networks(pipeline, start.clip, settings, mesh)
            split = Split.of(preferences, pipeline, Tokenizer(start.tokenizer), labels)
            measured[line] = Evaluator(networks, networks.frozen(), split, mesh).measure(start.params)
    if is_writer():
        write_accuracy(out, measured)
    return measured


def write_accuracy(folder: Path, measured: Mapping[str, Agreement]) -> None:
    """``accuracy.json``, ``accuracy.svg`` and ``accuracy.png``, and the numbers on the screen.

    JSON: line to timestep to accuracy, its standard error and the number of pairs; chance is a half, ties counting so.
    """
    lines = {line: summarised(agreement) for line, agreement in measured.items()}
    write_json(folder / ACCURACY, lines | {"chance": 0.5})
    write_figure(folder / "accuracy", accuracy_figure(measured))
    for line, agreement in measured.items():
        print(f"\n{line}:")
        for t, values in summarised(agreement).items():
            error = "" if values["standard_error"] is None else f" ± {values['standard_error']:.4f}"
            print(f"  pair accuracy at t = {t:>4s}  {values['accuracy']:.4f}{error}  ({values['pairs']} pairs)")
