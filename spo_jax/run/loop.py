"""The loop over batches of every method: step, evaluate, write curves, save."""

import dataclasses
import math
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from spo_jax.core.errors import Interrupted, Preempted, UserError
from spo_jax.core.progress import bar
from spo_jax.core.typing import Array, Bool, Key, Params
from spo_jax.parallel.preemption import PreemptionNotice
from spo_jax.run.checkpoint import Checkpointer
from spo_jax.run.folder import state_items
from spo_jax.run.guard.guard import Guard
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
      export: function of a state that is called beside every checkpoint, to write what users read.
      guard: what looks at the run from time to time and may end it; None for nothing.
    """

    writer: MetricsWriter
    checkpointer: Checkpointer
    meta: dict
    evaluate: Callable[[int, Any], Mapping[str, float]]
    eval_every: int
    checkpoint_every: int
    export: Callable[[Any], None] = lambda state: None
    guard: Guard | None = None


@dataclasses.dataclass(frozen=True)
class Progress:
    """What to show for each batch, and which values stop a run.

    Attributes:
      title: title of the progress bar.
      shown: function of all rows so far, of which the last one is this batch's, that returns what the bar shows; see
        `spo_jax.run.trend` for what moves slower than it varies.
      watched: prefixes of the names of metrics that have to stay finite.
      hint: advice for the user when a metric is not finite.
    """

    title: str
    shown: Callable[[Sequence[Row]], dict[str, str]]
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
) -> tuple[int, State]:
    """Trains from batch ``batches.start`` to ``batches.stop``.

    Args:
      step: function of (number of the batch, state) that returns the next state and the batch's row. Everything that it
        draws has to follow from the number, so that a resumed run draws what it would have drawn.
      state: state before the first of these batches.
      batches: numbers of the batches.
      io: where the results go.
      progress: what to show for each batch.

    Returns:
      The number of batches that are done, which are fewer if the guard ended the run, and the state after them.

    Raises:
      UserError: a metric or a trained weight is not finite (the message names the last good checkpoint), or the disk
        cannot be written.
      Preempted: SIGTERM was received; the batch has been finished and saved.
      Interrupted: Ctrl-C was received; likewise.
    """
    total = done = batches.stop
    guard = io.guard
    with PreemptionNotice() as notice, bar(progress.title, total, "batch", batches.start) as shown:
        for done in range(batches.start + 1, total + 1):
            state, row = step(done - 1, state)
            if bad := _not_finite(row, progress):
                io.writer.write(done, row)  # where the curves end, they show why
                raise UserError(f"batch {done}: {bad} is {row[bad]}; {_last_good(io.checkpointer)}. {progress.hint}")
            stop = notice.came(done)
            # Who wants to stop, or whose machine is about to be taken away, has no time for an evaluation.
            if not stop and _is_due(io.eval_every, done, total):
                row = {**row, **io.evaluate(done, state)}
                stop = notice.came_meanwhile()
            ended = best = False
            if guard is not None and not stop and guard.is_due(done):
                row = {**row, **guard.look(done, state)}
                ended, best = guard.ends, guard.kept == done
                stop = notice.came_meanwhile()
            # The row comes before the checkpoint of the same batch: a killed run may have a row too many, never a gap.
            io.writer.write(done, row)
            if stop or ended or best or _is_due(io.checkpoint_every, done, total):
                _save(done, state, io, progress)
            shown.set_postfix(progress.shown(io.writer.rows or [row]), refresh=False)
            shown.update()
            if stop:
                io.checkpointer.wait()
                raise _stopped(stop, done, total)
            if ended:
                break
    io.checkpointer.wait()
    return done, state


def _save(done: int, state: State, io: RunIO, progress: Progress) -> None:
    """Saves a checkpoint, and exports its weights; neither replaces good weights by ones that are not finite."""
    if not _all_finite(state.params):
        raise UserError(f"batch {done}: a trained weight is not finite; {_last_good(io.checkpointer)}. {progress.hint}")
    guard = {} if io.guard is None else {"guard": io.guard.saved()}
    io.checkpointer.save(done, state_items(state), io.meta | guard)
    io.export(state)


@jax.jit
def _all_finite(params: Params) -> Bool[Array, ""]:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]))


def _stopped(by: signal.Signals, done: int, total: int) -> Preempted | Interrupted:
    if by == signal.SIGINT:
        return Interrupted(f"stopped by Ctrl-C and saved after batch {done} of {total}")
    return Preempted(f"stopped by SIGTERM and saved after batch {done} of {total}")


def _is_due(every: int, done: int, total: int) -> bool:
    return done == total or (every > 0 and done % every == 0)


def _not_finite(row: Row, progress: Progress) -> str | None:
    """Returns the name of the first watched metric that is not finite, if there is one."""
    watched = tuple(progress.watched)
    return next((name for name, value in row.items() if name.startswith(watched) and not math.isfinite(value)), None)


def _last_good(checkpointer: Checkpointer) -> str:
    checkpointer.wait()
    last = checkpointer.latest_step()
    return f"the last good checkpoint is {checkpointer.folder / str(last)}" if last else "no checkpoint was saved yet"
