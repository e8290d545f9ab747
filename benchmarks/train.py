"""Measures whole batches as the trainer runs them, rollout and update: ``python -m benchmarks.train --size=sd15``."""

import statistics
from typing import Any

from benchmarks.common import command, compiled_all, peak_memory, spread_of, timed, utilisation
from benchmarks.flops import count, xla_flops
from benchmarks.subjects import Subject, chunks_of
from spo_jax.methods.common.state import TrainState
from spo_jax.methods.spo.method import run_batch


def measure(subject: Subject, warmup: int, repeats: int) -> dict[str, Any]:
    """Measures trajectories (prompts) and trained pairs per second, seconds of both halves, operations and memory."""
    settings = subject.settings
    programs, compile_seconds = compiled_all(subject.traced)
    keys = subject.keys(warmup + repeats)
    state = subject.fresh_state()
    rows = []

    def batch() -> TrainState:
        nonlocal state
        key = keys[len(rows)]
        state, row = run_batch(programs, subject.frozen, subject.inputs, subject.timesteps, state, key)
        rows.append(row)
        return state

    seconds = spread_of(timed(batch, warmup, repeats, "batch"))
    timed_rows = rows[warmup:]

    def column(name: str) -> list[float]:
        return [row[name] for row in timed_rows]

    # Operations, for the chunks of training batches that were computed; nothing is counted twice (see update_step).
    pairs = statistics.mean(column("valid_pairs"))
    chunks = statistics.mean(chunks_of(settings.spo, int(valid)) for valid in column("valid_pairs"))
    counted = subject.without_remat().traced
    flops_rollout = count(counted["collect"])
    flops_update = count(counted["update"], while_trips=(1, chunks))
    return {
        "batches": len(timed_rows),
        "seconds": seconds,
        "seconds_rollout": statistics.median(column("seconds/rollout")),
        "seconds_update": statistics.median(column("seconds/update")),
        "compile_seconds": compile_seconds,
        "valid_pairs": pairs,
        "training_batches": statistics.mean(column("train_batches")),
        "trajectories_per_second": settings.prompts_per_batch / seconds["median"],
        "pairs_per_second": pairs / statistics.mean(seconds["all"]),
        "flops_rollout": flops_rollout,
        "flops_update": flops_update,
        "flops_xla_loops_once": {name: xla_flops(program) for name, program in programs.items()},
        **utilisation(flops_rollout + flops_update, statistics.mean(seconds["all"]), settings.dtype),
        **peak_memory(),
    }


if __name__ == "__main__":
    command("train", measure)
