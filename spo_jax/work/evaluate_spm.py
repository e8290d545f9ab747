"""The work of `spo_jax.evaluate_spm`: reads the models and measures them on the same pairs."""

from pathlib import Path

import jax

from spo_jax.core.errors import UserError
from spo_jax.core.memory import explaining_memory
from spo_jax.data.preferences.format import Preferences
from spo_jax.methods.common.model import open_model
from spo_jax.methods.spm.accuracy import Evaluator, print_accuracy, write_accuracy
from spo_jax.methods.spm.data import Agreement
from spo_jax.methods.spm.method import PLAIN_LINE, SPM_LINE
from spo_jax.methods.spm.parts import load_clip, relabelled
from spo_jax.methods.spm.programs import SPMTraining
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.methods.spm.split import Split
from spo_jax.parallel.mesh import check_divides, make_mesh
from spo_jax.parallel.multihost import is_writer
from spo_jax.parallel.sharding import make
from spo_jax.rewards.common.preference_files import check_kind, read_config, resolve_model
from spo_jax.rewards.common.preference_model import read_tokenizer
from spo_jax.run.memory import memory_advice


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
    path = resolve_model(spm)
    config, _ = read_config(path)
    mesh = make_mesh(settings.mesh)
    check_divides("eval.batch", settings.eval.batch, mesh)
    with explaining_memory(lambda: memory_advice(settings, mesh.size)), jax.set_mesh(mesh):
        pipeline = open_model(settings, mesh, trained=False)
        check_kind(path, config, pipeline.kind, "--spm")
        # Load the models to measure.
        key = make(lambda: jax.random.key(settings.seed), mesh)
        starts = {}
        for line, model in ((SPM_LINE, spm), (PLAIN_LINE, plain)):
            if not model:
                continue
            starts[line] = start = load_clip(settings, model, key, mesh)
            if start.is_plain != (line == PLAIN_LINE):
                flag, expected = ("--plain", "without") if line == PLAIN_LINE else ("--spm", "with")
                raise UserError(f"{flag}={model}: expected a model {expected} time conditioning")
        # Measure them with the same labels, images and noise.
        (labels,) = relabelled(settings, out / "labels", mesh, preferences)
        measured = {}
        for line, start in starts.items():
            training = SPMTraining(pipeline, start.clip, settings, mesh)
            tokenizer = read_tokenizer(start.tokenizer, start.clip.config, spm if line == SPM_LINE else plain)
            split = Split.of(preferences, pipeline, tokenizer, labels)
            measured[line] = Evaluator(training, training.frozen(), split, mesh).measure(start.params)
    if is_writer():
        write_accuracy(out, measured)
        print_accuracy(measured)
    return measured
