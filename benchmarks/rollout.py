"""Measures one rollout of a batch of prompts, judged, as one program: ``python -m benchmarks.rollout --size=sd15``."""

from typing import Any

from benchmarks.common import command, compiled, peak_memory, product_rate, spread_of, timed, utilisation
from benchmarks.flops import count, xla_flops
from benchmarks.subjects import Subject


def measure(subject: Subject, warmup: int, repeats: int) -> dict[str, Any]:
    """Measures seconds, trajectories (prompts) and judged images per second, operations and memory.

    Operations per second are also given as a share of those of a matrix product, measured right after.
    """
    settings = subject.settings
    traced = subject.traced["collect"]
    program, compile_seconds = compiled(traced)
    arguments = (subject.fresh_state().params, subject.frozen, subject.inputs)
    keys = iter(subject.keys(warmup + repeats))
    seconds = spread_of(timed(lambda: program(*arguments, next(keys)), warmup, repeats, "rollout"))
    judged = settings.prompts_per_batch * settings.spo.num_candidates * len(subject.timesteps.judged)
    flops = count(traced)
    product = product_rate(settings.dtype)
    return {
        "seconds": seconds,
        "compile_seconds": compile_seconds,
        "trajectories_per_second": settings.prompts_per_batch / seconds["median"],
        "judged_pictures_per_second": judged / seconds["median"],
        "flops_layers": flops,
        "flops_layers_loops_once": count(traced, loops_once=True),
        "flops_xla_loops_once": xla_flops(program),
        **utilisation(flops, seconds["median"], settings.dtype),
        "flops_per_second_of_a_product": product,
        "share_of_a_product": flops / seconds["median"] / product / subject.mesh.size,
        **peak_memory(),
    }


if __name__ == "__main__":
    command("rollout", measure)
