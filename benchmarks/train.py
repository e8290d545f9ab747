"""Whole batches as the trainer runs them, rollout and update: ``python -m benchmarks.train --size=sd15``."""

import statistics
from typing import Any

import jax

from benchmarks.common import command, peak_memory, spread_of, timed, utilisation
from benchmarks.flops import count, xla_flops
from benchmarks.subjects import Subject, chunks_of
from spo_jax.core.typing import Key
from spo_jax.methods.spo.batch import run_batch
from spo_jax.methods.spo.programs import compile_programs


def measure(subject: Subject, warmup: int, repeats: int) -> dict[str, Any]:
    """Trajectories (prompts) and trained pairs per second, seconds of both halves, operations, memory."""
    settings, state = subject.settings, subject.fresh_state()
    programs = compile_programs(subject.networks, state, subject.frozen, subject.inputs)
    keys, rows = subject.keys(warmup + repeats), []

    def batch():
        nonlocal state
        arguments = (programs, subject.frozen, subject.inputs, subject.judged_timesteps)
        state, row = run_batch(*arguments, state, keys[len(rows)])
        rows.append(row)
        return state

    seconds = spread_of(timed(batch, warmup, repeats, "batch"))
    counted = rows[warmup:]
    middle = lambda name: statistics.median(row[name] for row in counted)  # noqa: E731
    pairs, batches = (statistics.mean(row[name] for row in counted) for name in ("valid_pairs", "train_batches"))
    chunks = statistics.mean(chunks_of(settings.spo, int(row["valid_pairs"])) for row in counted)
    flops = _flops(subject, keys[0], chunks)
    total = flops["flops_rollout"] + flops["flops_update"]
    return {
        "batches": len(counted),
        "seconds": seconds,
        "seconds_rollout": middle("seconds/rollout"),
        "seconds_update": middle("seconds/update"),
        "compile_seconds": programs.compile_seconds,
        "valid_pairs": pairs,
        "training_batches": batches,
        "trajectories_per_second": settings.prompts_per_batch / seconds["median"],
        "pairs_per_second": pairs / statistics.mean(seconds["all"]),
        **flops,
        "flops_xla_loops_once": {name: xla_flops(getattr(programs, name)) for name in ("collect", "update")},
        **utilisation(total, statistics.mean(seconds["all"]), settings.dtype),
        **peak_memory(),
    }


def _flops(subject: Subject, key: Key, chunks: float) -> dict[str, float]:
    """From the layers, for the chunks of training batches that there were; nothing counted twice (see update_step)."""
    state, networks = subject.fresh_state(), subject.without_remat().networks
    inputs = (subject.frozen, subject.inputs)
    pairs = jax.eval_shape(networks.collect, state.lora, *inputs, key)[0]
    return {
        "flops_rollout": count(networks.collect, state.lora, *inputs, key),
        "flops_update": count(networks.update, state, *inputs, pairs, key, while_trips=(1, chunks)),
    }


if __name__ == "__main__":
    command("train", measure)
