"""Measures the training batches of one rollout as one program: ``python -m benchmarks.update_step --size=sd15``.

The pairs are random and all of them valid, so that the work does not depend on the judge.
"""

from typing import Any

from benchmarks.common import command, compiled, peak_memory, spread_of, timed, utilisation
from benchmarks.flops import count, xla_flops
from benchmarks.subjects import Subject, chunks_of


def measure(subject: Subject, warmup: int, repeats: int) -> dict[str, Any]:
    """Measures seconds of the whole pass and of a training batch, pairs per second, operations and memory.

    The share of the peak (mfu) does not count what gradient checkpointing computes a second time.
    """
    settings = subject.settings
    traced = subject.traced["update"]
    program, compile_seconds = compiled(traced)
    pairs = subject.random_pairs()
    (key,) = subject.keys(1)
    state = subject.fresh_state()

    def step():
        nonlocal state
        state, metrics = program(state, subject.frozen, subject.inputs, pairs, key)
        return metrics

    seconds = spread_of(timed(step, warmup, repeats, "update"))
    n = len(pairs.valid)
    batches = -(-n // settings.spo.train_batch_size)
    trips = (1, chunks_of(settings.spo, n))
    flops = count(subject.without_remat().traced["update"], while_trips=trips)
    return {
        "pairs": n,
        "training_batches": batches,
        "seconds": seconds,
        "seconds_per_training_batch": seconds["median"] / batches,
        "compile_seconds": compile_seconds,
        "pairs_per_second": n / seconds["median"],
        "flops_layers": flops,
        "flops_layers_recomputed_too": count(traced, while_trips=trips),
        "flops_layers_loops_once": count(traced, loops_once=True),
        "flops_xla_loops_once": xla_flops(program),
        **utilisation(flops, seconds["median"], settings.dtype),
        **peak_memory(),
    }


if __name__ == "__main__":
    command("update_step", measure)
