"""A batch of SPO, which prompts it takes, and a whole run of them."""

import math
import time

import jax
import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.trees import take_rows
from spo_jax.core.typing import Array, Int, Key
from spo_jax.methods.spo.programs import Frozen, Inputs, Programs
from spo_jax.methods.spo.settings import TrainSettings
from spo_jax.methods.spo.update import UPDATE_METRICS, TrainState
from spo_jax.run import loop

_TELLING = loop.Telling(
    title="SPO",
    shown=lambda row: {"loss": f"{row.get('loss', math.nan):.3f}", "valid": f"{row['valid_share']:.0%}"},
    watched=("loss", "grad_norm", "spm_score"),
    hint="Lower spo.learning_rate, or use float32",
)


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
    outlets: loop.Outlets,
) -> TrainState:
    """Trains from batch ``start`` to the end (see `spo_jax.run.loop.run`).

    Every batch draws from ``fold_in(key, batch)``, so a run that is resumed draws what it would have drawn.

    Raises:
      UserError: as the loop; and no valid pair in the whole run.
    """
    count = len(inputs.text)
    total = settings.total_batches(count)

    def step(batch: int, state: TrainState) -> tuple[TrainState, loop.Row]:
        rows = programs.feed(take_rows(inputs, batch_rows(settings, count, batch)))
        return run_batch(programs, frozen, rows, judged_timesteps, state, _fold_in(key, np.int32(batch)))

    state = loop.run(step, state, range(start, total), outlets, _TELLING)
    if not int(state.step):
        raise UserError(f"no pair was valid in {total} batches: nothing was learnt; lower config field spo.threshold")
    return state


# Jitted, for keys that lie on the devices of several processes.
_fold_in = jax.jit(jax.random.fold_in)
_split = jax.jit(lambda key: tuple(jax.random.split(key)))


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
