"""One rollout of a batch of prompts, judged, as one program: ``python -m benchmarks.rollout --size=sd15``."""

from typing import Any

from benchmarks.common import command, compiled, peak_memory, spread_of, timed, utilisation
from benchmarks.flops import count, xla_flops
from benchmarks.subjects import Subject


def measure(subject: Subject, warmup: int, repeats: int) -> dict[str, Any]:
    """Seconds, trajectories (prompts) and judged pictures per second, operations, memory."""
    networks, settings = subject.networks, subject.settings
    arguments = (subject.fresh_state().lora, subject.frozen, subject.inputs)
    keys = subject.keys(warmup + repeats)
    counted, numbered = (*arguments, keys[0]), iter(keys)
    program, compile_seconds = compiled(networks.collect, *counted)
    seconds = spread_of(timed(lambda: program(*arguments, next(numbered)), warmup, repeats, "rollout"))
    judged = settings.prompts_per_batch * settings.spo.num_candidates * len(subject.judged_timesteps)
    flops = count(networks.collect, *counted)
    return {
        "seconds": seconds,
        "compile_seconds": compile_seconds,
        "trajectories_per_second": settings.prompts_per_batch / seconds["median"],
        "judged_pictures_per_second": judged / seconds["median"],
        "flops_layers": flops,
        "flops_layers_loops_once": count(networks.collect, *counted, loops_once=True),
        "flops_xla_loops_once": xla_flops(program),
        **utilisation(flops, seconds["median"], settings.dtype),
        **peak_memory(),
    }


if __name__ == "__main__":
    command("rollout", measure)
