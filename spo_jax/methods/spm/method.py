"""A run that trains a step-aware preference model: its data and models, its steps, and its measurements."""

import contextlib
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spo_jax import toy
from spo_jax.core import run_files
from spo_jax.core.files import write_atomic, write_json
from spo_jax.core.statistics import mean_and_error, paired_scores
from spo_jax.core.typing import Key
from spo_jax.methods.base import Images, Programs, Result
from spo_jax.methods.common.model import open_model
from spo_jax.methods.common.state import TrainState, init_state
from spo_jax.methods.spm.accuracy import (
    Evaluator,
    accuracy_figure,
    print_accuracy,
    summarised,
    write_accuracy,
)
from spo_jax.methods.spm.data import Agreement, PairData
from spo_jax.methods.spm.init import Start
from spo_jax.methods.spm.parts import load_clip, relabelled
from spo_jax.methods.spm.programs import Rows, SPMTraining
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.methods.spm.split import Split
from spo_jax.methods.spm.update import flat_row, optimizer_of, state_shardings
from spo_jax.nn.shapes import clip_shapes
from spo_jax.parallel.multihost import is_writer
from spo_jax.parallel.sharding import make, to_host, with_shardings
from spo_jax.rewards.common.preference_model import abstract_clip, read_tokenizer, write_spm
from spo_jax.run.loop import Progress, Row, run_keys
from spo_jax.run.report.steps import NextStep, command
from spo_jax.run.trend import trend

SPM_LINE = "step-aware preference model"
PLAIN_LINE = "plain CLIP on the same images"
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
_PROGRESS = Progress(
    title="SPM",
    shown=lambda rows: {"accuracy": trend(rows, "accuracy").shown(".1%"), "loss": trend(rows, "loss").shown(".3f")},
    watched=("loss", "grad_norm"),
    hint="Lower optimizer.learning_rate, or use float32",
)


def setup(settings: SPMTrainSettings, mesh: Mesh, data: PairData | None = None, folder: Path | None = None) -> "SPMRun":
    """Loads the models, and makes new labels if the settings ask for them; see `spo_jax.methods.base.Method`.

    Raises:
      UserError: a model is missing or does not fit, or a folder of latents or scores cannot be used.
    """
    # Load the models.
    abstract = data is None
    pipeline = open_model(settings, mesh, abstract, trained=False)
    if abstract:
        clip = abstract_clip(settings.init, jnp.dtype(settings.dtype), settings.remat)
        return SPMRun(SPMTraining(pipeline, clip, settings, mesh))
    init_key, _ = make(lambda: run_keys(settings.seed), mesh)
    start = load_clip(settings, settings.init, init_key, mesh, random=settings.init_random)
    training = SPMTraining(pipeline, start.clip, settings, mesh)

    # Check the settings and the folder of latents before hours of work.
    training.check_timesteps(settings.eval.timesteps)
    training.check_cache(data.train)

    tokenizer = read_tokenizer(start.tokenizer, start.clip.config, settings.init)

    # Make the labels last, because this may take hours.
    labels = relabelled(settings, folder / "labels", mesh, *data)
    train, held_out = (Split.of(pairs, pipeline, tokenizer, new) for pairs, new in zip(data, labels, strict=True))
    return SPMRun(training, start, train, held_out, folder)


class SPMRun:
    """A run that trains a preference model; see `spo_jax.methods.base.Run`.

    All arguments except ``training`` are None in an abstract run.

    Args:
      training: the method bound to its models.
      start: the weights to start from.
      train: pairs to train on.
      held_out: pairs to measure on.
      folder: the run's folder, which keeps the measurements.
    """

    progress = _PROGRESS
    charts = CHARTS

    def __init__(
        self,
        training: SPMTraining,
        start: Start | None = None,
        train: Split | None = None,
        held_out: Split | None = None,
        folder: Path | None = None,
    ):
        self.training = training
        self.settings = training.settings
        self.total = self.settings.train_steps
        self._start = start
        self._split = train
        self._folder = folder
        if start is not None:
            self._frozen = training.frozen()
            self._evaluator = Evaluator(training, self._frozen, held_out, training.mesh)
        self._last: Agreement = {}
        self._last_step = -1

    def init_state(self, key: Key) -> TrainState:
        """Returns the state before the first step, sharded over the mesh; it takes over the arrays of the start."""
        del key  # `setup` has drawn the weights that are not read from files, with the same key
        return fresh_state(self.settings, self._start, self.training.mesh)

    def state_shapes(self) -> TrainState:
        """Returns the shapes of the state, sharded over the mesh."""
        optimizer = optimizer_of(self.settings)
        shapes = jax.eval_shape(lambda params: init_state(params, optimizer), clip_shapes(self.training.clip))
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
        begin = time.perf_counter()
        rows = next(batches)
        middle = time.perf_counter()
        state, metrics = programs["step"](state, self._frozen, rows, key)
        row = flat_row(jax.device_get(metrics), self.training.timesteps)
        end = time.perf_counter()
        speed = {"seconds/loading": middle - begin, "seconds/step": end - middle}
        return state, {**row, **speed, "pairs_per_second": self.settings.batch_size / (end - begin)}

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

    def export(self, state: TrainState, folder: Path) -> None:
        """Writes the preference model to ``spm/``; only one of the processes does so.

        Raises:
          UserError: a weight does not fit the dtype of the export.
        """
        params = to_host(state.params)
        if is_writer():
            write_spm(
                folder / run_files.SPM,
                self._start.clip.config,
                params,
                self._start.tokenizer,
                self.settings.export_dtype,
                self.training.pipeline.kind,
            )

    def finish(self, state: TrainState, folder: Path) -> Result:
        """Reports the accuracies before and after, as numbers and as a plot against the timestep.

        Raises:
          UserError: a score is not finite, or a file cannot be written.
        """
        if self._last_step != self.total:  # the run was resumed after its last batch
            self.evaluate(self.total, state)
        summary = {"pairs": len(self._split.pairs)}
        lines = {SPM_LINE: self._last}
        before = _read_agreement(self._folder, self._evaluator.fingerprint)
        if before is not None:
            # Before its first step, the model gives the scores of the plain CLIP from which it was made.
            lines |= {PLAIN_LINE if self._start.is_plain else "before training": before}
            summary = {"scores": self._scores(before, self._last), **summary}
        if is_writer():
            write_accuracy(self._folder, lines)
            if before is None:  # otherwise the trainer prints both
                print_accuracy(lines)
        caption = "Mean over held-out pairs with one standard error; chance is a half."
        figure = ("Accuracy against timestep", caption, accuracy_figure(lines))
        return Result(summary, figures=[figure], steps=[_as_judge(self.training.pipeline.kind, self.settings, folder)])

    def _scores(self, before: Agreement, after: Agreement) -> dict[str, dict]:
        named = [{f"pair accuracy/t{t:04d}": values for t, values in measured.items()} for measured in (before, after)]
        judged = "as in the human labels; ties count half"
        if self._split.relabelled:
            judged = "as PickScore orders the clean images"
        meanings = dict.fromkeys(named[0], f"share of held-out pairs that are ordered {judged}")
        return paired_scores(*named, meanings)


def fresh_state(settings: SPMTrainSettings, start: Start, mesh: Mesh) -> TrainState:
    """Returns the state before the first step, sharded over the mesh; the arrays of ``start`` are donated."""
    optimizer = optimizer_of(settings)
    shapes = jax.eval_shape(lambda params: init_state(params, optimizer), start.params)
    make_state = jax.jit(
        lambda params: init_state(params, optimizer), out_shardings=state_shardings(shapes, mesh), donate_argnums=0
    )
    return make_state(start.params)


def _as_judge(kind: str, settings: SPMTrainSettings, folder: Path) -> NextStep:
    """Says how SPO uses the preference model."""
    config = toy.NAME if settings.model == toy.NAME else {"sdxl": "sdxl"}.get(kind, "sd15")
    flags = [f"--config={config}", f"--config.spm.model={folder / run_files.SPM}"]
    flags += [] if settings.model == toy.NAME else [f"--config.model={settings.model}"]
    text = "SPO learns from what this preference model prefers, and takes prompts besides it."
    return NextStep("Use it as the judge", text, command("train", *flags, "--out=runs/spo"))


# The measurement before the first step, on disk


def _agreement_file(folder: Path) -> Path:
    return folder / "evaluation" / "before.npz"


def _write_agreement(folder: Path, measured: Agreement, fingerprint: str) -> None:
    arrays = {str(t): values for t, values in measured.items()}
    write_atomic(_agreement_file(folder), lambda path: np.savez(path, fingerprint=fingerprint, **arrays))


def _read_agreement(folder: Path, fingerprint: str) -> dict | None:
    """Returns the earlier measurement, or None if it was made with other pairs or noise and cannot be compared."""
    path = _agreement_file(folder)
    if not path.is_file():
        return None
    with np.load(path) as arrays:
        if str(arrays["fingerprint"]) != fingerprint:
            return None
        return {int(t): arrays[t] for t in arrays.files if t != "fingerprint"}
