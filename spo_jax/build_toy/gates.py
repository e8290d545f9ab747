"""Measures whether the shipped assets are good enough: ``python -m spo_jax.build_toy.gates --what=autoencoder``.

Each gate prints its numbers with standard errors over ``--images`` held-out images, and exits with 1 if one of them
fails.

autoencoder  reconstructions keep a prompt accuracy >= 95 %
base         >= 80 % of the samples of held-out prompts have the right colour and shape
late         how much of each term of the aesthetic is still open where configs/toy.py diverts; no gate
spm          >= 85 % of held-out preference pairs are ordered right at t = 0, >= 60 % wherever configs/toy.py diverts
lrm          >= 54 % of the held-out pairs of simulated people are ordered as they labelled them, on average over the
             timesteps at which configs/lpo_toy.py judges; single ones, and the preference model of people's labels
             beside it, have no gate
spo          with three training seeds, the aesthetic rises by half of the base's standard deviation, and accuracy and
             range are kept; the share of each term in the rise is reported
"""

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from absl import flags

from spo_jax import load_config
from spo_jax.build_toy.late import CHILDREN, within_parents
from spo_jax.build_toy.people import pairs_of_people
from spo_jax.core.cli import run_command
from spo_jax.core.config_flag import define_config
from spo_jax.core.files import write_json
from spo_jax.core.statistics import standard_error
from spo_jax.core.typing import Float
from spo_jax.evaluate_spm import evaluate_spm
from spo_jax.methods import read_settings
from spo_jax.methods.common.preference.settings import AccuracySettings
from spo_jax.methods.lrm.method import LRMRun
from spo_jax.methods.lrm.settings import LRMTrainSettings
from spo_jax.methods.spm.method import SPM_LINE
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.methods.spo.settings import SPOTrainSettings
from spo_jax.models import open_pipeline
from spo_jax.models.sampler import Sampler, initial_latents
from spo_jax.parallel.chunks import in_chunks
from spo_jax.prepare import prepare
from spo_jax.run.folder import Resume
from spo_jax.toy import world
from spo_jax.toy.truth import DETAILS, measure
from spo_jax.train import train

REPORTED_TIMESTEPS = (0, 251, 501, 701, 951)
SEEDS = (0, 1, 2)


def run() -> None:
    """Runs the command."""
    what = flags.DEFINE_enum("what", "base", list(GATES), "Measure this gate.")
    images = flags.DEFINE_integer("images", 1000, "Measure this many held-out images or pairs.", lower_bound=2)
    out = flags.DEFINE_string("out", "runs/gates", "Write the numbers, and the runs of --what=spo, to this folder.")
    config = define_config("configs/toy.py")

    def main(_) -> None:
        settings = read_settings(config.value)
        lines = GATES[what.value](settings, images.value, Path(out.value))
        for line in lines:
            print(line)
        write_json(Path(out.value) / f"{what.value}.json", [dataclasses.asdict(line) for line in lines])
        if not all(line.passed for line in lines):
            sys.exit(1)

    run_command(main)


@dataclasses.dataclass(frozen=True)
class Line:
    """One measured number.

    Attributes:
      name: name of the number.
      value: its mean.
      error: its standard error; None for a number that has none.
      at_least: smallest value that passes; None if the number is reported without a gate.
    """

    name: str
    value: float
    error: float | None
    at_least: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the value is large enough."""
        return self.at_least is None or self.value >= self.at_least

    def __str__(self) -> str:
        gate = "" if self.at_least is None else f"  gate >= {self.at_least:.4f} {'ok' if self.passed else 'FAILED'}"
        error = "" if self.error is None else f" ± {self.error:.4f}"
        return f"{self.name:44s} {self.value:8.4f}{error}{gate}"


def _line(name: str, values: Float[np.ndarray, " n"], at_least: float | None = None) -> Line:
    values = np.asarray(values, np.float64)
    return Line(name, float(values.mean()), standard_error(values), at_least)


def _held_out(count: int) -> list[str]:
    """Repeats the held-out prompts up to ``count``."""
    return [world.HELD_OUT_PROMPTS[index % len(world.HELD_OUT_PROMPTS)] for index in range(count)]


def autoencoder(settings: SPOTrainSettings, count: int, out: Path) -> list[Line]:
    """Measures reconstructions of images that the autoencoder has never seen."""
    del out
    pipeline = open_pipeline(settings.model)
    prompts = _held_out(count)
    images, _ = world.draw(np.random.default_rng(987), prompts)
    reconstruct = jax.jit(lambda x: pipeline.vae.apply({"params": pipeline.params["vae"]}, x))
    reconstructed = np.asarray(in_chunks(reconstruct, images, 50))
    real = measure(images, prompts)
    kept = measure(reconstructed, prompts)
    psnr = 10 * np.log10(4 / np.square(reconstructed - images).mean((1, 2, 3)))
    lines = [_line(f"reconstructed {name}", kept[name], 0.95) for name in kept if name.startswith("accuracy")]
    lines.append(_line("PSNR in dB", psnr))
    lines.append(_line("real aesthetic", real["aesthetic"]))
    lines.append(_line("reconstructed aesthetic", kept["aesthetic"]))
    return lines


def base(settings: SPOTrainSettings, count: int, out: Path) -> list[Line]:
    """Measures samples of held-out prompts, with guidance 5, 20 DDIM steps and eta 0."""
    del out
    pipeline = open_pipeline(settings.model)
    prompts = _held_out(count)
    sampler = Sampler(pipeline, steps=20, guidance=5.0, batch=50)
    images = sampler(prompts, initial_latents(4321, count, pipeline.latent_shape))
    values = measure(images, prompts)
    gates = {name: 0.8 for name in values if name.startswith("accuracy")}
    lines = [_line(name, value, gates.get(name)) for name, value in values.items()]
    return [*lines, Line("standard deviation of the aesthetic", float(values["aesthetic"].std()), 0.0, None)]


def late(settings: SPOTrainSettings, count: int, out: Path) -> list[Line]:
    """Measures how much of each detail is still open where the config diverts, on ``count`` images."""
    del out
    found = within_parents(settings, _held_out(max(count // CHILDREN, 2)))
    lines = [Line(f"{name}: share of the variance decided late", share, None) for name, (share, _) in found.items()]
    spreads = [Line(f"{name}: deviation of its logarithm", spread, None) for name, (_, spread) in found.items()]
    return [*lines, *spreads]


def spm(settings: SPOTrainSettings, count: int, out: Path) -> list[Line]:
    """Measures accuracies on held-out preference pairs, at the reported timesteps and at all that the config judges."""
    # Draw the pairs.
    process = open_pipeline(settings.model).process(settings.spo.num_steps)
    judged = {0, *process.timesteps[settings.spo.divert_start_step :].tolist()}
    pairs = out / f"pairs-{count}"
    prepare("toy", pairs, [SPMTrainSettings.eval_split], pairs=count, held_out_pairs=count, seed=5678)
    # Measure the shipped model on them.
    evaluation = AccuracySettings(tuple(sorted(judged.union(REPORTED_TIMESTEPS))), batch=40)
    spm_settings = SPMTrainSettings(model=settings.model, data_dir=str(pairs), chunk=50, eval=evaluation)
    measured = evaluate_spm(spm_settings, settings.spm.model, out / "spm", overwrite=True)[SPM_LINE]
    gates = {t: 0.85 if t == 0 else 0.6 for t in judged}
    # Ties, which count one half, are left out: the truth does not order them either.
    return [_line(f"pair accuracy at t = {t}", x[x != 0.5], gates.get(t)) for t, x in measured.items()]


def lrm(settings: SPOTrainSettings, count: int, out: Path) -> list[Line]:
    """Measures accuracies on ``count`` held-out pairs of new people, of both judges that learned from such labels."""
    # Draw the pairs. Those for training say how much images differ, by which the people are drawn; a quarter is enough.
    lpo = read_settings(load_config("lpo_toy"))
    process = open_pipeline(settings.model).process(lpo.spo.num_steps)
    judged = process.timesteps[lpo.spo.divert_start_step :].tolist()
    drawn = {"pairs": max(count // 4, 2), "held_out_pairs": count, "seed": 5678}
    models = {"model": settings.model, "earlier": settings.model}
    pairs = pairs_of_people(out / f"people-{count}", LRMTrainSettings.eval_split, **drawn, **models)
    # Measure the shipped models on them.
    evaluation = AccuracySettings(tuple(sorted({*judged, *REPORTED_TIMESTEPS})), batch=40)
    own = LRMTrainSettings(model=settings.model, data_dir=str(pairs), chunk=50, eval=evaluation)
    measured = evaluate_spm(own, "toy_people", out / "lrm", overwrite=True, lrm="toy_people")
    found = measured[LRMRun.LINE]
    lines = [_line(f"pair accuracy at t = {t}", x) for t, x in found.items()]
    # A pair's accuracies are not independent of each other, so the standard error is that of their mean over pairs.
    lines.append(_line("pair accuracy, mean of the judged t", np.mean([found[t] for t in judged], axis=0), 0.54))
    return [*lines, *(_line(f"preference model at t = {t}", x) for t, x in measured[SPM_LINE].items())]


def spo(settings: SPOTrainSettings, count: int, out: Path) -> list[Line]:
    """Trains the config with three seeds, and measures each on ``count`` pairs of held-out images."""
    lines = []
    for seed in SEEDS:
        # Train, or continue a run that exists.
        evaluation = dataclasses.replace(
            settings.eval, images=count, batch=50, prompts="toy:held_out", rewards="toy,toy@terms"
        )
        seeded = dataclasses.replace(settings, seed=seed, eval=evaluation)
        summary = train(seeded, out / f"seed{seed}", Resume(if_there=True))
        scores = summary["scores"]
        # Compare the scores before and after.
        aesthetic = scores["aesthetic"]
        gain = aesthetic["change"] / aesthetic["before_std"]
        error = aesthetic["change_se"] / aesthetic["before_std"]
        lines.append(Line(f"seed {seed}: aesthetic gain in base deviations", gain, error, 0.5))
        for name in ("accuracy/colour", "accuracy/shape", "accuracy/all"):
            change = scores[name]
            lines.append(Line(f"seed {seed}: change of {name}", change["change"], change["change_se"], -0.02))
        growth = scores["out_of_range"]
        lines.append(Line(f"seed {seed}: fall of out_of_range", -growth["change"], growth["change_se"], 0.0))
        # Say what the gain is made of.
        for name, share in shares(scores).items():
            change = scores[f"term/{name}"]
            lines.append(Line(f"seed {seed}: change of term/{name}", change["change"], change["change_se"]))
            lines.append(Line(f"seed {seed}: its share of the gain", share, None))
    return lines


def shares(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Splits a gain of the aesthetic among its terms.

    The aesthetic is a product of terms with exponents, so that its logarithm is a weighted sum. A term's share is that
    part of the sum by which the logarithm of its mean grew.

    Args:
      scores: means ``before`` and ``after`` of each score of the reward ``toy@terms``.

    Returns:
      The share of every term, which sum to 1; one that fell has a negative share.
    """
    exponents = dict.fromkeys(DETAILS, 1 / len(DETAILS)) | {"form": 1.0}
    growth = {
        name: exponent * math.log(scores[f"term/{name}"]["after"] / scores[f"term/{name}"]["before"])
        for name, exponent in exponents.items()
    }
    return {name: value / sum(growth.values()) for name, value in growth.items()}


GATES: dict[str, Callable[[SPOTrainSettings, int, Path], list[Line]]] = {
    "autoencoder": autoencoder,
    "base": base,
    "late": late,
    "spm": spm,
    "lrm": lrm,
    "spo": spo,
}

if __name__ == "__main__":
    run()
