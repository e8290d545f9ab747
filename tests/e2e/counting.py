"""A method that counts: each batch adds 1 to its one weight. Its guard's looks are made up, and batch 3 is its best."""

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.config import Settings, setting
from spo_jax.core.files import write_text
from spo_jax.core.statistics import paired_scores
from spo_jax.methods.base import Result
from spo_jax.run.loop import Progress
from spo_jax.run.settings import RunSettings
from tests.support.guarded import hacked, make_guard


@dataclasses.dataclass(frozen=True)
class Guarded(Settings):
    """What the guard does."""

    GROUP: ClassVar = "eval."

    guard: str = setting("stop", "As for other methods.")
    guard_looks: int = setting(2, "As for other methods.")
    guard_score: str = setting("quality", "Name of the held-out score.")


@dataclasses.dataclass(frozen=True)
class CountingSettings(RunSettings):
    """Twenty batches."""

    FREE_FIELDS: ClassVar[Sequence[str]] = (*RunSettings.FREE_FIELDS, "eval")

    method: str = setting("tests.e2e.counting", "This method.")
    batches: int = setting(20, "Number of batches.")
    eval: Guarded = Guarded()


Settings = CountingSettings


class State(NamedTuple):
    """The weight."""

    params: dict[str, jax.Array]


def read_data(settings: CountingSettings) -> Any:
    """Returns nothing to learn from."""
    del settings
    return SimpleNamespace(digests=())


def setup(settings: CountingSettings, mesh: Any, data: Any = None, folder: Any = None) -> "Counting":
    """Returns the run."""
    del mesh, data, folder
    return Counting(settings)


class Counting:
    """A run that counts; see `spo_jax.methods.base.Run`."""

    progress = Progress("Counting", lambda rows: {}, ("loss",), "Nothing helps")
    charts = {}
    exports_at_checkpoints = True

    def __init__(self, settings: CountingSettings):
        self.total = settings.batches
        guard = settings.eval
        plan = {"mode": guard.guard, "in_a_row": guard.guard_looks, "about": {"rewards": guard.guard_score}}
        looks = hacked(best=3, name=guard.guard_score)
        self.guard = make_guard(looks, self.total, begin=False, **plan) if guard.guard != "off" else None

    def init_state(self, key: Any) -> State:
        """Begins with 0."""
        del key
        return State({"count": jnp.zeros(())})

    def state_shapes(self) -> State:
        """Has one number."""
        return jax.eval_shape(self.init_state, None)

    def trace(self, state: State, keep_unused: bool = False) -> dict[str, Any]:
        """Has one program."""
        del keep_unused
        return {"add": jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state)).trace(state)}

    def begin(self, state: State, resuming: bool) -> dict[str, float]:
        """Has nothing to measure."""
        return {}

    def batches(self, start: int) -> Any:
        """Needs no input."""
        yield from range(start, self.total)

    def step(self, programs: Any, batches: Any, number: int, state: State, key: Any) -> tuple[State, dict]:
        """Counts."""
        assert next(batches) == number
        return programs["add"](state), {"loss": 1.0 / (number + 1)}

    def evaluate(self, number: int, state: State) -> tuple[dict, dict]:
        """Has nothing to evaluate."""
        return {}, {}

    def export(self, state: State, folder: Any) -> None:
        """Writes the count."""
        write_text(folder / "count.txt", f"{float(state.params['count']):g}\n")

    def finish(self, state: State, folder: Any) -> Result:
        """Reports the count."""
        count = float(state.params["count"])
        now = {"count": np.full(3, count)}
        return Result({"scores": paired_scores({"count": np.zeros(3)}, now, {"count": "batches in the weight"})})
