"""Measures a preference model: ``python -m spo_jax.evaluate_spm --config=configs/spm_tiny.py --spm=runs/spm/spm``.

Pair accuracy at the config's timesteps on its evaluation split, with standard errors; and of a plain CLIP (--plain)
on the same pictures. Leaves ``accuracy.json``, ``accuracy.svg`` and ``accuracy.png`` in ``--out``.
"""

from absl import flags

from spo_jax.core.cli import define_config, run_command
from spo_jax.core.config import from_config


def run() -> None:
    """The command."""
    config = define_config()
    spm = flags.DEFINE_string("spm", None, "Preference model: folder, file, hub id, or embedded.")
    plain = flags.DEFINE_string("plain", "", "Plain CLIP such as yuvalkirstain/PickScore_v1; empty is none.")
    out = flags.DEFINE_string("out", "runs/evaluate_spm", "Folder for numbers and plot.")
    overwrite = flags.DEFINE_bool("overwrite", False, "Replace the files of an earlier measurement in --out.")
    flags.mark_flag_as_required("spm")

    def main(_) -> None:
        from spo_jax.methods.spm.settings import SPMTrainSettings

        settings = from_config(SPMTrainSettings, config.value)
        from spo_jax.run.compilation import keep_compiled_programs
        from spo_jax.spm_evaluation import evaluate_spm

        keep_compiled_programs()
        evaluate_spm(settings, spm.value, out.value, plain.value, overwrite.value)

    run_command(main)


if __name__ == "__main__":
    run()
