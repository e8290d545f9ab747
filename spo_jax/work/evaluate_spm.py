"""The work of `spo_jax.evaluate_spm`: reads the judges and measures them on the same pairs."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from spo_jax.core.errors import UserError
from spo_jax.core.memory import explaining_memory
from spo_jax.core.progress import stage
from spo_jax.core.typing import Float, Int, Params
from spo_jax.data.preferences.format import Preferences
from spo_jax.methods.common.model import open_model
from spo_jax.methods.common.preference.accuracy import Evaluator, print_accuracy, write_accuracy
from spo_jax.methods.common.preference.data import Agreement
from spo_jax.methods.common.preference.rows import Split
from spo_jax.methods.common.preference.settings import JudgeTrainSettings
from spo_jax.methods.common.preference.training import JudgeTraining
from spo_jax.methods.lrm.method import LRMRun
from spo_jax.methods.lrm.programs import LRMTraining
from spo_jax.methods.lrm.settings import LRMTrainSettings
from spo_jax.methods.spm.method import PLAIN_LINE, SPM_LINE
from spo_jax.methods.spm.parts import load_clip, relabelled
from spo_jax.methods.spm.programs import SPMTraining
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.models.base import Pipeline
from spo_jax.parallel.mesh import check_divides, make_mesh
from spo_jax.parallel.multihost import is_writer
from spo_jax.parallel.sharding import make
from spo_jax.rewards.common.latent_weights import read_model
from spo_jax.rewards.common.lrm_files import open_source
from spo_jax.rewards.common.preference_files import check_kind, read_config, resolve_model
from spo_jax.rewards.common.preference_model import read_tokenizer
from spo_jax.rewards.common.protocol import Context
from spo_jax.run.memory import memory_advice

LRM_LINE = LRMRun.LINE
T = TypeVar("T")


class Judges(NamedTuple):
    """The judges to measure, by folder, file, hub id or a name of the toy's; empty for none.

    Attributes:
      spm: the preference model.
      plain: a plain CLIP.
      lrm: the latent reward model.
    """

    spm: str = ""
    plain: str = ""
    lrm: str = ""


class Opened(NamedTuple):
    """A judge that is ready to be measured.

    Attributes:
      line: its name in tables and figures.
      training: the method that trains it, bound to its models.
      params: its weights.
      tokenize: its tokenizer.
      predicts: whether the diffusion model predicts what it sees.
    """

    line: str
    training: JudgeTraining
    params: Params
    tokenize: Callable[[Sequence[str]], Int[np.ndarray, "u ..."]]
    predicts: bool


def evaluate_spm(
    settings: JudgeTrainSettings, judges: Judges, out: Path, preferences: Preferences
) -> dict[str, Agreement]:
    """Measures the judges, after `spo_jax.evaluate_spm.evaluate_spm` has checked what it can without jax.

    Args:
      settings: as in `spo_jax.evaluate_spm.evaluate_spm`, like ``out``.
      judges: the judges.
      out: folder for the results.
      preferences: the evaluation pairs.

    Returns:
      As `spo_jax.evaluate_spm.evaluate_spm`.

    Raises:
      UserError: as `spo_jax.evaluate_spm.evaluate_spm`.
    """
    measured = _with_evaluators(settings, judges, out, preferences, Evaluator.measure)
    if is_writer():
        write_accuracy(out, measured)
        print_accuracy(measured)
    return measured


def score_pairs(
    settings: JudgeTrainSettings, judges: Judges, preferences: Preferences
) -> dict[str, tuple[Int[np.ndarray, " n"], dict[int, Float[np.ndarray, "n 2"]]]]:
    """Scores the evaluation pairs, in place of comparing the scores with labels.

    Args:
      settings: as in `spo_jax.evaluate_spm.evaluate_spm`, without new labels.
      judges: the judges, likewise.
      preferences: the evaluation pairs.

    Returns:
      By name of the judge, (the rows of the pairs, by timestep the scores of both images).

    Raises:
      UserError: as `spo_jax.evaluate_spm.evaluate_spm`.
    """

    def scored(evaluator: Evaluator, params: Params) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        return evaluator.rows, evaluator.scores(params)

    return _with_evaluators(settings, judges, Path(), preferences, scored)


def _with_evaluators(
    settings: JudgeTrainSettings,
    judges: Judges,
    out: Path,
    preferences: Preferences,
    use: Callable[[Evaluator, Params], T],
) -> dict[str, T]:
    """Returns, for each of the judges by name, what ``use`` makes of its evaluator and its weights.

    All judges see the same labels and images.
    """
    mesh = make_mesh(settings.mesh)
    check_divides("eval.batch", settings.eval.batch, mesh)
    with explaining_memory(lambda: memory_advice(settings, mesh.size)), jax.set_mesh(mesh):
        pipeline = open_model(settings, mesh, trained=False)
        clips, latent = settings_as(SPMTrainSettings, settings), settings_as(LRMTrainSettings, settings)
        opened = _clips(clips, pipeline, judges, mesh)
        if judges.lrm:
            opened.append(_latent_judge(latent, pipeline, judges.lrm, mesh))
        # Measure them with the same labels.
        (labels,) = relabelled(clips, out / "labels", mesh, preferences)
        results = {}
        for judge in opened:
            split = Split.of(preferences, pipeline if judge.predicts else None, judge.tokenize, labels)
            results[judge.line] = use(Evaluator(judge.training, judge.training.frozen(), split, mesh), judge.params)
        return results


def _clips(settings: SPMTrainSettings, pipeline: Pipeline, judges: Judges, mesh: Mesh) -> list[Opened]:
    """Opens the preference model and the plain CLIP."""
    if judges.spm:
        path = resolve_model(judges.spm)
        check_kind(path, read_config(path)[0], pipeline.kind, "--spm")
    key = make(lambda: jax.random.key(settings.seed), mesh)
    opened = []
    for line, model in ((SPM_LINE, judges.spm), (PLAIN_LINE, judges.plain)):
        if not model:
            continue
        start = load_clip(settings, model, key, mesh)
        if start.is_plain != (line == PLAIN_LINE):
            flag, expected = ("--plain", "without") if line == PLAIN_LINE else ("--spm", "with")
            raise UserError(f"{flag}={model}: expected a model {expected} time conditioning")
        training = SPMTraining(pipeline, start.clip, settings, mesh)
        tokenizer = read_tokenizer(start.tokenizer, start.clip.config, model)
        opened.append(Opened(line, training, start.params, tokenizer, predicts=True))
    return opened


def _latent_judge(settings: LRMTrainSettings, pipeline: Pipeline, lrm: str, mesh: Mesh) -> Opened:
    """Opens the latent reward model."""
    with stage(f"reading {lrm}"):
        channels, timesteps = pipeline.latent_shape[-1], settings.eval.timesteps
        context = Context(pipeline.kind, field="--lrm", channels=channels, timesteps=timesteps)
        folder, config = open_source(lrm, context)
        read = read_model(folder, config, settings.dtype, mesh)
    training = LRMTraining(pipeline, read.model, settings, mesh, read.tokenize([""]))
    return Opened(LRM_LINE, training, read.params, read.tokenize, predicts=False)


def settings_as(kind: type[JudgeTrainSettings], settings: JudgeTrainSettings) -> Any:
    """Returns settings as they are, or those of another method with the same models, pairs and evaluation."""
    if isinstance(settings, kind):
        return settings
    own = ("method", "optimizer", "train_steps")  # of the training alone
    names = [field.name for field in dataclasses.fields(JudgeTrainSettings) if field.name not in own]
    return kind(**{name: getattr(settings, name) for name in names})
