"""What is measured: an abstract run of SPO filled with weights, and the inputs of one batch."""

import ast
import dataclasses
import functools
import importlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from benchmarks.blueprints import SIZES, Blueprint, blueprint, write_configs
from spo_jax.core.errors import UserError
from spo_jax.core.trees import flatten, unflatten
from spo_jax.core.typing import DType, Int, Key, Params
from spo_jax.data.prompts import load_prompts
from spo_jax.data.tokenizer import Tokenizer
from spo_jax.methods import read_settings as read_config
from spo_jax.methods.common.judge import Judge
from spo_jax.methods.common.policy import Pairs
from spo_jax.methods.common.state import TrainState
from spo_jax.methods.spo.method import SPORun
from spo_jax.methods.spo.programs import SPO, FrozenParams, PromptFeatures
from spo_jax.methods.spo.row import MetricTimesteps
from spo_jax.methods.spo.settings import SPOTrainSettings, UpdateSettings
from spo_jax.models import open_pipeline
from spo_jax.models.base import Decoder, Pipeline
from spo_jax.models.decoder import OWN, open_decoder
from spo_jax.parallel.mesh import check_divides, devices_in_context, replicated
from spo_jax.parallel.sharding import make, place, place_weights
from spo_jax.rewards.common.latent_weights import abstract_model
from spo_jax.rewards.common.lrm_files import LatentConfig
from spo_jax.rewards.common.lrm_reward import LatentReward
from spo_jax.rewards.common.preference_model import PreferenceModel, load_spm
from spo_jax.rewards.common.spm_reward import SPMReward

PUBLISHED_PER_DEVICE = {"sd15": 10, "sdxl": 2}  # prompts, and pairs of a training batch
FEWER_PROMPTS = {"micro": 2, "small": 4}
# How candidates are judged: decoded by the autoencoder, by a distilled decoder, or as they are, with their noise (LPO).
DECODERS = ("vae", "tiny", "none")
_TINY_VAE_SEED = 3
_SPM_SEED = 4
_LATENT_JUDGE_SEED = 5


@dataclasses.dataclass(frozen=True)
class Subject:
    """A run of SPO and one batch of prompts.

    Attributes:
      size: one of `SIZES`.
      run: the run; it has weights and no data.
      configs: the configs that its networks were built from.
      frozen: frozen weights on the mesh, as the programs take them.
      inputs: features of the prompts on the mesh, as the programs take them.
      ids: the prompts' tokens for the text encoder and for the judge, which the peer in torch starts from.
    """

    size: str
    run: SPORun
    configs: Blueprint
    frozen: FrozenParams
    inputs: PromptFeatures
    ids: tuple[Int[np.ndarray, "b l"], Int[np.ndarray, "b m"]]

    @property
    def spo(self) -> SPO:
        """The method bound to its models."""
        return self.run.spo

    @property
    def settings(self) -> SPOTrainSettings:
        """The settings of the run."""
        return self.run.settings

    @property
    def mesh(self) -> Mesh:
        """The mesh that everything lies on."""
        return self.run.mesh

    @property
    def timesteps(self) -> MetricTimesteps:
        """The timesteps at which a rollout is recorded and judged."""
        return MetricTimesteps.of(self.settings.spo, self.spo.process)

    @functools.cached_property
    def traced(self) -> dict[str, jax.stages.Traced]:
        """The run's programs, traced once for everything that is compiled or counted."""
        return self.run.trace(self.run.state_shapes())

    def with_unet(self, unet: Any) -> "Subject":
        """Returns the subject with another UNet module and the same weights."""
        pipeline = dataclasses.replace(self.spo.pipeline, unet=unet)
        return dataclasses.replace(self, run=SPORun(dataclasses.replace(self.spo, pipeline=pipeline)))

    def without_remat(self) -> "Subject":
        """Returns the subject without gradient checkpointing, for counting the work that cannot be avoided."""
        unet = self.spo.pipeline.unet
        return self.with_unet(unet.clone(remat=False)) if unet.remat else self

    def fresh_state(self) -> TrainState:
        """Makes the state before the first batch; the update's program consumes it, so every measurement needs one."""
        return self.run.init_state(self.keys(1)[0])

    def keys(self, count: int) -> list[Key]:
        """Makes random keys, the same ones every time."""

        def split() -> list[Key]:
            return list(jax.random.split(jax.random.key(self.settings.seed), count))

        return make(split, self.mesh)

    def random_pairs(self) -> Pairs:
        """Makes random pairs of the shapes of a rollout's, all of them valid."""
        shapes = self.traced["collect"].out_info[0]
        rng = np.random.default_rng(0)

        def normal(shape: jax.ShapeDtypeStruct) -> np.ndarray:
            return rng.standard_normal(shape.shape, np.float32)

        b = self.settings.prompts_per_batch
        timesteps = self.spo.process.timesteps[self.settings.spo.divert_start_step :]
        pairs = Pairs(
            x_t=normal(shapes.x_t),
            x_prev=normal(shapes.x_prev),
            t=np.repeat(timesteps, b),
            row=np.tile(np.arange(b, dtype=np.int32), len(timesteps)),
            valid=np.ones(len(shapes.valid), bool),
        )
        return place(pairs, replicated(self.mesh))


class RandomTokenizer(Tokenizer):
    """Turns prompts into random tokens between a start and an end token, for text encoders without a vocabulary."""

    def __init__(self, config: Mapping[str, Any]):
        self.vocabulary = config["vocab_size"]
        self.length = config["max_position_embeddings"]

    def __call__(self, prompts: Sequence[str]) -> Int[np.ndarray, "b l"]:
        """Returns the same tokens for the same prompt; the end token is the largest id, as CLIP's is."""
        rows = []
        for prompt in prompts:
            rng = np.random.default_rng(list(prompt.encode()))
            words = rng.integers(0, self.vocabulary - 2, 12 if prompt else 0)
            row = [self.vocabulary - 2, *words, self.vocabulary - 1]
            rows.append(row + [self.vocabulary - 1] * (self.length - len(row)))
        return np.asarray(rows, np.int32)


# Settings


def read_settings(size: str, overrides: Sequence[str] = (), devices: int = 1, decoder: str = "vae") -> SPOTrainSettings:
    """Reads the settings of a size and changes fields of them.

    toy and sdxl have their own configs, and all other sizes have ``configs/sd15.py``. Without a decoder they have
    LPO's, and toy judges noisy candidates at the steps of its own config. All but toy take the batch that SPO published
    for every device; small and micro are in float32 and have fewer prompts. Random weights judge at random, so their
    threshold is 0: every pair is valid, which is the most work that an update can have.

    Args:
      size: one of `SIZES`.
      overrides: changes of the form ``FIELD=VALUE``, such as ``spo.decode_chunk=8``.
      devices: number of devices.
      decoder: one of `DECODERS`.

    Raises:
      UserError: a size, decoder or field is unknown, or a value has the wrong type or is out of range.
    """
    if size not in SIZES:
        raise UserError(f"--size={size}: expected one of {', '.join(SIZES)}")
    if decoder not in DECODERS:
        raise UserError(f"--decoder={decoder}: expected one of {', '.join(DECODERS)}")
    recipe = size if size in ("toy", "sdxl") else "sd15"
    name = f"lpo_{recipe}" if decoder == "none" and size != "toy" else recipe
    config = importlib.import_module(f"configs.{name}").get_config().unlock()
    if decoder == "none":
        config.spo.judged = "noisy"
    if size != "toy" or decoder == "none":
        config.spo.threshold = 0.0
        config.spo.threshold_rule = "constant"
    if size != "toy":
        config.prompts = "toy:train"  # only their number matters, because the tokens are random
        config.prompts_per_batch = PUBLISHED_PER_DEVICE[recipe] * devices
        config.spo.train_batch_size = PUBLISHED_PER_DEVICE[recipe] * devices
    if size in FEWER_PROMPTS:
        config.dtype = "float32"
        config.remat = False
        config.prompts_per_batch = FEWER_PROMPTS[size] * devices
        config.spo.train_batch_size = FEWER_PROMPTS[size] * devices
    if size == "micro":
        config.spo.num_steps = 4
        config.spo.divert_start_step = 1
        config.spo.num_candidates = 2
    for override in overrides:
        _override(config, override)
    return read_config(config)


def _override(config: ConfigDict | None, override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator:
        raise UserError(f"--set={override}: expected FIELD=VALUE, such as --set=spo.decode_chunk=8")
    *groups, field = path.split(".")
    for group in groups:
        config = config[group] if isinstance(config, ConfigDict) and group in config else None
    if not isinstance(config, ConfigDict) or field not in config:
        raise UserError(f"--set={override}: there is no field {path!r} in the settings of SPO")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    with config.ignore_type():
        config[field] = value


# Models


def build(size: str, settings: SPOTrainSettings, decoder: str = "vae") -> Subject:
    """Builds networks, weights and the text features of a batch on the mesh in context.

    Args:
      size: one of `SIZES`.
      settings: settings of the run.
      decoder: one of `DECODERS`, which the settings were read for; the weights of ``tiny`` are random.

    Raises:
      UserError: the devices do not divide a batch.
    """
    mesh = jax.sharding.get_mesh()
    for field, batch in settings.batch_sizes().items():
        check_divides(field, batch, mesh)

    # The models.
    configs = blueprint(size)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_configs(configs, folder)
        if size == "toy":
            pipeline = open_pipeline("toy", dtype=jnp.dtype(settings.dtype), remat=settings.recomputed, mesh=mesh)
        else:
            pipeline = _random_pipeline(folder, configs, settings, mesh)
        judge = _open_judge(size, decoder, folder, configs, settings, pipeline)
    spo = SPO(settings, pipeline, judge, mesh)

    # A batch.
    prompts = load_prompts("toy:train")
    prompts = [prompts[row % len(prompts)] for row in range(settings.prompts_per_batch)]
    ids = pipeline.tokenizer(prompts), _judge_ids(judge, prompts)
    inputs = spo.feed(spo.features(prompts))
    return Subject(size, SPORun(spo), configs, spo.frozen(), inputs, ids)


def _open_judge(
    size: str, decoder: str, folder: Path, configs: Blueprint, settings: SPOTrainSettings, pipeline: Pipeline
) -> Judge:
    """Opens the judge of a pipeline: the toy's preference model, or one with random weights."""
    mesh = jax.sharding.get_mesh()
    dtype = jnp.dtype(settings.dtype)
    if decoder == "none":
        return Judge(_random_latent_judge(pipeline, mesh), None)
    if size == "toy":
        spm = load_spm("toy", dtype=dtype, mesh=mesh)
    else:
        spm = _random_spm(folder / "spm", configs, dtype, mesh)
    images = open_decoder(OWN, pipeline) if decoder == "vae" else _random_decoder(folder, pipeline, mesh)
    return Judge(SPMReward(spm), images)


def _judge_ids(judge: Judge, prompts: Sequence[str]) -> Int[np.ndarray, "b m"]:
    """Tokenizes prompts for the judge; for a latent judge, those of its first text encoder."""
    reward = judge.reward
    if isinstance(reward, LatentReward):
        return reward.read.tokenize(prompts)[:, 0]
    return reward.model.tokenizer(prompts)


def _random_pipeline(folder: Path, configs: Blueprint, settings: SPOTrainSettings, mesh: Mesh) -> Pipeline:
    dtype = jnp.dtype(settings.dtype)
    pipeline = open_pipeline(folder, dtype=dtype, remat=settings.recomputed, mesh=mesh, abstract=True)
    params = {name: random_params(shapes, seed) for seed, (name, shapes) in enumerate(pipeline.params.items())}
    tokenizers = {"tokenizer": RandomTokenizer(configs.pipeline["text_encoder"])}
    if "text_encoder_2" in params:
        tokenizers["tokenizer_2"] = RandomTokenizer(configs.pipeline["text_encoder_2"])
    return dataclasses.replace(
        pipeline, folder=Path("random-weights"), base=None, params=place_weights(params, mesh), **tokenizers
    )


def _random_spm(folder: Path, configs: Blueprint, dtype: DType, mesh: Mesh) -> PreferenceModel:
    spm = load_spm(folder, dtype=dtype, mesh=mesh, abstract=True)
    params = place_weights(random_params(spm.params, _SPM_SEED), mesh)
    return dataclasses.replace(spm, params=params, tokenizer=RandomTokenizer(configs.spm["text_config"]))


def _random_decoder(folder: Path, pipeline: Pipeline, mesh: Mesh) -> Decoder:
    decoder = open_decoder(str(folder / "tiny_vae"), pipeline, mesh, abstract=True)
    return dataclasses.replace(decoder, params=place_weights(random_params(decoder.params, _TINY_VAE_SEED), mesh))


def _random_latent_judge(pipeline: Pipeline, mesh: Mesh) -> LatentReward:
    """Makes a latent reward model of a pipeline's own networks."""
    names = [name for name in ("text_encoder", "text_encoder_2") if name in pipeline.params]
    encoders = tuple(getattr(pipeline, name).config for name in names)
    config = LatentConfig("random-weights", pipeline.unet.config, encoders)
    read = abstract_model(config, pipeline.dtype, mesh)
    params = place_weights(random_params(read.params, _LATENT_JUDGE_SEED), mesh)
    tokenizers = tuple(RandomTokenizer(dataclasses.asdict(encoder)) for encoder in encoders)
    return LatentReward(dataclasses.replace(read, params=params, tokenizers=tokenizers))


def random_params(shapes: Params, seed: int) -> Params:
    """Makes random weights that keep activations near unit size.

    Kernels are N(0, 1 / fan in), norms 1, biases 0 and embeddings small. They are drawn by numpy on the host, because
    jax would compile a program for each of the many shapes.

    Args:
      shapes: arrays or shapes; the weights have their dtypes.
      seed: seed of the draws.
    """
    rng = np.random.Generator(np.random.SFC64(seed))
    flat = {}
    for path, leaf in flatten(shapes).items():
        name = path.rpartition("/")[2]
        shape = leaf.shape
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
        flat[path] = np.asarray(value).astype(leaf.dtype)
    return unflatten(flat)


def chunks_of(settings: UpdateSettings, pairs: int) -> int:
    """Returns the number of chunks that an update computes for this number of valid pairs, on the mesh in context."""
    size = settings.train_batch_size
    chunk = settings.chunk(devices_in_context())
    full, rest = divmod(pairs, size)
    return full * -(-size // chunk) + -(-rest // chunk)
