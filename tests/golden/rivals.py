"""The arrays of the methods that SPO is compared with: the folder ``rivals`` of the golden arrays, in our layout.

A test asks the fixture ``rivals`` for a case by its name. Sets of arrays differ in sizes, hyper-parameters and in the
cases that they have, so a test reads every number from the case, and is skipped where the case is missing:

    def test_it(rivals):
        case = rivals.case("dpo_e2e")
        latents = case.images("latents_w")  # [3 2 h w c]
        start = case.lora("lora_init")      # our tree
"""

import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.trees import flatten
from spo_jax.core.typing import Params
from spo_jax.data.tokenizer import AbstractTokenizer
from spo_jax.diffusion.ddpm import DDPM
from spo_jax.diffusion.schedule import ScheduleConfig
from spo_jax.models.lora import read_lora
from spo_jax.models.stable_diffusion.conditioning import Conditioning
from spo_jax.models.stable_diffusion.config import UNetConfig
from spo_jax.models.stable_diffusion.pipeline import StableDiffusion, unet_shapes
from spo_jax.models.stable_diffusion.unet import UNet2DConditionModel
from spo_jax.nn.clip import CLIPTextModel
from spo_jax.nn.vae import AutoencoderKL
from spo_jax.weights import components
from tests.support.networks import SCHEDULE, TEXT, VAE

LOSS = 1e-5  # relative, of values that no network has computed
OUTPUT = 2e-5  # of the largest value, of a network's output
GRADIENT = 1e-4  # of the largest value, of a loss with respect to its input
LORA_GRADIENT = 1e-3  # of each tensor's largest value
LOSS_OF_NETWORK = 1e-3  # absolute: a beta of hundreds or thousands multiplies small differences of errors
STEP = 0.05  # of the learning rate, of a LoRA after a few steps


def nhwc(x: np.ndarray) -> jax.Array:
    """[... c h w] -> [... h w c]."""
    return jnp.asarray(np.moveaxis(x, -3, -1))


class Case:
    """The arrays of one case, by their names in its file; int64 is int32 here, JAX's integer.

    Attributes:
      name: the case's name.
      alphas_cumprod: ᾱ by timestep, as it was used.
    """

    def __init__(self, folder: Path, name: str):
        self.name = name
        self._folder = folder
        with np.load(folder / f"{name}.npz") as file:
            arrays = {key: file[key] for key in file.files}
        self._arrays = {k: v.astype(np.int32) if v.dtype == np.int64 else v for k, v in arrays.items()}

    def __contains__(self, array: str) -> bool:
        return array in self._arrays

    def __getitem__(self, array: str) -> np.ndarray:
        return self._arrays[array]

    def images(self, array: str) -> jax.Array:
        """An array of images or latents, [... h w c]."""
        return nhwc(self._arrays[array])

    def number(self, array: str) -> float:
        """A scalar as Python's number, as settings have it."""
        return self._arrays[array].item()

    def matching(self, pattern: str) -> list[tuple[str, ...]]:
        """The groups of a pattern in every name of an array that it matches as a whole, in the order of the file."""
        found = (re.fullmatch(pattern, name) for name in self._arrays)
        return [match.groups() for match in found if match]

    def condition(self, index: int | None = None, prefix: str = "") -> Conditioning:
        """What the prompts are encoded to, with SDXL's size conditions where the case has them.

        Args:
          index: position on the arrays' first axis, which is that of optimizer steps; None takes all.
          prefix: what the arrays' names start with, such as ``negative_``.
        """
        names = [f"{prefix}{name}" for name in ("prompt_embeds", "pooled", "time_ids")]
        arrays = [self._arrays.get(name) for name in names]
        return Conditioning(*(None if x is None else jnp.asarray(x if index is None else x[index]) for x in arrays))

    def lora(self, what: str) -> Params:
        """The tree of a LoRA, or of a LoRA's gradients, from the case's file of this name."""
        return jax.tree.map(jnp.asarray, read_lora(self._folder / f"{self.name}_{what}.safetensors").tree)


class Rivals:
    """The folder of all cases."""

    def __init__(self, folder: Path):
        self.folder = folder

    @functools.cache  # noqa: B019  one instance a session
    def case(self, name: str) -> Case:
        """Reads a case; the test is skipped if this set of arrays lacks it."""
        if not (self.folder / f"{name}.npz").is_file():
            pytest.skip(f"no case {name} in {self.folder}")
        return Case(self.folder, name)

    @functools.cache  # noqa: B019
    def pipeline(self, unet: str = "unet") -> StableDiffusion:
        """A pipeline with the network of a folder in float32; its other networks have no weights.

        Args:
          unet: ``unet``, or ``unet_sdxl`` for the cases whose names end in ``_sdxl``.
        """
        folder = self.folder / unet
        config = UNetConfig.from_dict(json.loads((folder / "config.json").read_text()))
        module = UNet2DConditionModel(config)
        params = components.load_unet(folder, unet_shapes(module))
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
        second = CLIPTextModel(TEXT, projection=True) if unet == "unet_sdxl" else None
        return StableDiffusion(
            folder,
            unet=module,
            vae=AutoencoderKL(VAE),
            text_encoder=CLIPTextModel(TEXT),
            tokenizer=AbstractTokenizer(TEXT.max_position_embeddings),
            text_encoder_2=second,
            scheduler=ScheduleConfig(**vars(SCHEDULE)),
            params={"unet": params},
        )

    def pipeline_of(self, case: Case) -> StableDiffusion:
        """The pipeline that a case was computed with, by its name."""
        return self.pipeline("unet_sdxl" if case.name.endswith("_sdxl") else "unet")

    def process(self, steps: int) -> DDPM:
        """The noise process of all cases, divided into ``steps`` sampling steps."""
        return self.pipeline("unet").process(steps)


# Comparisons


def assert_close(ours, theirs, tolerance: float, where: str = "") -> None:
    """Compares an array with the reference's, relative to the reference's largest value."""
    ours = np.asarray(ours)
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape, where
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max(), where


def assert_gradients_close(ours: Params, theirs: Params) -> None:
    """Compares the gradients of a LoRA tensor by tensor."""
    ours, theirs = flatten(ours), flatten(theirs)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert_close(ours[name], value, LORA_GRADIENT, name)


def assert_stepped(
    ours: Params,
    theirs: Params,
    rate: float,
    gradients: Params,
    steps: int = 1,
    tiny: float = 1e-7,
    share: float = 0.0,
) -> None:
    """Compares a LoRA after optimizer steps with the reference's.

    Adam's first step is the learning rate times the sign of the gradient, so a weight whose first gradient is rounding
    may move either way; it is only bounded.

    Args:
      ours: our tree.
      theirs: the reference's.
      rate: the learning rate.
      gradients: the reference's gradients at the first step.
      steps: number of steps.
      tiny: gradients below this are taken for rounding.
      share: so are those below this share of their tensor's largest; for losses that multiply small differences.
    """
    ours, theirs, gradients = flatten(ours), flatten(theirs), flatten(gradients)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        difference = np.abs(np.asarray(ours[name]) - np.asarray(value))
        sizes = np.abs(np.asarray(gradients[name]))
        certain = sizes > max(tiny, share * sizes.max())
        assert certain.mean() > 0.5, f"{name}: most gradients are rounding"
        assert difference[certain].max() <= STEP * rate, name
        assert difference.max() <= 2.5 * steps * rate, name
