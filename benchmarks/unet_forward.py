"""One guided prediction of the policy for a whole pool: ``python -m benchmarks.unet_forward --size=sd15``.

The pool is candidates times prompts, each with and without its text: what every branching step of a rollout costs.
"""

from typing import Any

import numpy as np

from benchmarks.common import command, compiled, peak_memory, spread_of, timed, utilisation
from benchmarks.flops import count, xla_flops
from benchmarks.subjects import Subject
from spo_jax.models.base import Guidance, bind_denoise
from spo_jax.parallel.mesh import over_batch, replicated
from spo_jax.parallel.sharding import place


def measure(subject: Subject, warmup: int, repeats: int) -> dict[str, Any]:
    """Seconds, UNet evaluations per second (two per candidate: guidance), operations, memory."""
    networks, settings = subject.networks, subject.settings
    b, k = settings.prompts_per_batch, settings.spo.num_candidates

    def predict(lora, frozen, inputs, x, t):
        guidance = Guidance(inputs.condition, frozen.unconditional, settings.spo.guidance_scale)
        return bind_denoise(networks.pipeline.unet, frozen.unet, lora, guidance, networks.lora_scale)(x, t)

    x = np.random.default_rng(0).standard_normal((k, b, *networks.pipeline.latent_shape), np.float32)
    x, t = place(x, over_batch(subject.mesh, axis=1)), place(np.int32(501), replicated(subject.mesh))
    arguments = (subject.fresh_state().lora, subject.frozen, subject.inputs, x, t)
    program, compile_seconds = compiled(predict, *arguments)
    seconds = spread_of(timed(lambda: program(*arguments), warmup, repeats, "UNet forward"))
    flops = count(predict, *arguments)
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
