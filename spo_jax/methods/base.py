"""The protocol of a training method, as `spo_jax.train` uses it: its settings, its data and a run."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from spo_jax.core.typing import Key, UInt8
from spo_jax.run.folder import State
from spo_jax.run.loop import Progress, Row
from spo_jax.run.report.images import ImagePair
from spo_jax.run.report.steps import NextStep
from spo_jax.run.settings import RunSettings

Images = Mapping[str, UInt8[np.ndarray, "h w 3"]]
Programs = Mapping[str, Any]  # compiled programs by name; they refuse arguments of other shapes


@runtime_checkable
class Data(Protocol):
    """The data that a run learns from, opened before anything that takes minutes.

    Data may have one more attribute, ``parts``: lists of texts by name of the field that says where they are from. All
    processes of a run must have read the same ones, and a message names the field that differs.

    Attributes:
      digests: strings that identify the data; a resumed run must have the same ones.
    """

    digests: Sequence[str]


class Result(NamedTuple):
    """The results of a finished run.

    Attributes:
      summary: entries for ``summary.json``. Two of them are optional and have a fixed meaning: ``scores`` is what
        `spo_jax.core.statistics.paired_scores` returns, and ``images`` is the number of images that were scored.
      pairs: images before and after training, for the report; empty if the method makes no images.
      figures: (heading, caption, figure in matplotlib's default colours) for the report.
      steps: what can be done with the trained weights, for the report.
    """

    summary: dict[str, Any]
    pairs: Sequence[ImagePair] = ()
    figures: Sequence[tuple[str, str, Any]] = ()
    steps: Sequence[NextStep] = ()


@runtime_checkable
class Run(Protocol):
    """One run of a method: the method bound to its models, data and mesh.

    `spo_jax.train` calls `init_state`, then `begin` and, in a thread at the same time, `trace`, then `step` once for
    each of `batches`, with `evaluate` at the intervals of the settings, and finally `export` and `finish`. If the run
    is resumed, the state is restored from a checkpoint after `begin` and before the first `step`. A run may rely on
    `begin` being called first, but `step` on nothing else than its arguments: its batches may be kept, or another's.

    A run may have more methods, for ahead-of-time compiling (`benchmarks.aot`): ``loop_trips(program)`` returns how
    often the loops of a program run whose length is not known in advance, outermost first, in one training batch, and
    ``idle_params()`` returns the weights that stay on the devices although no program takes them. If the number of
    training batches in a batch of the run differs, it is the curve ``train_batches``, and ``most_train_batches()``
    returns the largest (`benchmarks.costs`).

    It may also have a true attribute ``exports_at_checkpoints``, if `export` is quick and replaces its file in one
    step: then it is also called beside every checkpoint.

    A run may have a `spo_jax.run.guard.guard.Guard` as ``guard``, which looks at it from time to time and may end it
    before its last batch; `finish` is then given the best state.

    And ``lower_is_better``, the names of scores in its rows and results that improve by falling, and ``judge_scores``,
    the names of those from which it learns.

    Attributes:
      total: number of batches of the whole run.
      progress: what to show for each batch, and which metrics have to stay finite.
      charts: name of a chart to its title and a hint for its reader; see `spo_jax.run.report.page.write_report`.
    """

    total: int
    progress: Progress
    charts: Mapping[str, tuple[str, str]]

    def init_state(self, key: Key) -> State:
        """Returns the state before the first batch: a NamedTuple whose field ``params`` holds the trained weights.

        Args:
          key: the key for the weights that a run does not read from a file.
        """
        ...

    def state_shapes(self) -> State:
        """Returns the shapes of the state, with the shardings that it has on the mesh, without making the state."""
        ...

    def trace(self, state: State, keep_unused: bool = False) -> dict[str, jax.stages.Traced]:
        """Traces the run's programs and returns them by name.

        Args:
          state: arrays or shapes. The run itself may be abstract, with shapes in place of all its weights.
          keep_unused: keep arguments that a program does not read, so that the analysis of its memory counts them.
        """
        ...

    def begin(self, state: State, resuming: bool) -> Row:
        """Measures the state before training and returns the row of batch 0, which may be empty.

        Args:
          state: what `init_state` returned, also if the run is resumed.
          resuming: whether the run continues from a checkpoint.
        """
        ...

    def batches(self, start: int) -> Generator[Any, None, None]:
        """Yields what `step` needs for each batch, from batch number ``start`` on; the first batch has number 0.

        Long preparations, such as encoding a dataset, belong before the first ``yield``, and the trainer asks for the
        first batch before its loop starts.
        """
        ...

    def step(
        self, programs: Programs, batches: Iterator[Any], number: int, state: State, key: Key
    ) -> tuple[State, Row]:
        """Trains on the next batch.

        Everything random has to follow from ``key`` and ``number``, so that a resumed run draws the same.

        Args:
          programs: the programs of `trace`, compiled.
          batches: the generator that `batches` returned.
          number: number of the next batch, from 0 on.
          state: the current state; its arrays may be donated.
          key: the run's key for everything that batches draw, the same for all of them.

        Returns:
          The next state, and the batch's row: one value for each curve.
        """
        ...

    def evaluate(self, number: int, state: State) -> tuple[Row, Images]:
        """Evaluates the state between two batches.

        Args:
          number: number of batches finished so far.
          state: the state after them.

        Returns:
          More entries for the row of the latest batch, and images by name to keep as files and among the curves.
        """
        ...

    def export(self, state: State, folder: Path) -> None:
        """Writes the trained weights to the run's folder; every process calls this, and one of them writes."""
        ...

    def finish(self, state: State, folder: Path) -> Result:
        """Measures the trained state and compares it with the measurement that `begin` made.

        Args:
          state: the state after the last batch.
          folder: the run's folder, to which `export` has written; what can be done next names files in it.
        """
        ...


@runtime_checkable
class Method(Protocol):
    """A training method: a module or package that has these members.

    `spo_jax.methods.load_method` finds it by its name in `spo_jax.methods`, or by a dotted path. A method may also have
    a function ``check(settings)``, which refuses settings that name files or models that cannot be used. The trainer
    calls it first: like ``Settings`` and ``read_data``, it should need neither jax nor the network. With ``RULES``,
    which are rules as in `spo_jax.run.diagnosis.rule`, it says what its curves should look like.

    Attributes:
      Settings: a subclass of `spo_jax.run.settings.RunSettings` whose fields all have defaults.
    """

    Settings: type

    def read_data(self, settings: RunSettings) -> Data:
        """Reads or opens the data that the run learns from.

        Raises:
          UserError: the data is missing or does not fit the settings.
        """
        ...

    def setup(self, settings: RunSettings, mesh: Mesh, data: Data | None = None, folder: Path | None = None) -> Run:
        """Loads the models and binds the method to them.

        Args:
          settings: an instance of `Settings`.
          mesh: mesh over which weights and batches are laid; it is also the mesh in context.
          data: what `read_data` returned. None makes an abstract run, which has shapes instead of weights: its programs
            can be traced and compiled, also for devices that this machine does not have.
          folder: the run's folder; None for an abstract run.

        Raises:
          UserError: a model is missing or does not fit.
        """
        ...
