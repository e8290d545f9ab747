"""Measures judges against timestep: ``python -m spo_jax.evaluate_spm --config=spm_toy --spm=toy``.

Reports pair accuracies on the config's evaluation split, at the config's timesteps and with standard errors: those of a
preference model (``--spm``), of a latent reward model (``--lrm``), or of both in one table and one figure; with
``--plain`` also those of a plain CLIP on the same images. Writes ``accuracy.json``, ``accuracy.svg`` and
``accuracy.png`` to ``--out``. The example reads the pairs that the example of ``spo_jax.prepare`` writes.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from spo_jax.core.cli import callable_module, run_command
from spo_jax.core.config_flag import define_config
from spo_jax.core.errors import UserError
from spo_jax.core.files import check_free, check_writable, local_path
from spo_jax.core.progress import stage
from spo_jax.data.preferences.format import open_preferences
from spo_jax.methods import read_settings
from spo_jax.methods.common.checks import check_model
from spo_jax.methods.common.preference.data import ACCURACY, Agreement
from spo_jax.methods.common.preference.settings import JudgeTrainSettings
from spo_jax.methods.lrm.settings import LRMTrainSettings
from spo_jax.methods.spm.checks import check_relabelling
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.models import kind_and_channels
from spo_jax.rewards import check_reward
from spo_jax.rewards.common.preference_files import check_files
from spo_jax.rewards.common.protocol import Context
from spo_jax.run.settings import check_settings


def evaluate_spm(
    settings: JudgeTrainSettings,
    spm: str,
    out: str | os.PathLike,
    plain: str = "",
    overwrite: bool = False,
    lrm: str = "",
) -> dict[str, Agreement]:
    """Measures judges on the settings' evaluation pairs and writes the result to ``out``.

    Args:
      settings: settings of the training of a preference model or of a latent reward model.
      spm: folder, file or hub id of the preference model; empty for none.
      out: folder for the results.
      plain: folder, file or hub id of a plain CLIP to measure on the same images; empty for none.
      overwrite: whether to replace the files of an earlier measurement.
      lrm: folder or hub id of the latent reward model, or ``toy_people``; empty for none.

    Returns:
      By name of the judge and by timestep, the contribution of each pair to the accuracy (1, ½ or 0).

    Raises:
      UserError: a setting, file or folder cannot be used, or no judge is named.
    """
    check_judge_settings(settings, "configs/spm_toy.py")
    if not spm and not lrm:
        raise UserError("expected --spm, --lrm or both: a preference model, or a latent reward model, to measure")
    # Check files and folders before the models are read.
    out = local_path(out)
    check_writable(out)
    check_free(out / ACCURACY, overwrite)
    check_model(settings)
    check_judges(settings, (spm, plain), lrm)
    if isinstance(settings, SPMTrainSettings):
        check_relabelling(settings)
    preferences = open_preferences(settings.data_dir, settings.eval_split, "eval_split")
    # Imported here because it takes seconds, and the mistakes above are found in one.
    with stage("importing JAX"):
        from spo_jax.work import evaluate_spm as work

    return work.evaluate_spm(settings, work.Judges(spm, plain, lrm), out, preferences)


def check_judge_settings(settings: Any, example: str) -> None:
    """Refuses what is no settings of the training of a judge; see `spo_jax.run.settings.check_settings`."""
    kind = LRMTrainSettings if isinstance(settings, LRMTrainSettings) else SPMTrainSettings
    check_settings(settings, kind, example)


def check_judges(settings: JudgeTrainSettings, clips: Sequence[str], lrm: str) -> None:
    """Checks the files of judges before the models are read.

    Args:
      settings: settings of the training of a judge.
      clips: folders, files or hub ids of preference models and plain CLIPs; empty ones are none.
      lrm: folder or hub id of a latent reward model; empty for none.

    Raises:
      UserError: a file is missing, or is something else.
    """
    for clip in filter(None, clips):
        check_files(clip, getattr(settings, "tokenizer", ""), "--config.tokenizer")
    if lrm:
        kind, channels = kind_and_channels(settings.model)
        timesteps = settings.eval.timesteps
        context = Context(kind, field="--lrm", noisy=True, channels=channels, timesteps=timesteps)
        check_reward(f"lrm:{lrm}", context, judges=True)


def run() -> None:
    """Runs the command."""
    config = define_config(example="configs/spm_toy.py")
    spm = flags.DEFINE_string("spm", "", "Measure this preference model: folder, file, hub id, 'toy' or 'toy_people'.")
    lrm = flags.DEFINE_string("lrm", "", "Measure this latent reward model: folder, hub id or 'toy_people'.")
    plain = flags.DEFINE_string("plain", "", "Measure this plain CLIP too, such as yuvalkirstain/PickScore_v1.")
    out = flags.DEFINE_string("out", "runs/evaluate_spm", "Write the accuracies and their plot to this folder.")
    overwrite = flags.DEFINE_bool("overwrite", False, "Replace the files of an earlier measurement in --out.")

    def main(_) -> None:
        settings = read_settings(config.value)
        evaluate_spm(settings, spm.value, out.value, plain.value, overwrite.value, lrm.value)

    run_command(main)


callable_module(__name__, evaluate_spm)

if __name__ == "__main__":
    sys.exit(run())
