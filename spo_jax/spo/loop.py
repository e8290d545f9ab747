"""The only loop over batches: collect, update, write down, look, save."""

import dataclasses
import math
import time
from collections.abc import Callable

import jax
import numpy as np
from tqdm import tqdm

from spo_jax.checkpoint import Checkpointer
from spo_jax.core.errors import Preempted, UserError
from spo_jax.core.trees import take_rows
from spo_jax.core.typing import Array, Int, Key, Params
from spo_jax.metrics import MetricsWriter
from spo_jax.parallel.preemption import PreemptionNotice
from spo_jax.spo.programs import Frozen, Inputs, Programs
from spo_jax.spo.settings import TrainSettings
from spo_jax.spo.train import UPDATE_METRICS, TrainState


@dataclasses.dataclass(frozen=True)
class Outlets:
    """Where a run leaves what it makes.

    Attributes:
      writer: curves. checkpointer: states. sample: draws and stores the grid of (batch, adapter).
      meta: what goes into every checkpoint beside the state (the resolved config).
    """

    writer: MetricsWriter
    checkpointer: Checkpointer
    sample: Callable[[int, Params], None]
    meta: dict


def batch_rows(settings: TrainSettings, prompts: int, batch: int) -> Int[np.ndarray, " b"]:
    """The prompts of a batch: epochs are permutations drawn from (seed, epoch), laid end to end and cut.

    A function of the batch's number alone, so that a resumed run goes on with the very same prompts.
    """
    positions = np.arange(batch * settings.prompts_per_batch, (batch + 1) * settings.prompts_per_batch)
    permutation = lambda epoch: np.random.default_rng((settings.seed, epoch)).permutation(prompts)  # noqa: E731
    epochs = {epoch: permutation(epoch) for epoch in np.unique(positions // prompts)}
    return np.asarray([epochs[position // prompts][position % prompts] for position in positions])


def run_batches(
    settings: TrainSettings,
    programs: Programs,
    frozen: Frozen,
    inputs: Inputs,
    judged_timesteps: Int[np.ndarray, " s"],
    state: TrainState,
    key: Key,
    start: int,
    outlets: Outlets,
) -> TrainState:
    """Trains from batch ``start`` to the end.

    Every batch draws from ``fold_in(key, batch)``, so a run that is resumed draws what it would have drawn.

    Raises:
      UserError: a loss or gradient that is not finite (the last good checkpoint is named); no valid pair in the run.
      Preempted: SIGTERM came; the batch has been finished and saved.
    """
    count = len(inputs.text)
    total = settings.total_batches(count)
    with PreemptionNotice() as notice, tqdm(total=total, initial=start, desc="SPO", unit="batch") as bar:
        for batch in range(start, total):
            rows = programs.feed(take_rows(inputs, batch_rows(settings, count, batch)))
            state, row = run_batch(programs, frozen, rows, judged_timesteps, state, _fold_in(key, np.int32(batch)))
            _stop_if_not_finite(row, batch + 1, outlets.checkpointer)
            # The row before the checkpoint of the same batch: a killed run may have a row too many, never a gap.
            outlets.writer.write(batch + 1, row)
            if _due(settings.log.sample_every, batch + 1, total):
                outlets.sample(batch + 1, state.lora)
            stop = notice.came(batch + 1) and batch + 1 < total
            if stop or _due(settings.log.checkpoint_every, batch + 1, total):
                outlets.checkpointer.save(batch + 1, state, outlets.meta)
            bar.set_postfix(loss=f"{row.get('loss', math.nan):.3f}", valid=f"{row['valid_share']:.0%}", refresh=False)
            bar.update()
            if stop:
                outlets.checkpointer.wait()
                raise Preempted(f"stopped by SIGTERM and saved after batch {batch + 1} of {total}; --resume goes on")
    outlets.checkpointer.wait()
    if not int(state.step):
        raise UserError(f"no pair was valid in {total} batches: nothing was learnt; lower config field spo.threshold")
    return state


# Jitted, for keys that lie on the devices of several processes.
_fold_in = jax.jit(jax.random.fold_in)
_split = jax.jit(lambda key: tuple(jax.random.split(key)))


def _due(every: int, batch: int, total: int) -> bool:
    return batch == total or (every > 0 and batch % every == 0)


def run_batch(
    programs: Programs,
    frozen: Frozen,
    inputs: Inputs,
    judged_timesteps: Int[np.ndarray, " s"],
    state: TrainState,
    key: Key,
) -> tuple[TrainState, dict[str, float]]:
    """One rollout and one update pass, and the row for the curves; ``state`` is donated."""
    collect_key, update_key = _split(key)
    begin = time.perf_counter()
    pairs, rollout = jax.block_until_ready(programs.collect(state.lora, frozen, inputs, collect_key))
    middle = time.perf_counter()
    state, update = jax.block_until_ready(programs.update(state, frozen, inputs, pairs, update_key))
    end = time.perf_counter()
    row = _flat_row({**rollout, **update}, judged_timesteps)
    speed = {
        "seconds/rollout": middle - begin,
        "seconds/update": end - middle,
        # Made by the rollout, whether valid or not; trained on by the update.
        "pairs_per_second/rollout": len(pairs.valid) / (middle - begin),
        "pairs_per_second/update": row["valid_pairs"] / (end - middle),
    }
    return state, {**row, **speed}


def _flat_row(metrics: dict[str, Array], judged_timesteps: Int[np.ndarray, " s"]) -> dict[str, float]:
    """Scalars as they are; vectors over the judgements as one entry per timestep."""
    row = {}
    values = jax.device_get(metrics)
    if not values["valid_pairs"]:  # nothing was trained on: there is no loss, and a curve of zeros would look like one
        values = {name: value for name, value in values.items() if name not in UPDATE_METRICS}
    for name, value in values.items():
        if value.ndim == 0:
            row[name] = value.item()
        else:
            row |= {f"{name}/t{t:04d}": v.item() for t, v in zip(judged_timesteps, value, strict=True)}
    return row


def _stop_if_not_finite(row: dict[str, float], batch: int, checkpointer: Checkpointer) -> None:
    bad = [name for name in ("loss", "grad_norm") if not math.isfinite(row.get(name, 0.0))]
    bad += [name for name, value in row.items() if name.startswith("spm_score") and not math.isfinite(value)]
    if bad:
        checkpointer.wait()
        last = checkpointer.latest_step()
        good = (
            f"the last good checkpoint is {checkpointer.folder / str(last)}" if last else "no checkpoint was saved yet"
        )
        raise UserError(f"batch {batch}: {bad[0]} is {row[bad[0]]}; {good}. Lower spo.learning_rate, or use float32")
