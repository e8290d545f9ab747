"""The only loop over batches, of whatever is trained: step, look, write down, save."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import jax
from tqdm import tqdm

from spo_jax.core.errors import Preempted, UserError
from spo_jax.core.typing import Key
from spo_jax.parallel.preemption import PreemptionNotice
from spo_jax.run.checkpoint import Checkpointer
from spo_jax.run.metrics import MetricsWriter

State = TypeVar("State")
Row = dict[str, float]  # of the curves


@dataclasses.dataclass(frozen=True)
class SaveSettings:
    """How often (in batches) checkpoints are saved; 0 is never, but at the end.

    Attributes:
      keep_checkpoints: the latest ones that stay. keep_every: those of multiples of it stay as well; 0 is none.
    """

    checkpoint_every: int = 50
    keep_checkpoints: int = 3
    keep_every: int = 0

    # Fields for which 0 means nothing.
    AT_LEAST_ONE: ClassVar = ("keep_checkpoints",)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), int(field.name in self.AT_LEAST_ONE)
            if value < least:
                raise UserError(f"config field log.{field.name} = {value}: expected {least} or more")


@dataclasses.dataclass(frozen=True)
class Outlets:
    """Where a run leaves what it makes.

    Attributes:
      writer: curves. checkpointer: states.
      meta: what goes into every checkpoint beside the state (the resolved config).
      look: called with (batch, state) every ``look_every`` batches and after the last one; grids, evaluations. What it
        returns joins the batch's row.
    """

    writer: MetricsWriter
    checkpointer: Checkpointer
    meta: dict
    look: Callable[[int, Any], Mapping[str, float]]
    look_every: int
    checkpoint_every: int


@dataclasses.dataclass(frozen=True)
class Telling:
    """What people are told about a batch.

    Attributes:
      title: of the progress bar. shown: a row's part for the bar.
      watched: beginnings of the names of numbers that have to stay finite. hint: what to do when one did not.
    """

    title: str
    shown: Callable[[Row], dict[str, str]]
    watched: Sequence[str]
    hint: str


def run_keys(seed: int) -> tuple[Key, Key]:
    """For the weights that a run starts from and does not read, and for its batches."""
    key = jax.random.key(seed)
    return jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)


def run(
    step: Callable[[int, State], tuple[State, Row]],
    state: State,
    batches: range,
    outlets: Outlets,
    telling: Telling,
) -> State:
    """Trains from batch ``batches.start`` to ``batches.stop``.

    Args:
      step: (number of the batch, state) to the next state and the batch's row. All that it draws has to follow from
        the number, so that a run that is resumed draws what it would have drawn.

    Raises:
      UserError: a number that is not finite (the last good checkpoint is named), or a disk that refuses.
      Preempted: SIGTERM came; the batch has been finished and saved.
    """
    total = batches.stop
    with (
        PreemptionNotice() as notice,
        tqdm(total=total, initial=batches.start, desc=telling.title, unit="batch") as bar,
    ):
        for done in range(batches.start + 1, total + 1):
            state, row = step(done - 1, state)
            _stop_if_not_finite(row, done, telling, outlets.checkpointer)
            stop = notice.came(done) and done < total
            if not stop and _due(outlets.look_every, done, total):  # a machine that is taken away does not wait
                row = {**row, **outlets.look(done, state)}
            # The row before the checkpoint of the same batch: a killed run may have a row too many, never a gap.
            outlets.writer.write(done, row)
            if stop or _due(outlets.checkpoint_every, done, total):
                outlets.checkpointer.save(done, state, outlets.meta)
            bar.set_postfix(telling.shown(row), refresh=False)
            bar.update()
            if stop:
                outlets.checkpointer.wait()
                raise Preempted(f"stopped by SIGTERM and saved after batch {done} of {total}; --resume goes on")
    outlets.checkpointer.wait()
    return state


def _due(every: int, done: int, total: int) -> bool:
    return done == total or (every > 0 and done % every == 0)


def _stop_if_not_finite(row: Row, done: int, telling: Telling, checkpointer: Checkpointer) -> None:
    bad = [name for name, value in row.items() if name.startswith(tuple(telling.watched)) and not math.isfinite(value)]
    if not bad:
        return
    checkpointer.wait()
    last = checkpointer.latest_step()
    good = f"the last good checkpoint is {checkpointer.folder / str(last)}" if last else "no checkpoint was saved yet"
    raise UserError(f"batch {done}: {bad[0]} is {row[bad[0]]}; {good}. {telling.hint}")
