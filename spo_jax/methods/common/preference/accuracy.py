"""Measures, writes and plots the pair accuracy of a judge at several timesteps."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from matplotlib.figure import Figure

from spo_jax.core.errors import UserError
from spo_jax.core.files import write_atomic, write_json
from spo_jax.core.progress import bar
from spo_jax.core.statistics import mean_and_error
from spo_jax.core.typing import Float, Params
from spo_jax.data.preferences.loading import batches
from spo_jax.methods.common.pair_inputs import FrozenParams
from spo_jax.methods.common.preference.data import ACCURACY, Agreement
from spo_jax.methods.common.preference.rows import Rows, Split
from spo_jax.methods.common.preference.training import JudgeTraining
from spo_jax.parallel.compiling import device_jit
from spo_jax.parallel.multihost import join_parts, local_positions
from spo_jax.parallel.sharding import make, to_host
from spo_jax.run.report.charts import as_svg


def agreement(scores: Float[np.ndarray, "n 2"], labels: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"]:
    """Computes (s₀ > s₁) · label₀ + (s₀ < s₁) · label₁, the reference's rule.

    A pair that is labelled as a tie counts half. A pair with two equal scores counts nothing, whatever its label.
    """
    first = scores[:, 0] > scores[:, 1]
    second = scores[:, 0] < scores[:, 1]
    return (first * labels[:, 0] + second * labels[:, 1]).astype(np.float32)


class Evaluator:
    """Measures weights of one network, with the same pairs and noise every time.

    Args:
      training: the method bound to its models; its settings say what to measure.
      frozen: weights of the diffusion model.
      split: the pairs.
      mesh: mesh on which the weights lie.

    Attributes:
      rows: rows of the pairs that are measured.

    Raises:
      UserError: no pair of the split is decided, or the diffusion model does not have one of the timesteps.
    """

    def __init__(self, training: JudgeTraining, frozen: FrozenParams, split: Split, mesh: Mesh):
        config = training.settings.eval
        training.check_timesteps(config.timesteps)
        self.rows = split.decided(config.pairs)
        self._training = training
        self._frozen = frozen
        self._split = split
        self._key = make(lambda: jax.random.key(config.seed), mesh)
        self._noised = device_jit(training.scores)
        self._clean = device_jit(training.clean_scores)

    @property
    def fingerprint(self) -> str:
        """The facts in which two measurements have to agree to be compared pair by pair, as JSON."""
        settings = self._training.settings
        config = settings.eval
        labels = self._split.labels[self.rows]
        fields = {"timesteps": config.timesteps, "pairs": config.pairs, "batch": config.batch, "seed": config.seed}
        # These settings determine the images that are judged; `dtype` also determines the judge's rounding.
        names = ("model", "revision", "base", "vae", "dtype", "posterior", "resolution", *self._training.DECISIVE)
        fields |= {name: getattr(settings, name) for name in names}
        fields["labels"] = hashlib.sha256(self.rows.tobytes() + labels.tobytes()).hexdigest()
        return json.dumps({"digest": self._split.pairs.digest, **fields})

    def measure(self, params: Params) -> dict[int, Float[np.ndarray, " n"]]:
        """Computes the `agreement` of every pair at every timestep.

        Args:
          params: weights of the preference model.

        Raises:
          UserError: a score is not finite.
        """
        labels = self._split.labels[self.rows]
        return {t: agreement(scores, labels) for t, scores in self.scores(params).items()}

    def scores(self, params: Params) -> dict[int, Float[np.ndarray, "n 2"]]:
        """Computes the scores of both images of every pair in `rows`, at every timestep.

        Images are noised as in training; at timestep 0 the images themselves are scored by a judge that reads images.

        Args:
          params: weights of the preference model.

        Raises:
          UserError: a score is not finite.
        """
        # Open the loader.
        settings = self._training.settings
        config = settings.eval
        scores = {t: np.full((len(self._split.pairs), 2), np.nan, np.float32) for t in config.timesteps}
        loaded = batches(
            self._split.pairs,
            self.rows,
            side=self._training.side,
            batch_size=config.batch,
            shuffle=False,
            endless=False,
            positions=local_positions(config.batch),
            threads=settings.loading.threads,
            workers=settings.loading.workers,
        )
        count = -(-len(self.rows) // config.batch)
        shown = bar("accuracy", count, "batch", over=loaded)
        # Score each batch at all timesteps.
        with contextlib.closing(loaded):
            for number, batch in enumerate(shown):
                numbers = to_host(join_parts(batch.rows))
                rows = self._training.feed(self._split.feed(batch))
                for t in config.timesteps:
                    scores[t][numbers] = to_host(self._score(params, rows, t, number))
        for t, values in scores.items():
            if not np.isfinite(values[self.rows]).all():
                raise UserError(f"scores at t = {t} are not finite: the preference model is damaged; or use float32")
        return {t: values[self.rows] for t, values in scores.items()}

    def _score(self, params: Params, rows: Rows, t: int, number: int) -> jax.Array:
        if t == 0 and self._training.CLEAN_AT_ZERO:
            return self._clean(params, rows)
        return self._noised(params, self._frozen, rows, np.int32(t), np.int32(number), self._key)


# Reporting


def summarised(measured: Agreement) -> dict[str, dict[str, float | int | None]]:
    """Summarises a measurement as JSON: by timestep, the accuracy, its standard error and the number of pairs."""
    summary = {}
    for t, values in measured.items():
        accuracy, error = mean_and_error(values)
        summary[str(t)] = {"accuracy": accuracy, "standard_error": error, "pairs": len(values)}
    return summary


def write_accuracy(folder: Path, measured: Mapping[str, Agreement]) -> None:
    """Writes ``accuracy.json``, ``accuracy.svg`` and ``accuracy.png``.

    The JSON file holds, for each model and timestep, the accuracy, its standard error and the number of pairs; and
    ``chance``, which is a half because ties count half.

    Args:
      folder: folder of the files.
      measured: measurements by name of the model.

    Raises:
      UserError: a file cannot be written.
    """
    lines = {line: summarised(agreement) for line, agreement in measured.items()}
    write_json(folder / ACCURACY, lines | {"chance": 0.5})
    write_figure(folder / "accuracy", accuracy_figure(measured))


def print_accuracy(measured: Mapping[str, Agreement]) -> None:
    """Prints the accuracies of each model."""
    for line, agreement in measured.items():
        print(f"\n{line}:")
        for t, values in summarised(agreement).items():
            error = "" if values["standard_error"] is None else f" ± {values['standard_error']:.4f}"
            print(f"  pair accuracy at t = {t:>4s}  {values['accuracy']:.4f}{error}  ({values['pairs']} pairs)")


def accuracy_figure(lines: Mapping[str, Agreement]) -> Figure:
    """Plots a curve for each model, with bars of one standard error, and a line for chance."""
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for index, (name, measured) in enumerate(lines.items()):
        timesteps = sorted(measured)
        values = [mean_and_error(measured[t]) for t in timesteps]
        heights = [mean for mean, _ in values]
        errors = [error or 0.0 for _, error in values]
        style = {"marker": "o", "markersize": 4, "capsize": 3, "linewidth": 1.5, "color": f"C{index}"}
        axes.errorbar(timesteps, heights, yerr=errors, label=name, **style)
    axes.axhline(0.5, color="0.5", linestyle="--", linewidth=1, label="chance")
    axes.set_xlabel("timestep t of the noised image (0: the image itself)")
    axes.set_ylabel("pair accuracy")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


def write_figure(path: str | os.PathLike, figure: Figure) -> None:
    """Writes a figure as two files.

    Args:
      path: path of the files; its suffix is replaced by ``.svg`` and ``.png``.
      figure: the figure.

    Raises:
      UserError: a file cannot be written.
    """
    path = Path(path)
    write_atomic(path.with_suffix(".svg"), lambda file: file.write_bytes(as_svg(figure)))
    write_atomic(path.with_suffix(".png"), lambda file: figure.savefig(file, format="png", dpi=150))
