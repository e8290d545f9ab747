"""A training run as shapes with shardings: all that its programs are compiled from, and not one array.

Configs come from the package or from local folders. Those of Stable Diffusion 1.5, of SDXL and the autoencoder of its
recipe, of the published preference models and of TAESD are known, so that nothing has to be downloaded.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, Sharding

from benchmarks.blueprints import Blueprint, blueprint
from benchmarks.subjects import RandomTokenizer, bundle, modules_of, weight_shapes
from spo_jax import toy
from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json
from spo_jax.core.typing import DType, Params
from spo_jax.methods.spo.programs import Frozen, Inputs, Networks
from spo_jax.methods.spo.settings import TrainSettings
from spo_jax.methods.spo.update import TrainState
from spo_jax.models.stable_diffusion.conditioning import Conditioning
from spo_jax.models.stable_diffusion.pipeline import StableDiffusion, encode_text
from spo_jax.nn.shapes import vae_shapes
from spo_jax.nn.clip import CLIPModel
from spo_jax.nn.clip_config import CLIPConfig
from spo_jax.nn.tiny_vae import AutoencoderTiny, TinyVAEConfig
from spo_jax.parallel.mesh import check_divides, over_batch, replicated
from spo_jax.parallel.sharding import shardings
from spo_jax.rewards.common.clip_score import text_features
from spo_jax.rewards.common.preference_model import SPM
from spo_jax.nn.shapes import clip_shapes
from spo_jax.training import fresh_state

# Hub ids.
_KNOWN = {"sd15": re.compile(r"/stable-diffusion-v1-[1-5]$"), "sdxl": re.compile(r"/stable-diffusion-xl-base-1\.0$")}


class RunShapes(NamedTuple):
    """What `spo_jax.methods.spo.programs.compile_programs` takes."""

    networks: Networks
    state: TrainState
    frozen: Frozen
    inputs: Inputs


def run_shapes(settings: TrainSettings, mesh: Mesh) -> RunShapes:
    """The run of ``settings`` on ``mesh``, whose devices need not be here.

    Raises:
      UserError: a model's config is not known, or the devices do not divide a batch.
    """
    prompts = settings.prompts_per_batch
    check_divides("prompts_per_batch", prompts, mesh)
    check_divides("spo.train_batch_size", settings.spo.train_batch_size, mesh)
    configs = blueprint_of(settings.model, settings.spm.model, settings.spo.decoder)
    networks = _networks(settings, configs, mesh)
    pipeline, spm = networks.pipeline, networks.spm
    state = jax.eval_shape(lambda key: fresh_state(settings, networks, key), jax.random.key(0))
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), state)
    condition = condition_shapes(pipeline)
    features = lambda params, ids: text_features(spm.clip, params, ids)  # noqa: E731
    text = jax.eval_shape(features, spm.params, _tokens(spm.tokenizer.length))
    unconditional = row_shapes(1, condition, replicated(mesh))
    return RunShapes(
        networks,
        state,
        Frozen(pipeline.params["unet"], networks.decoder_params, spm.params, unconditional),
        Inputs(row_shapes(prompts, condition, over_batch(mesh)), row_shapes(prompts, text, over_batch(mesh))),
    )


def row_shapes(count: int, one: Any, sharding: Sharding) -> Any:
    """``count`` rows like those of ``one``, for every array of a tree."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype, sharding=sharding), one)


def condition_shapes(pipeline: StableDiffusion) -> Conditioning:
    """What the UNet is told of one prompt."""
    names = [name for name in ("text_encoder", "text_encoder_2") if name in pipeline.params]
    encoders, params = (tuple(get(name) for name in names) for get in (pipeline.__getattribute__, pipeline.params.get))
    encode = lambda params, ids: encode_text(encoders, params, ids)  # noqa: E731
    found = jax.eval_shape(encode, params, _tokens(len(names), pipeline.tokenizer.length))
    if pipeline.kind == "sdxl":
        found = found._replace(time_ids=jax.ShapeDtypeStruct((1, 6), jnp.float32))
    return found


def _tokens(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *shape), jnp.int32)


def blueprint_of(name: str, spm: str, decoder: str = "vae") -> Blueprint:
    """Configs of a run's models, as its settings name them.

    Raises:
      UserError: the diffusion model ``name`` is not known here.
    """
    known, model = blueprint("sd15"), Path(name)
    size = next((size for size, pattern in _KNOWN.items() if pattern.search(name)), None)
    if name == toy.NAME:
        found = blueprint("tiny")
    elif (model / "model_index.json").is_file():
        names = ("unet", "vae", "text_encoder", "text_encoder_2")
        files = {name: model / name / "config.json" for name in names}
        parts = {name: read_json(file) for name, file in files.items() if file.is_file() or name != "text_encoder_2"}
        scheduler = read_json(model / "scheduler" / "scheduler_config.json")
        found = dataclasses.replace(known, **parts, scheduler=scheduler)
    elif size:
        found = blueprint(size)
    else:
        raise UserError(
            f"config field model = {name!r}: its networks are not known here; expected 'embedded', the hub "
            "id of Stable Diffusion 1.5 or SDXL, or a local folder in diffusers layout (its configs are enough)"
        )
    # A preference model or a distilled decoder without a config beside it has the published one, as in loading.
    judge = blueprint("tiny").spm if spm == toy.NAME else _beside(spm, known.spm)
    return dataclasses.replace(found, spm=judge, tiny_vae=_beside(decoder, known.tiny_vae))


def _beside(model: str, default: dict[str, Any]) -> dict[str, Any]:
    file = Path(model) / "config.json"
    return read_json(file) if file.is_file() else default


def _networks(settings: TrainSettings, configs: Blueprint, mesh: Mesh) -> Networks:
    dtype, spo = jnp.dtype(settings.dtype), settings.spo
    weights = lambda shapes: _weights(shapes, dtype, mesh)  # noqa: E731
    pipeline = pipeline_shapes(configs, dtype, mesh, settings.remat)
    clip = CLIPModel(CLIPConfig.from_dict(configs.spm, time_conditioned=True), dtype=dtype)
    spm = SPM(clip, weights(clip_shapes(clip)), RandomTokenizer(configs.spm["text_config"]))
    built = Networks.build(pipeline, spm, dataclasses.replace(spo, decoder="vae"), settings.lora.scale, mesh)
    if spo.decoder == "vae":
        return built
    tiny = AutoencoderTiny(TinyVAEConfig.from_dict(configs.tiny_vae), dtype)
    return dataclasses.replace(built, settings=spo, decoder=tiny, decoder_params=weights(vae_shapes(tiny)))


def pipeline_shapes(configs: Blueprint, dtype: DType, mesh: Mesh, remat: bool = False) -> StableDiffusion:
    """A pipeline whose weights are shapes."""
    modules = modules_of(configs, dtype, remat)
    return bundle(
        configs, modules, {name: _weights(tree, dtype, mesh) for name, tree in weight_shapes(modules).items()}
    )


def _weights(shapes: Params, dtype: DType, mesh: Mesh) -> Params:
    """Weights as they are loaded: in ``dtype``, but for lone numbers, and where the table of rules wants them."""

    def weight(shape: jax.ShapeDtypeStruct, sharding: Sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape, dtype if shape.shape else shape.dtype, sharding=sharding)

    return jax.tree.map(weight, shapes, shardings(shapes, mesh))
