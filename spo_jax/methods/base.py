"""What the trainer needs to know of a method: its settings, and a run of it."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from spo_jax.core.typing import Key, UInt8
from spo_jax.run.folder import State
from spo_jax.run.loop import Progress, Row
from spo_jax.run.settings import RunSettings

Images = Mapping[str, UInt8[np.ndarray, "h w 3"]]
Programs = Mapping[str, Any]  # compiled programs by name; another shape of an argument is an error


@runtime_checkable
class Data(Protocol):
    """What a run learns from, read before anything that takes minutes.

    Attributes:
      digests: strings that identify it; a resumed run must have the same.
    """

    digests: Sequence[str]


class Result(NamedTuple):
    """What a finished run shows.

    Attributes:
      summary: content of ``summary.json``; ``scores`` as `spo_jax.core.statistics.paired_scores` gives them.
      grids: (caption, before, after) for the report; None where a method makes no images.
      figures: (heading, caption, SVG) for the report.
    """

    summary: dict[str, Any]
    grids: Sequence[tuple[str, np.ndarray, np.ndarray]] | None = None
    figures: Sequence[tuple[str, str, bytes]] = ()


@runtime_checkable
class Run(Protocol):
    """One run of a method: the method bound to its models, data and mesh.

    `spo_jax.train` calls it in this order: `init_state`, `begin`, `trace`, then `step` on each of `batches` with an
    `evaluate` now and then, at last `export` and `finish`.

    Attributes:
      total: number of batches.
      progress: what to show for each batch.
      charts: titles and hints of the curves, see `spo_jax.run.report.write_report`.
    """

    total: int
    progress: Progress
    charts: Mapping[str, tuple[str, str]]

    def init_state(self, key: Key) -> State:
        """The state before the first batch; a NamedTuple with a field ``params``, the weights that are trained."""
        ...

    def state_shapes(self) -> State:
        """Shapes of the state where it lies on the mesh, without making it."""
        ...

    def trace(self, state: State, keep_unused: bool = False) -> dict[str, jax.stages.Traced]:
        """The run's programs by name, for a state of arrays or shapes; nothing else of the run has to be arrays.

        Args:
          keep_unused: give programs also the arguments that they do not read, to see all memory that they lie in.
        """
        ...

    def begin(self, state: State, resuming: bool) -> Row:
        """Measures the state before training; the row of batch 0, which may be empty."""
        ...

    def batches(self, start: int) -> Generator[Any, None, None]:
        """The inputs of the batches from number ``start`` on, as `step` takes them."""
        ...

    def step(
        self, programs: Programs, batches: Iterator[Any], number: int, state: State, key: Key
    ) -> tuple[State, Row]:
        """Trains on the next of the batches, which has this number: (next state, row of the curves).

        Everything that it draws follows from ``key`` and the number, so that a resumed run draws the same.
        """
        ...

    def evaluate(self, number: int, state: State) -> tuple[Row, Images]:
        """Evaluates between two batches: more entries for the row, and images to keep."""
        ...

    def export(self, state: State, folder: Path) -> None:
        """Writes the trained weights; every process calls it, and one of them writes."""
        ...

    def finish(self, state: State) -> Result:
        """Measures the trained state, and compares it with what `begin` measured."""
        ...


@runtime_checkable
class Method(Protocol):
    """A method: a module or package with these names.

    `spo_jax.methods.load_method` finds it by its name in `spo_jax.methods` or by a dotted path.

    Attributes:
      Settings: a subclass of `spo_jax.run.settings.RunSettings` whose fields all have defaults.
    """

    Settings: type

    def read_data(self, settings: RunSettings) -> Data:
        """Reads or opens what the run learns from.

        Raises:
          UserError: it is missing or does not fit.
        """
        ...

    def setup(self, settings: RunSettings, mesh: Mesh, data: Data | None = None, folder: Path | None = None) -> Run:
        """Loads the models and binds the method to them.

        Args:
          mesh: where everything lies; in context.
          data: what `read_data` gave. None makes an abstract run, which has shapes instead of weights: its programs can
            be traced and compiled, also for devices that are not here.
          folder: the run's folder.

        Raises:
          UserError: a model is missing or does not fit.
        """
        ...
