"""The work of `spo_jax.evaluate_spm`: reads the models and measures them on the same pairs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.memory import explaining_memory
from spo_jax.core.typing import Float, Int, Params
from spo_jax.data.preferences.format import Preferences
from spo_jax.methods.common.model import open_model
from spo_jax.methods.common.preference.accuracy import Evaluator, print_accuracy, write_accuracy
from spo_jax.methods.common.preference.data import Agreement
from spo_jax.methods.common.preference.rows import Split
from spo_jax.methods.spm.method import PLAIN_LINE, SPM_LINE
from spo_jax.methods.spm.parts import load_clip, relabelled
from spo_jax.methods.spm.programs import SPMTraining
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.parallel.mesh import check_divides, make_mesh
from spo_jax.parallel.multihost import is_writer
from spo_jax.parallel.sharding import make
from spo_jax.rewards.common.preference_files import check_kind, read_config, resolve_model
from spo_jax.rewards.common.preference_model import read_tokenizer
from spo_jax.run.memory import memory_advice

T = TypeVar("T")


def evaluate_spm(
    settings: SPMTrainSettings, spm: str, out: Path, plain: str, preferences: Preferences
) -> dict[str, Agreement]:
    """Measures the models, after `spo_jax.evaluate_spm.evaluate_spm` has checked what it can without jax.

    Args:
      settings: as in `spo_jax.evaluate_spm.evaluate_spm`, like ``spm``, ``out`` and ``plain``.
      preferences: the evaluation pairs.

    Returns:
      As `spo_jax.evaluate_spm.evaluate_spm`.

    Raises:
      UserError: as `spo_jax.evaluate_spm.evaluate_spm`.
    """
    named = {SPM_LINE: spm} | ({PLAIN_LINE: plain} if plain else {})
    measured = _with_evaluators(settings, named, out, preferences, Evaluator.measure)
    if is_writer():
        write_accuracy(out, measured)
        print_accuracy(measured)
    return measured


def score_pairs(
    settings: SPMTrainSettings, spm: str, preferences: Preferences
) -> tuple[Int[np.ndarray, " n"], dict[int, Float[np.ndarray, "n 2"]]]:
    """Scores the evaluation pairs, in place of comparing the scores with labels.

    Args:
      settings: as in `spo_jax.evaluate_spm.evaluate_spm`, without new labels.
      spm: the preference model, likewise.
      preferences: the evaluation pairs.

    Returns:
      (the rows of the pairs, by timestep the scores of both images).

    Raises:
      UserError: as `spo_jax.evaluate_spm.evaluate_spm`.
    """

    def scored(evaluator: Evaluator, params: Params) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        return evaluator.rows, evaluator.scores(params)

    return _with_evaluators(settings, {SPM_LINE: spm}, Path(), preferences, scored)[SPM_LINE]


def _with_evaluators(
    settings: SPMTrainSettings,
    named: Mapping[str, str],
    out: Path,
    preferences: Preferences,
    use: Callable[[Evaluator, Params], T],
) -> dict[str, T]:
    """Returns, for each of the models by name, what ``use`` makes of its evaluator and its weights.

    All models see the same labels, images and noise.
    """
    path = resolve_model(named[SPM_LINE])
    config, _ = read_config(path)
    mesh = make_mesh(settings.mesh)
    check_divides("eval.batch", settings.eval.batch, mesh)
    with explaining_memory(lambda: memory_advice(settings, mesh.size)), jax.set_mesh(mesh):
        pipeline = open_model(settings, mesh, trained=False)
        check_kind(path, config, pipeline.kind, "--spm")
        # Load the models to measure.
        key = make(lambda: jax.random.key(settings.seed), mesh)
        starts = {}
        for line, model in named.items():
            starts[line] = start = load_clip(settings, model, key, mesh)
            if start.is_plain != (line == PLAIN_LINE):
                flag, expected = ("--plain", "without") if line == PLAIN_LINE else ("--spm", "with")
                raise UserError(f"{flag}={model}: expected a model {expected} time conditioning")
        # Measure them with the same labels.
        (labels,) = relabelled(settings, out / "labels", mesh, preferences)
        results = {}
        for line, start in starts.items():
            training = SPMTraining(pipeline, start.clip, settings, mesh)
            tokenizer = read_tokenizer(start.tokenizer, start.clip.config, named[line])
            split = Split.of(preferences, pipeline, tokenizer, labels)
            results[line] = use(Evaluator(training, training.frozen(), split, mesh), start.params)
        return results
