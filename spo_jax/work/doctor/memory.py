"""How much memory of a device the training of a text-to-image model takes: estimated, or by compiling it.

The estimate adds what is counted exactly (weights, the state of the LoRA, stored pairs) and the temporaries of the
larger one of the two programs. These grow with what a program has in memory at a time: pairs whose activations are kept
for the gradients; candidates that go through the network without any, and images that are decoded. What each takes is
read off the programs that were compiled for TPUs (benchmarks/results/aot.md). Their compilers differ by a third for the
same program, so a range is given, which holds all of those results.
"""

import math
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from spo_jax.core.typing import PyTree
from spo_jax.methods import load_method
from spo_jax.methods.common.adapter import AdapterRun
from spo_jax.methods.spo.settings import SPOTrainSettings
from spo_jax.parallel.mesh import make_mesh
from spo_jax.parallel.settings import MeshSettings

GIB = 2**30
# In bfloat16 and with remat, for latents of 64 x 64: SD 1.5 takes 6.6 GiB for 10 pairs, SDXL 6.1 for 2 of 4 times the
# area; SD 1.5 takes 4.9 GiB for 40 candidates, with and without prompt.
_PER_PAIR = 0.7 * GIB
_PER_CANDIDATE = 0.12 * GIB
# Autoencoders have about four arrays of 128 channels at full size at a time, the distilled ones half of that.
_DECODER_CHANNELS = 4 * 128
_AREA = 64 * 64
_WIDTH = 320  # channels of the first convolution of SD 1.5 and of SDXL
# Without remat the activations of all layers are kept; benchmarks.memory finds about three times as much.
_WITHOUT_REMAT = 3
# An estimate may be wrong by this share in either direction.
_UNSURE = 0.35
# The compiler of a v5e uses 15.75 of its 16 GiB.
USABLE = 0.98


class Need(NamedTuple):
    """Bytes of a device that training takes.

    Attributes:
      least: lower end of the range.
      most: its upper end; equal to the lower one if the programs were compiled.
      weights: how much of it are weights.
    """

    least: int | float
    most: int | float
    weights: int

    def fits(self, memory: int | float) -> bool | None:
        """Whether it fits; None if that is not certain."""
        if self.most <= USABLE * memory:
            return True
        return None if self.least <= USABLE * memory else False


class Subject(NamedTuple):
    """What the estimate knows of a model and its judge.

    Attributes:
      weights: bytes of all weights in the dtype of the settings that they were opened with.
      dtype: that dtype.
      state: bytes of the LoRA and of the optimizer's state.
      latents: shape (h, w, c) of the latents.
      width: channels of the network relative to SD 1.5 and SDXL.
      pixels: bytes of a decoded image with one channel, in the dtype of the autoencoder.
    """

    weights: int
    dtype: str
    state: int
    latents: tuple[int, int, int]
    width: float
    pixels: int


def open_subject(settings: SPOTrainSettings) -> Subject:
    """Reads the configs of the model and the judge that the settings name, and none of their weights.

    Raises:
      UserError: the model or the judge is missing, or they do not fit.
    """
    mesh, run = _abstract_run(settings)
    pipeline = run.pipeline
    kernels = jax.tree.leaves(pipeline.params[pipeline.TRAINED])
    width = min(leaf.shape[-1] for leaf in kernels if leaf.ndim == 4 and leaf.shape[0] == 3 and leaf.shape[-1] > 4)
    with jax.set_mesh(mesh):
        state = _bytes(run.state_shapes())
    return Subject(
        _bytes(pipeline.params) + _bytes(run.spo.judge.reward.params),
        settings.dtype,
        state,
        pipeline.latent_shape,
        width / _WIDTH,
        math.prod(pipeline.image_size) * jax.tree.leaves(pipeline.params["vae"])[0].dtype.itemsize,
    )


def estimate(settings: SPOTrainSettings, subject: Subject, devices: int) -> Need:
    """Estimates the bytes of one device.

    Args:
      settings: the settings of a training.
      subject: the model and its judge.
      devices: number of devices that share the batch.
    """
    spo = settings.spo
    per_number = {"bfloat16": 1, "float32": 2}
    weights = subject.weights * per_number[settings.dtype] // per_number[subject.dtype] // max(settings.mesh.fsdp, 1)
    # Every device holds all pairs: of each transition the parent, the winner and the loser, in float32.
    transitions = settings.prompts_per_batch * (spo.num_steps - spo.divert_start_step)
    counted = weights + subject.state + transitions * 3 * math.prod(subject.latents) * 4
    # Temporaries of the two programs.
    h, w, _ = subject.latents
    size = h * w / _AREA * subject.width * per_number[settings.dtype]
    pairs = spo.chunk(devices) / devices
    update = _PER_PAIR * pairs * size * (1 if settings.remat else _WITHOUT_REMAT) + subject.state / 3  # the gradients
    candidates = settings.prompts_per_batch / devices * spo.num_candidates
    image = _DECODER_CHANNELS * subject.pixels * (1 if spo.decoder == "vae" else 0.5)
    collect = _PER_CANDIDATE * candidates * size + spo.decode_chunk * image * subject.width
    temporary = max(update, collect)
    return Need(counted + temporary * (1 - _UNSURE), counted + temporary * (1 + _UNSURE), weights)


def compiled(settings: SPOTrainSettings) -> Need:
    """Compiles the programs for the devices here, without any weights; returns what the larger one takes.

    Raises:
      UserError: as `open_subject`, or the devices do not divide a batch.
    """
    mesh, run = _abstract_run(settings)
    with jax.set_mesh(mesh):
        idle = _bytes(run.idle_params())
        most = 0
        for traced in run.trace(run.state_shapes(), keep_unused=True).values():
            memory = traced.lower().compile().memory_analysis()
            parts = ("argument", "temp", "output", "generated_code")
            # Donated arrays are arguments and outputs in one place.
            total = sum(getattr(memory, f"{part}_size_in_bytes") for part in parts) - memory.alias_size_in_bytes
            most = max(most, idle + total)
    return Need(most, most, idle + _bytes(run.pipeline.params[run.pipeline.TRAINED]))


def _abstract_run(settings: SPOTrainSettings) -> tuple[Mesh, AdapterRun]:
    """Sets up a run with shapes in place of weights, on the devices here."""
    mesh = make_mesh(MeshSettings(settings.mesh.data, settings.mesh.fsdp), jax.local_devices())
    with jax.set_mesh(mesh):
        return mesh, load_method(settings.method).setup(settings, mesh)


def _bytes(tree: PyTree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
