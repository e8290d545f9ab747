"""The reference's models and arrays, in our layout.

The arrays come from the PyTorch implementation of SPO (see the README beside them). A failing test here means that
our numbers differ from the reference's: find out which side is right before you change a tolerance.
"""

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.data.tokenizer import AbstractTokenizer
from spo_jax.diffusion.ddpm import DDPM
from spo_jax.diffusion.schedule import ScheduleConfig
from spo_jax.models.stable_diffusion.config import UNetConfig
from spo_jax.models.stable_diffusion.pipeline import StableDiffusion, unet_shapes
from spo_jax.models.stable_diffusion.unet import UNet2DConditionModel
from spo_jax.nn.clip import CLIPModel, CLIPTextModel
from spo_jax.nn.clip_config import CLIPConfig, CLIPTextConfig
from spo_jax.nn.shapes import clip_shapes, text_shapes, vae_shapes
from spo_jax.nn.vae import AutoencoderKL, VAEConfig
from spo_jax.weights import components
from tests.golden.rivals import Rivals

STEPS = 20  # of every schedule in the folder


def nhwc(x: np.ndarray) -> np.ndarray:
    """[... c h w] -> [... h w c]."""
    return jnp.asarray(np.moveaxis(x, -3, -1))


def relative_error(ours, theirs) -> float:
    """The largest difference over the largest value of the reference."""
    ours = np.asarray(ours)
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def _config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


class Golden:
    """Arrays by file name, and the models that made them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.nhwc = nhwc
        self.relative_error = relative_error

    @functools.cache  # noqa: B019  one instance a session
    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """All arrays of an .npz file; int64 becomes int32, JAX's integer."""
        with np.load(self.folder / name) as file:
            arrays = {key: file[key] for key in file.files}
        return {k: v.astype(np.int32) if v.dtype == np.int64 else v for k, v in arrays.items()}

    @functools.cache  # noqa: B019
    def pipeline(self, kind: str) -> StableDiffusion:
        """The pipeline ``sd15`` or ``sdxl``; token ids are given, so its tokenizers have no vocabulary."""
        folder = self.folder / "models" / kind
        unet = UNet2DConditionModel(UNetConfig.from_dict(_config(folder / "unet")))
        vae = AutoencoderKL(VAEConfig.from_dict(_config(folder / "vae")))
        scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        parts = {"unet": unet, "vae": vae}
        params = {
            "unet": components.load_unet(folder / "unet", unet_shapes(unet)),
            "vae": components.load_vae(folder / "vae", vae_shapes(vae)),
        }
        for name in ("text_encoder", "text_encoder_2"):
            if (folder / name).is_dir():
                config = CLIPTextConfig.from_dict(_config(folder / name))
                module = CLIPTextModel(config, projection=name == "text_encoder_2")
                parts[name] = module
                parts[name.replace("text_encoder", "tokenizer")] = AbstractTokenizer(config.max_position_embeddings)
                params[name] = components.load_text(folder / name, text_shapes(module))
        return StableDiffusion(folder, **parts, scheduler=ScheduleConfig.from_dict(scheduler), params=params)

    def process(self, kind: str) -> DDPM:
        """The diffusion process of ``sd15`` or ``sdxl``."""
        return self.pipeline(kind).process(STEPS)

    @functools.cached_property
    def spm(self) -> SimpleNamespace:
        """The step-aware preference model."""
        folder = self.folder / "models" / "spm"
        clip = CLIPModel(CLIPConfig.from_dict(_config(folder), time_conditioned=True))
        return SimpleNamespace(clip=clip, params=components.load_clip(folder, clip_shapes(clip)))


@pytest.fixture(scope="session")
def golden(golden_dir) -> Golden:
    """The folder of ``--golden-dir``."""
    return Golden(golden_dir)


class RewardInputs:
    """Folder, images and prompts of the arrays of reward models.

    Attributes:
      folder: the folder ``rewards``.
      prompts: the prompts of all scores.
      token_only: prompts of which there are token ids and no scores.
      names: names of the images in the order of the arrays.
      rgba: an image with alpha, uint8 [h w 4].
    """

    def __init__(self, folder: Path):
        self.folder = folder
        texts = json.loads((folder / "inputs" / "prompts.json").read_text())
        self.prompts = texts["prompts"]
        self.token_only = texts["token_only_prompts"]
        self.names = texts["image_order"]
        with np.load(folder / "inputs" / "images.npz") as file:
            self._images = {key.removeprefix("img_"): file[key] for key in file.files}
        self.rgba = self._images["rgba"]

    def bytes(self, name: str) -> np.ndarray:
        """An image, uint8 [1 h w 3]; alpha is dropped."""
        return self._images[name][None, ..., :3]

    def image(self, name: str) -> np.ndarray:
        """An image in [-1, 1], float32 [1 h w 3]; alpha is dropped."""
        return self.bytes(name).astype(np.float32) / 127.5 - 1

    def needs(self, name: str) -> Path:
        """The folder of one reward; the test is skipped without it."""
        if not (self.folder / name).is_dir():
            pytest.skip(f"no arrays of {name} in {self.folder}")
        return self.folder / name


@pytest.fixture(scope="session")
def reward_inputs(golden_dir) -> RewardInputs:
    """What the arrays of reward models were computed from; tests are skipped without it."""
    folder = golden_dir / "rewards"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: the arrays of reward models are not here")
    return RewardInputs(folder)


@pytest.fixture(scope="session")
def rivals(golden_dir) -> Rivals:
    """The arrays of the methods that SPO is compared with; tests are skipped without them."""
    folder = golden_dir / "rivals"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: the arrays of other methods are not here")
    return Rivals(folder)
