"""Memory of a device that training takes: by the formula for SPO with the sizes of this model, or by compiling it."""

import dataclasses
import math
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from spo_jax.core.typing import PyTree
from spo_jax.methods import load_method
from spo_jax.methods.common.adapter import AdapterRun
from spo_jax.methods.spo.memory import SD15, SDXL, Sizes, estimate
from spo_jax.methods.spo.programs import SPO, TwoJudges
from spo_jax.methods.spo.settings import SPOTrainSettings
from spo_jax.parallel.compiling import compile_program
from spo_jax.parallel.device_memory import TPU_USABLE, program_bytes, shard_bytes
from spo_jax.parallel.mesh import make_mesh

_WIDTH = 320  # channels of the first convolution of SD 1.5 and of SDXL
# What was compiled for TPUs takes from 21 % less to 8 % more than the formula says; elsewhere it extrapolates.
_UNSURE = {"tpu": 0.21, "gpu": 0.3, "cpu": 0.3}


class Need(NamedTuple):
    """Bytes of a device that training takes.

    Attributes:
      least: lower end of the range.
      most: its upper end; equal to the lower one if the programs were compiled.
    """

    least: int | float
    most: int | float

    def fits(self, memory: int | float) -> bool | None:
        """Whether it fits; None if that is not certain."""
        if self.most <= TPU_USABLE * memory:
            return True
        return None if self.least <= TPU_USABLE * memory else False


def sizes_of(settings: SPOTrainSettings) -> Sizes:
    """Reads the configs of the model and the judges that the settings name, and none of their weights.

    Raises:
      UserError: the model or a judge is missing, or they do not fit.
    """
    mesh, run = _abstract_run(settings)
    pipeline = run.pipeline
    network = pipeline.params[pipeline.TRAINED]
    with jax.set_mesh(mesh):
        adapter = run.state_shapes().params
    # Temporaries grow with the area of the latents and with the width of the network.
    known = SDXL if pipeline.kind == "sdxl" else SD15
    kernels = [leaf for leaf in jax.tree.leaves(network) if leaf.ndim == 4 and leaf.shape[0] == 3]
    width = min(leaf.shape[-1] for leaf in kernels if leaf.shape[-1] > pipeline.latent_shape[-1])
    latent = math.prod(pipeline.latent_shape)
    scale = latent / known.latent * width / _WIDTH
    return dataclasses.replace(
        known.grown(scale),
        network=_numbers(network),
        vae=_numbers(pipeline.params["vae"]),
        text=_numbers(pipeline.text_params),
        **_judge_sizes(run.spo),
        adapter=_numbers(adapter) // settings.lora.rank,
        latent=latent,
    )


def _judge_sizes(spo: SPO) -> dict[str, int]:
    """Counts the parameters of the judge, or of both."""
    if isinstance(spo.judge, TwoJudges):
        first, second = (_numbers(judge.reward.params) for judge in (spo.judge.first, spo.judge.second))
        return {"latent_judge": first, "judge": second}
    return {"latent_judge" if spo.settings.spo.judged == "noisy" else "judge": _numbers(spo.judge.reward.params)}


def estimated(settings: SPOTrainSettings, sizes: Sizes, devices: int, platform: str) -> Need:
    """Estimates the bytes of one device.

    Args:
      settings: the settings of a training.
      sizes: sizes of the model and its judges.
      devices: number of devices that share the batch.
      platform: their platform; the formula is less certain off TPUs.
    """
    peak = estimate(settings, sizes, devices).peak
    unsure = _UNSURE.get(platform, max(_UNSURE.values()))
    return Need(peak * (1 - unsure), peak * (1 + unsure))


def compiled(settings: SPOTrainSettings) -> Need:
    """Compiles the programs for the devices here, without any weights; returns what the larger one takes.

    Raises:
      UserError: as `sizes_of`, or the devices do not divide a batch.
    """
    mesh, run = _abstract_run(settings)
    with jax.set_mesh(mesh):
        programs = [compile_program(traced) for traced in run.trace(run.state_shapes(), keep_unused=True).values()]
        most = shard_bytes(run.idle_params()) + max(program_bytes(program)["total"] for program in programs)
    return Need(most, most)


def _abstract_run(settings: SPOTrainSettings) -> tuple[Mesh, AdapterRun]:
    """Sets up a run with shapes in place of weights, on the devices here."""
    mesh = make_mesh(settings.mesh, jax.local_devices())
    with jax.set_mesh(mesh):
        return mesh, load_method(settings.method).setup(settings, mesh)


def _numbers(tree: PyTree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
