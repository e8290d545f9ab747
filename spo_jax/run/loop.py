"""The loop over batches of every method: step, evaluate, write curves, save."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
from tqdm import tqdm

from spo_jax.core.errors import Preempted, UserError
from spo_jax.core.typing import Key
from spo_jax.parallel.preemption import PreemptionNotice
from spo_jax.run.checkpoint import Checkpointer
from spo_jax.run.folder import state_items
from spo_jax.run.metrics import MetricsWriter

State = TypeVar("State")
Row = dict[str, float]  # one batch's point of every curve


@dataclasses.dataclass(frozen=True)
class RunIO:
    """Where a run's results go, and how often.

    Attributes:
      writer: writer of curves.
      checkpointer: writer of states.
      meta: what every checkpoint holds besides the state (the resolved settings).
      evaluate: function of (batch, state), called every ``eval_every`` batches and after the last one, for grids and
        evaluations. The values that it returns join the batch's row.
      eval_every: batches between two evaluations (0: only after the last batch).
      checkpoint_every: batches between two checkpoints (0: only after the last batch).
    """

    writer: MetricsWriter
    checkpointer: Checkpointer
    meta: dict
    evaluate: Callable[[int, Any], Mapping[str, float]]
    eval_every: int
    checkpoint_every: int


@dataclasses.dataclass(frozen=True)
class Progress:
    """What to show for each batch, and which values stop a run.

    Attributes:
      title: title of the progress bar.
      shown: function of a row that returns what the bar shows.
      watched: prefixes of the names of metrics that have to stay finite.
      hint: advice for the user when a metric is not finite.
    """

    title: str
    shown: Callable[[Row], dict[str, str]]
    watched: Sequence[str]
    hint: str


def run_keys(seed: int) -> tuple[Key, Key]:
    """Makes two keys: one for the weights that a run starts from and does not read, and one for its batches."""
    key = jax.random.key(seed)
    return jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)


def run(
    step: Callable[[int, State], tuple[State, Row]],
    state: State,
    batches: range,
    io: RunIO,
    progress: Progress,
) -> State:
    """Trains from batch ``batches.start`` to ``batches.stop``.

    Args:
      step: function of (number of the batch, state) that returns the next state and the batch's row. Everything that it
        draws has to follow from the number, so that a resumed run draws what it would have drawn.
      state: state before the first of these batches.
      batches: numbers of the batches.
      io: where the results go.
      progress: what to show for each batch.

    Returns:
      The state after the last batch.

    Raises:
      UserError: a metric is not finite (the message names the last good checkpoint), or the disk cannot be written.
      Preempted: SIGTERM was received; the batch has been finished and saved.
    """
    total = batches.stop
    with (
        PreemptionNotice() as notice,
        tqdm(total=total, initial=batches.start, desc=progress.title, unit="batch") as bar,
    ):
        for done in range(batches.start + 1, total + 1):
            state, row = step(done - 1, state)
            _stop_if_not_finite(row, done, progress, io.checkpointer)
            stop = notice.came(done) and done < total
            # A machine that is about to be taken away has no time for an evaluation.
            if not stop and _is_due(io.eval_every, done, total):
                row = {**row, **io.evaluate(done, state)}
            # The row comes before the checkpoint of the same batch: a killed run may have a row too many, never a gap.
            io.writer.write(done, row)
            if stop or _is_due(io.checkpoint_every, done, total):
                io.checkpointer.save(done, state_items(state), io.meta)
            bar.set_postfix(progress.shown(row), refresh=False)
            bar.update()
            if stop:
                io.checkpointer.wait()
                raise Preempted(f"stopped by SIGTERM and saved after batch {done} of {total}; --resume continues")
    io.checkpointer.wait()
    return state


def _is_due(every: int, done: int, total: int) -> bool:
    return done == total or (every > 0 and done % every == 0)


def _stop_if_not_finite(row: Row, done: int, progress: Progress, checkpointer: Checkpointer) -> None:
    watched = tuple(progress.watched)
    bad = [name for name, value in row.items() if name.startswith(watched) and not math.isfinite(value)]
    if not bad:
        return
    checkpointer.wait()
    last = checkpointer.latest_step()
    good = f"the last good checkpoint is {checkpointer.folder / str(last)}" if last else "no checkpoint was saved yet"
    raise UserError(f"batch {done}: {bad[0]} is {row[bad[0]]}; {good}. {progress.hint}")
