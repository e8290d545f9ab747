"""Measures one guided prediction of the policy for a whole pool: ``python -m benchmarks.unet_forward --size=sd15``.

The pool holds candidates times prompts, each predicted with and without its text: the cost of every branching step of a
rollout.
"""

from typing import Any

import jax
import numpy as np

from benchmarks.common import command, compiled, peak_memory, spread_of, timed, utilisation
from benchmarks.flops import count, xla_flops
from benchmarks.subjects import Subject
from spo_jax.core.typing import Array
from spo_jax.parallel.mesh import over_batch, replicated
from spo_jax.parallel.sharding import place


def measure(subject: Subject, warmup: int, repeats: int) -> dict[str, Any]:
    """Measures seconds, UNet evaluations per second (two per candidate: guidance), operations and memory."""
    settings = subject.settings
    b = settings.prompts_per_batch
    k = settings.spo.num_candidates

    def predict(lora, frozen, inputs, x, t) -> Array:
        denoise = subject.spo.policy.sampler(frozen.network, lora, inputs.condition, frozen.unconditional)
        return denoise(x, t)

    x = np.random.default_rng(0).standard_normal((k, b, *subject.spo.pipeline.latent_shape), np.float32)
    x = place(x, over_batch(subject.mesh, axis=1))
    t = place(np.int32(501), replicated(subject.mesh))
    arguments = (subject.fresh_state().params, subject.frozen, subject.inputs, x, t)
    traced = jax.jit(predict, out_shardings=replicated(subject.mesh)).trace(*arguments)
    program, compile_seconds = compiled(traced)
    seconds = spread_of(timed(lambda: program(*arguments), warmup, repeats, "UNet forward"))
    flops = count(traced)
    return {
        "evaluations": 2 * k * b,
        "seconds": seconds,
        "compile_seconds": compile_seconds,
        "evaluations_per_second": 2 * k * b / seconds["median"],
        "flops_layers": flops,
        "flops_xla": xla_flops(program),
        **utilisation(flops, seconds["median"], settings.dtype),
        **peak_memory(),
    }


if __name__ == "__main__":
    command("unet_forward", measure, repeats=20)
