"""What is measured, ready to compile: networks with weights, settings, a state and the inputs of one batch."""

import ast
import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from benchmarks.blueprints import SIZES, Blueprint, blueprint
from spo_jax.core.config import from_config
from spo_jax.core.errors import UserError
from spo_jax.core.trees import flatten, unflatten
from spo_jax.core.typing import Int, Key, Params
from spo_jax.data.prompts import load_prompts
from spo_jax.data.tokenizer import Tokenizer
from spo_jax.diffusion.schedule import ScheduleConfig
from spo_jax.methods.spo.pairs import Pairs
from spo_jax.methods.spo.programs import Frozen, Inputs, Networks
from spo_jax.methods.spo.resampler import judged_timesteps
from spo_jax.methods.spo.settings import TrainSettings
from spo_jax.methods.spo.update import TrainState, UpdateConfig
from spo_jax.models.stable_diffusion.config import UNetConfig
from spo_jax.models.stable_diffusion.pipeline import StableDiffusion, unet_shapes
from spo_jax.models import open_pipeline
from spo_jax.nn.shapes import text_shapes, vae_shapes
from spo_jax.models.stable_diffusion.unet import UNet2DConditionModel
from spo_jax.nn.clip import CLIPModel, CLIPTextModel
from spo_jax.nn.clip_config import CLIPConfig, CLIPTextConfig
from spo_jax.nn.tiny_vae import AutoencoderTiny, TinyVAEConfig
from spo_jax.nn.vae import AutoencoderKL, VAEConfig
from spo_jax.parallel.mesh import check_divides, devices_in_context, replicated
from spo_jax.parallel.sharding import make, place, place_weights
from spo_jax.rewards.common.preference_model import SPM, load_spm
from spo_jax.nn.shapes import clip_shapes
from spo_jax.training import fresh_state

PUBLISHED_PER_DEVICE = {"sd15": 10, "sdxl": 2}  # prompts, and pairs of a training batch
FEWER_PROMPTS = {"micro": 2, "small": 4}
DECODERS = ("vae", "tiny")


@dataclasses.dataclass(frozen=True)
class Subject:
    """A training run's parts, and one batch of prompts.

    Attributes:
      size: one of `SIZES`. configs: what the networks were built from.
      frozen, inputs: on the mesh, as the programs take them.
      ids: the prompts' tokens, of the text encoder and of the preference model (what the peer in torch starts from).
    """

    size: str
    settings: TrainSettings
    configs: Blueprint
    networks: Networks
    frozen: Frozen
    inputs: Inputs
    ids: tuple[Int[np.ndarray, "b l"], Int[np.ndarray, "b m"]]

    @property
    def judged_timesteps(self) -> Int[np.ndarray, " s"]:
        """The timesteps at which a rollout is judged."""
        return judged_timesteps(self.settings.spo, self.networks.schedule)

    def without_remat(self) -> "Subject":
        """The same without gradient checkpointing: for counting work that has to be done, not for running."""
        pipeline = dataclasses.replace(self.networks.pipeline, unet=self.networks.pipeline.unet.clone(remat=False))
        return dataclasses.replace(self, networks=dataclasses.replace(self.networks, pipeline=pipeline))

    @property
    def mesh(self) -> Mesh:
        """Where everything lies."""
        return self.networks.mesh

    def fresh_state(self) -> TrainState:
        """The state before the first batch; a new one each time, for the update's program consumes it."""
        return fresh_state(self.settings, self.networks, self.keys(1)[0])

    def keys(self, count: int) -> list[Key]:
        """Random keys, the same ones every time."""
        keys = lambda: list(jax.random.split(jax.random.key(self.settings.seed), count))  # noqa: E731
        return make(keys, self.mesh)

    def made_up_pairs(self) -> Pairs:
        """Random pairs of a rollout's shapes, all of them valid."""
        (key,), lora = self.keys(1), self.fresh_state().lora
        shapes = jax.eval_shape(self.networks.collect, lora, self.frozen, self.inputs, key)[0]
        rng, n, b = np.random.default_rng(0), len(shapes.valid), self.settings.prompts_per_batch
        normal = lambda shape: rng.standard_normal(shape.shape, np.float32)  # noqa: E731
        timesteps = self.networks.schedule.timesteps[self.settings.spo.divert_start_step :]
        t, row = np.repeat(timesteps, b), np.tile(np.arange(b, dtype=np.int32), len(timesteps))
        pairs = Pairs(normal(shapes.x_t), normal(shapes.x_prev), t, row, np.ones(n, bool))
        return place(pairs, replicated(self.mesh))


class RandomTokenizer(Tokenizer):
    """Prompts to random tokens of the right length, start and end included: for text encoders without a vocabulary."""

    def __init__(self, config: Mapping[str, Any]):
        self.vocabulary = config["vocab_size"]
        self.length = config["max_position_embeddings"]

    def __call__(self, prompts: Sequence[str]) -> Int[np.ndarray, "b l"]:
        """The same tokens for the same prompt; the end token is the largest id, as CLIP's is."""
        rows = []
        for prompt in prompts:
            rng = np.random.default_rng(list(prompt.encode()))
            words = rng.integers(0, self.vocabulary - 2, 12 if prompt else 0)
            row = [self.vocabulary - 2, *words, self.vocabulary - 1]
            rows.append(row + [self.vocabulary - 1] * (self.length - len(row)))
        return np.asarray(rows, np.int32)


def read_settings(size: str, overrides: Sequence[str] = (), devices: int = 1) -> TrainSettings:
    """The settings of a size with fields changed.

    tiny and sdxl: their configs. The others: ``configs/sd15.py``. All but tiny with the published batch per device;
    small and micro in float32 and with fewer prompts. Random weights judge at random, so there the threshold is 0:
    every pair is valid, the most work that an update can have.

    Args:
      overrides: ``FIELD=VALUE`` each, e.g. ``spo.decode_chunk=8``.

    Raises:
      UserError: an unknown size or field, or a value of the wrong type or range.
    """
    if size not in SIZES:
        raise UserError(f"--size={size}: expected one of {', '.join(SIZES)}")
    recipe = size if size in ("tiny", "sdxl") else "sd15"
    config = importlib.import_module(f"configs.{recipe}").get_config().unlock()
    if size != "tiny":
        config.spo.threshold = 0.0
        config.prompts = "embedded:train"  # only how many there are matters: the tokens are random
        config.prompts_per_batch = config.spo.train_batch_size = PUBLISHED_PER_DEVICE[recipe] * devices
    if size in FEWER_PROMPTS:
        config.dtype, config.remat = "float32", False
        config.prompts_per_batch = config.spo.train_batch_size = FEWER_PROMPTS[size] * devices
    if size == "micro":
        config.spo.num_steps, config.spo.divert_start_step, config.spo.num_candidates = 4, 1, 2
    for override in overrides:
        _override(config, override)
    return from_config(TrainSettings, config)


def _override(config: ConfigDict | None, override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator:
        raise UserError(f"--set={override}: expected FIELD=VALUE, e.g. --set=spo.decode_chunk=8")
    *groups, field = path.split(".")
    for group in groups:
        config = config[group] if isinstance(config, ConfigDict) and group in config else None
    if not isinstance(config, ConfigDict) or field not in config:
        raise UserError(f"--set={override}: there is no field {path!r} in TrainSettings")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    with config.ignore_type():
        config[field] = value


def build(size: str, settings: TrainSettings, decoder: str = "vae") -> Subject:
    """Networks, weights and the text features of a batch, on the mesh in context.

    Args:
      decoder: ``vae``, or ``tiny`` for an AutoencoderTiny with random weights.

    Raises:
      UserError: an unknown decoder, or batches that the devices do not divide.
    """
    if decoder not in DECODERS:
        raise UserError(f"--decoder={decoder}: expected one of {', '.join(DECODERS)}")
    configs, dtype, mesh = blueprint(size), jnp.dtype(settings.dtype), jax.sharding.get_mesh()
    check_divides("prompts_per_batch", settings.prompts_per_batch, mesh)
    check_divides("spo.train_batch_size", settings.spo.train_batch_size, mesh)
    if size == "tiny":
        pipeline = open_pipeline("embedded", dtype=dtype, remat=settings.remat, mesh=mesh)
        spm = load_spm("embedded", dtype=dtype, mesh=mesh)
    else:
        pipeline, spm = _random_pipeline(configs, dtype, settings.remat, mesh), _random_spm(configs, dtype, mesh)
    networks = Networks.build(pipeline, spm, settings.spo, settings.lora.scale, mesh)
    if decoder == "tiny":
        module = AutoencoderTiny(TinyVAEConfig.from_dict(configs.tiny_vae), dtype)
        params = place_weights(random_params(vae_shapes(module), dtype, seed=3), mesh)
        networks = dataclasses.replace(networks, decoder=module, decoder_params=params)
    prompts = load_prompts("embedded:train")
    prompts = [prompts[row % len(prompts)] for row in range(settings.prompts_per_batch)]
    ids = pipeline.tokenizer(prompts), spm.tokenizer(prompts)
    inputs = networks.feed(networks.inputs(prompts))
    return Subject(size, settings, configs, networks, networks.frozen(), inputs, ids)


def _random_pipeline(configs: Blueprint, dtype: Any, remat: bool, mesh: Mesh) -> StableDiffusion:
    modules = modules_of(configs, dtype, remat)
    trees = enumerate(weight_shapes(modules).items())
    params = {name: random_params(tree, dtype, seed) for seed, (name, tree) in trees}
    return bundle(configs, modules, place_weights(params, mesh))


def modules_of(configs: Blueprint, dtype: Any, remat: bool) -> dict[str, Any]:
    """The networks of a pipeline."""
    text_encoder = lambda config, **more: CLIPTextModel(CLIPTextConfig.from_dict(config), dtype=dtype, **more)  # noqa: E731
    modules = {
        "unet": UNet2DConditionModel(UNetConfig.from_dict(configs.unet), remat, dtype),
        "vae": AutoencoderKL(VAEConfig.from_dict(configs.vae), dtype),
        "text_encoder": text_encoder(configs.text_encoder),
    }
    if configs.text_encoder_2:
        modules["text_encoder_2"] = text_encoder(configs.text_encoder_2, projection=True)
    return modules


def weight_shapes(modules: Mapping[str, Any]) -> dict[str, Params]:
    """Shapes of their weights."""
    of = {"unet": unet_shapes, "vae": vae_shapes, "text_encoder": text_shapes, "text_encoder_2": text_shapes}
    return {name: of[name](module) for name, module in modules.items()}


def bundle(configs: Blueprint, modules: Mapping[str, Any], params: Params) -> StableDiffusion:
    """A pipeline that was read from nowhere."""
    second = {}
    if "text_encoder_2" in modules:
        second = {"tokenizer_2": RandomTokenizer(configs.text_encoder_2), "zero_unconditional": True}
    return StableDiffusion(
        folder=Path("random-weights"),
        tokenizer=RandomTokenizer(configs.text_encoder),
        scheduler=ScheduleConfig.from_dict(configs.scheduler),
        params=params,
        **modules,
        **second,
    )


def _random_spm(configs: Blueprint, dtype: Any, mesh: Mesh) -> SPM:
    clip = CLIPModel(CLIPConfig.from_dict(configs.spm, time_conditioned=True), dtype=dtype)
    params = place_weights(random_params(clip_shapes(clip), dtype, seed=4), mesh)
    return SPM(clip, params, RandomTokenizer(configs.spm["text_config"]))


def random_params(shapes: Params, dtype: Any, seed: int) -> Params:
    """Weights that keep activations near unit size: kernels N(0, 1 / fan in), norms 1, biases 0, embeddings small.

    Drawn by numpy, on the host: jax would compile a program for each of the many shapes. Lone numbers stay float32, as
    loading leaves them.
    """
    rng = np.random.Generator(np.random.SFC64(seed))
    flat = {}
    for path, leaf in flatten(shapes).items():
        name, shape = path.rpartition("/")[2], leaf.shape
        if name == "kernel":
            value = rng.standard_normal(shape, np.float32) * np.float32(np.prod(shape[:-1]) ** -0.5)
        elif name == "scale":
            value = np.ones(shape, np.float32)
        elif name == "logit_scale":
            value = np.float32(np.log(100.0))  # where CLIP's training ends
        elif name == "bias":
            value = np.zeros(shape, np.float32)
        else:
            value = np.float32(0.02) * rng.standard_normal(shape, np.float32)
        value = np.asarray(value)
        flat[path] = value.astype(dtype) if value.ndim else value
    return unflatten(flat)


def chunks_of(config: UpdateConfig, pairs: int) -> int:
    """How many chunks an update computes for ``pairs`` valid ones, on the mesh in context."""
    size, chunk = config.train_batch_size, config.chunk(devices_in_context())
    full, rest = divmod(pairs, size)
    return full * -(-size // chunk) + -(-rest // chunk)
