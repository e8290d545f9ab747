"""A run that trains a judge on labelled pairs: its batches, its steps, and its measurements on held-out pairs."""

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import Mesh

from spo_jax.core.files import write_atomic, write_json
from spo_jax.core.statistics import mean_and_error, paired_scores
from spo_jax.core.typing import Key, Params
from spo_jax.data.preferences.format import filtered_by
from spo_jax.methods.base import Images, Programs, Result
from spo_jax.methods.common.preference.accuracy import (
    Evaluator,
    accuracy_figure,
    print_accuracy,
    summarised,
    write_accuracy,
)
from spo_jax.methods.common.preference.data import Agreement
from spo_jax.methods.common.preference.rows import Rows, Split
from spo_jax.methods.common.preference.settings import JudgeTrainSettings
from spo_jax.methods.common.preference.training import JudgeTraining
from spo_jax.methods.common.preference.update import flat_row, optimizer_of, state_shardings
from spo_jax.methods.common.state import TrainState, init_state
from spo_jax.methods.common.timed import timed_step
from spo_jax.parallel.multihost import is_writer
from spo_jax.parallel.sharding import with_shardings
from spo_jax.run.loop import Progress, Row
from spo_jax.run.report.steps import NextStep
from spo_jax.run.trend import trend

CHARTS = {
    "eval_accuracy": ("Accuracy on held-out pairs, by timestep", "ties count half"),
    "loss": ("Loss", "mean over a step's pairs; log 2 = 0.693 if the model cannot tell them apart, 0 if it is certain"),
    "accuracy": ("Accuracy on the step's own pairs", "measured before the step, on pairs that are not ties"),
    "accuracy_at": ("Accuracy on the step's own pairs, by timestep", ""),
    "grad_norm": ("Gradient norm", "global norm before clipping"),
    "learning_rate": ("Learning rate", ""),
    "logit_scale": ("Scale of the cosine", "exp(logit_scale)"),
    "seconds": ("Seconds per step", "where the time goes"),
    "pairs_per_second": ("Pairs per second", ""),
}


def progress_of(title: str) -> Progress:
    """Returns what the bar of a run shows, under a title."""
    return Progress(
        title=title,
        shown=lambda rows: {"accuracy": trend(rows, "accuracy").shown(".1%"), "loss": trend(rows, "loss").shown(".3f")},
        watched=("loss", "grad_norm"),
        hint="Lower optimizer.learning_rate, or use float32",
    )


class JudgeRun:
    """Base class of runs that train a judge; see `spo_jax.methods.base.Run`.

    A subclass defines `shapes`, `export` and `next_step`. All arguments except ``training`` are None in an abstract
    run.

    Args:
      training: the method bound to its models.
      params: the weights to start from, sharded over the mesh.
      train: pairs to train on.
      held_out: pairs to measure on.
      folder: the run's folder, which keeps the measurements.

    Attributes:
      LINE: name of the trained judge in figures and files.
    """

    LINE: ClassVar[str] = "judge"
    progress: ClassVar[Progress] = progress_of("judge")
    charts = CHARTS

    def __init__(
        self,
        training: JudgeTraining,
        params: Params | None = None,
        train: Split | None = None,
        held_out: Split | None = None,
        folder: Path | None = None,
    ):
        self.training = training
        self.settings = training.settings
        self.total = self.settings.train_steps
        self._params = params
        self._split = train
        self._folder = folder
        if params is not None:
            self._frozen = training.frozen()
            self._evaluator = Evaluator(training, self._frozen, held_out, training.mesh)
        self._last: Agreement = {}
        self._last_step = -1

    # What a judge defines

    def shapes(self) -> Params:
        """Returns the shapes of the weights."""
        raise NotImplementedError

    def export(self, state: TrainState, folder: Path) -> None:
        """Writes the judge; only one of the processes does so."""
        raise NotImplementedError

    def next_step(self, folder: Path) -> NextStep:
        """Says how the judge is used."""
        raise NotImplementedError

    def before_line(self) -> str:
        """Names the measurement before the first step."""
        return "before training"

    def ordered(self) -> str:
        """Says in words by what held-out pairs are ordered."""
        return "as in the human labels; ties count half"

    # What runs share

    def init_state(self, key: Key) -> TrainState:
        """Returns the state before the first step, sharded over the mesh; it takes over the arrays of the start."""
        del key  # `setup` has drawn the weights that are not read from files, with the same key
        return fresh_state(self.settings, self._params, self.training.mesh)

    def state_shapes(self) -> TrainState:
        """Returns the shapes of the state, sharded over the mesh."""
        optimizer = optimizer_of(self.settings)
        shapes = jax.eval_shape(lambda params: init_state(params, optimizer), self.shapes())
        return with_shardings(shapes, state_shardings(shapes, self.training.mesh))

    def trace(self, state: TrainState, keep_unused: bool = False) -> dict[str, jax.stages.Traced]:
        """Traces the program ``step``."""
        return self.training.trace(state, keep_unused)

    def begin(self, state: TrainState, resuming: bool) -> Row:
        """Measures the model before its first step; a resumed run has that measurement in its folder.

        Raises:
          UserError: a score is not finite.
        """
        if resuming:
            return {}
        row, _ = self.evaluate(0, state)
        if is_writer():
            _write_agreement(self._folder, self._last, self._evaluator.fingerprint)
        return row

    def batches(self, start: int) -> Generator[Rows, None, None]:
        """Yields this process's parts of the batches, on its devices.

        All pairs take part, with or without human labels.

        Raises:
          UserError: an image is damaged, or latents cannot be kept.
        """
        pairs = self._split.pairs
        loaded = self.training.loaded(pairs, np.arange(len(pairs), dtype=np.int32), start)
        with contextlib.closing(loaded):
            for batch in loaded:
                yield self.training.feed(self._split.feed(batch))

    def step(
        self, programs: Programs, batches: Iterator[Rows], number: int, state: TrainState, key: Key
    ) -> tuple[TrainState, Row]:
        """Trains on the next batch; the state counts the steps, and everything random follows from that count."""
        del number

        def train(batch: Rows) -> tuple[TrainState, Any]:
            return programs["step"](state, self._frozen, batch, key)

        after, metrics, speed = timed_step("step", batches, train, self.settings.batch_size)
        return after, {**flat_row(metrics, self.training.timesteps), **speed}

    def evaluate(self, number: int, state: TrainState) -> tuple[Row, Images]:
        """Measures the accuracies on held-out pairs, for the row and for a file in ``evaluation/``.

        Raises:
          UserError: a score is not finite.
        """
        self._last = self._evaluator.measure(state.params)
        self._last_step = number
        if is_writer():
            write_json(self._folder / "evaluation" / f"{number:06d}.json", summarised(self._last))
        return {f"eval_accuracy/t{t:04d}": mean_and_error(values)[0] for t, values in self._last.items()}, {}

    def finish(self, state: TrainState, folder: Path) -> Result:
        """Reports the accuracies before and after, as numbers and as a plot against the timestep.

        Raises:
          UserError: a score is not finite, or a file cannot be written.
        """
        if self._last_step != self.total:  # the run was resumed after its last batch
            self.evaluate(self.total, state)
        summary = {"pairs": len(self._split.pairs), **filtered_by(self._split.pairs)}
        lines = {self.LINE: self._last}
        before = read_agreement(self._folder, self._evaluator.fingerprint)
        if before is not None:
            lines |= {self.before_line(): before}
            summary = {"scores": self._scores(before, self._last), **summary}
        if is_writer():
            write_accuracy(self._folder, lines)
            if before is None:  # otherwise the trainer prints both
                print_accuracy(lines)
        caption = "Mean over held-out pairs with one standard error; chance is a half."
        figure = ("Accuracy against timestep", caption, accuracy_figure(lines))
        return Result(summary, figures=[figure], steps=[self.next_step(folder)])

    def _scores(self, before: Agreement, after: Agreement) -> dict[str, dict]:
        named = [{f"pair accuracy/t{t:04d}": values for t, values in measured.items()} for measured in (before, after)]
        meanings = dict.fromkeys(named[0], f"share of held-out pairs that are ordered {self.ordered()}")
        return paired_scores(*named, meanings)


def fresh_state(settings: JudgeTrainSettings, params: Params, mesh: Mesh) -> TrainState:
    """Returns the state before the first step, sharded over the mesh; the arrays of ``params`` are donated."""
    optimizer = optimizer_of(settings)
    shapes = jax.eval_shape(lambda params: init_state(params, optimizer), params)
    make_state = jax.jit(
        lambda params: init_state(params, optimizer), out_shardings=state_shardings(shapes, mesh), donate_argnums=0
    )
    return make_state(params)


# The measurement before the first step, on disk


def _agreement_file(folder: Path) -> Path:
    return folder / "evaluation" / "before.npz"


def _write_agreement(folder: Path, measured: Agreement, fingerprint: str) -> None:
    arrays = {str(t): values for t, values in measured.items()}
    write_atomic(_agreement_file(folder), lambda path: np.savez(path, fingerprint=fingerprint, **arrays))


def read_agreement(folder: Path, fingerprint: str) -> dict | None:
    """Returns the earlier measurement, or None if it was made with other pairs or noise and cannot be compared."""
    path = _agreement_file(folder)
    if not path.is_file():
        return None
    with np.load(path) as arrays:
        if str(arrays["fingerprint"]) != fingerprint:
            return None
        return {int(t): arrays[t] for t in arrays.files if t != "fingerprint"}
