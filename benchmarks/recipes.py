"""Machines, the published recipes, what of them fits, and how long they take by the cost model."""

import dataclasses
from collections.abc import Iterator, Sequence

from spo_jax.core.config_flag import load_config
from spo_jax.methods import read_settings
from spo_jax.methods.common.decoding import ELSEWHERE
from spo_jax.methods.spo.memory import GIB, SD15, SDXL, Memory, Sizes, estimate
from spo_jax.methods.spo.plan import make_plan
from spo_jax.methods.spo.settings import SPOTrainSettings
from spo_jax.parallel.device_memory import TPU_USABLE

SHARES = (0.4, 0.2)  # of the peak: what this package aims at, and a cautious estimate


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine with one or several equal devices.

    Attributes:
      name: what people call it.
      gib: memory of a device in GiB.
      peak: dense bfloat16 TFLOP/s of a device, accumulated in float32, from the maker's data sheet.
      devices: number of devices.
      topology: name of its TPU topology, as `benchmarks.aot` takes it; empty for GPUs.
    """

    name: str
    gib: int
    peak: float
    devices: int = 1
    topology: str = ""

    @property
    def usable(self) -> float:
        """Bytes of a device that programs can have.

        A GPU's driver, its libraries and a screen take their part.
        """
        return (TPU_USABLE if self.topology else 0.92) * self.gib * GIB


MACHINES = (
    Machine("RTX 3060, 12 GB", 12, 25.5),
    Machine("RTX 4080, 16 GB", 16, 97.5),
    Machine("RTX 3090, 24 GB", 24, 71.2),
    Machine("RTX 4090, 24 GB", 24, 165.2),
    Machine("L4, 24 GB", 24, 121),
    Machine("RTX A6000, 48 GB", 48, 154.8),
    Machine("L40S, 48 GB", 48, 362),
    Machine("A100, 80 GB", 80, 312),
    Machine("H100, 80 GB", 80, 989),
    Machine("TPU v5e, 1 chip", 16, 197, 1, "v5e:1x1"),
    Machine("TPU v5e, 8 chips", 16, 197, 8, "v5e:2x4"),
    Machine("TPU v6e, 1 chip", 32, 918, 1, "v6e:1x1"),
    Machine("TPU v6e, 8 chips", 32, 918, 8, "v6e:2x4"),
    Machine("TPU v5p, 4 chips", 95, 459, 4, "v5p:2x2x1"),
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A published recipe.

    Attributes:
      config: its config.
      title: name of the model.
      sizes: what the formula of memory knows of it.
      batches: prompts, and pairs, that a device may have at a time, from the published number down.
      network: TFLOP of an evaluation of the UNet.
      half: TFLOP of a noisy latent that a latent reward model judges, with its guidance: two evaluations of the first
        half of a UNet.
      decode: TFLOP of an image decoded by the autoencoder.
      whole: TFLOP of both where doubled images are convolved whole, as TPUs do.
      distilled: TFLOP of an image decoded by the distilled decoder.
      distilled_id: hub id of that decoder.
    """

    config: str
    title: str
    sizes: Sizes
    batches: Sequence[int]
    network: float
    half: float
    decode: float
    whole: tuple[float, float]
    distilled: float
    distilled_id: str

    @property
    def lpo(self) -> str:
        """The config of LPO for the same model."""
        return f"lpo_{self.config}"


RECIPES = (
    Recipe(
        "sd15", "SD 1.5", SD15, (10, 5, 4, 3, 2, 1), 0.769, 0.523, 2.132, (0.804, 2.515), 0.127, "madebyollin/taesd"
    ),
    Recipe("sdxl", "SDXL", SDXL, (2, 1), 6.80, 5.87, 8.933, (6.93, 10.47), 0.509, "madebyollin/taesdxl"),
)
JUDGE = 0.335  # TFLOP of an image judged by CLIP-H


# What fits


def settings_of(recipe: Recipe, batch: int, devices: int, decode: int, cut: bool) -> SPOTrainSettings:
    """Returns the settings of a recipe for some devices, as its config with flags gives them.

    Args:
      recipe: the recipe.
      batch: prompts, and pairs, of a device.
      devices: number of devices.
      decode: images that a device decodes at a time.
      cut: whether weights are cut over the devices.
    """
    settings = read_settings(load_config(recipe.config))
    spo = dataclasses.replace(settings.spo, train_batch_size=batch * devices, train_chunk=batch, decode_chunk=decode)
    mesh = dataclasses.replace(settings.mesh, data=1, fsdp=devices) if cut else settings.mesh
    return dataclasses.replace(settings, prompts_per_batch=batch * devices, spo=spo, mesh=mesh)


def candidates(recipe: Recipe, machine: Machine) -> Iterator[SPOTrainSettings]:
    """Yields settings from the largest memory down; weights are cut last, because that costs time."""
    most = read_settings(load_config(recipe.config)).spo.decode_chunk or ELSEWHERE
    for cut in (False, True) if machine.devices > 1 else (False,):
        for batch in recipe.batches:
            for decode in (most, 1):
                yield settings_of(recipe, batch, machine.devices, decode, cut)


def fit(recipe: Recipe, machine: Machine) -> tuple[SPOTrainSettings, Memory, bool]:
    """Finds the settings with the largest batches that fit a machine.

    Returns:
      The settings, what a device holds, and whether it fits; the smallest settings if none does.
    """
    for settings in candidates(recipe, machine):
        memory = estimate(settings, recipe.sizes, machine.devices)
        if memory.peak <= machine.usable:
            return settings, memory, True
    return settings, memory, False


# Hours


def work(recipe: Recipe, settings: SPOTrainSettings, valid: float = 1.0, whole: bool = False) -> float:
    """Returns the TFLOP of a prompt's rollout and of the update on its pairs, the least that gives the results.

    Args:
      recipe: the recipe.
      settings: settings of SPO, or of LPO with one judge.
      valid: share of pairs that are valid.
      whole: whether to count what TPUs compute: they convolve doubled images whole, which is quicker there.
    """
    spo = settings.spo
    network, decoded = recipe.whole if whole else (recipe.network, recipe.decode)
    plan = make_plan(spo)
    records = spo.num_steps - spo.divert_start_step
    guided = 2 * network  # with and without the prompt
    if spo.judged == "noisy":
        rollout = spo.num_steps * guided + records * spo.num_candidates * recipe.half
    else:
        judged = (len(plan.judged_at) + 1) * spo.num_candidates
        decode = decoded if spo.decoder == "vae" else recipe.distilled
        steps = spo.divert_start_step + 1 + (records - 1) * spo.num_candidates
        rollout = steps * guided + judged * (decode + JUDGE)
    # The policy forward, again for remat, and backward (to activations only), and the reference.
    update = records * 4 * guided * (1 if plan.shares_parent else 2)
    return rollout + valid * update


def hours(machine: Machine, tflop: float, prompts: int) -> list[float]:
    """Returns the hours of one pass over prompts, for both shares of the peak."""
    return [prompts * tflop / (machine.devices * machine.peak * share) / 3600 for share in SHARES]
