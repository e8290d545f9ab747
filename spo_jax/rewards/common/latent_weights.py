"""Reads latent reward models in the layout in which they are published, and writes them with half of the UNet."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spo_jax.core.errors import UserError
from spo_jax.core.files import write_json
from spo_jax.core.typing import DType, Int, Params, PyTree
from spo_jax.data.original_tokenizer import open_tokenizer
from spo_jax.data.tokenizer import AbstractTokenizer, Tokenizer
from spo_jax.models.stable_diffusion.pipeline import unet_shapes
from spo_jax.models.stable_diffusion.unet import DECODER, UNet2DConditionModel
from spo_jax.nn.shapes import text_shapes
from spo_jax.parallel.sharding import abstract_weights, place_weights
from spo_jax.rewards.common.latent_model import ENCODERS, LatentModel, head_shapes, make_model, model_shapes
from spo_jax.rewards.common.lrm_files import JUDGE, STATE, LatentConfig, state_file, tokenizer_folders
from spo_jax.rewards.common.preference_model import copy_tokenizer
from spo_jax.weights import components, rules, store
from spo_jax.weights.torch_zip import read_torch_modules

_TOKENS = "hf_slow_ftfy"  # the authors' tokenizer is transformers 4's, with ftfy


@dataclasses.dataclass(frozen=True)
class ReadModel:
    """A latent reward model.

    Attributes:
      model: the networks.
      params: their weights.
      tokenizers: a tokenizer for each text encoder.
      config: their configs.
    """

    model: LatentModel
    params: Params
    tokenizers: tuple[Tokenizer, ...]
    config: LatentConfig

    def tokenize(self, prompts: Sequence[str]) -> Int[np.ndarray, "b e l"]:
        """Tokenizes prompts, once for each text encoder."""
        return tokenized(self.tokenizers, prompts)


def tokenized(tokenizers: Sequence[Tokenizer], prompts: Sequence[str]) -> Int[np.ndarray, "b e l"]:
    """Tokenizes prompts with every tokenizer."""
    return np.stack([tokenizer(list(prompts)) for tokenizer in tokenizers], axis=1)


def read_model(
    folder: Path, config: LatentConfig, dtype: DType, mesh: Mesh | None, remat: bool | str = False, **options: Any
) -> ReadModel:
    """Reads a latent reward model; every weight of its files has to be known, and none may be missing.

    A UNet that is whole is checked as a whole, and its second half is given up. A file that holds only the first half
    is as good.

    Args:
      folder: its folder.
      config: its configs.
      dtype: dtype of weights and activations; the scale stays float32.
      mesh: mesh on which the weights are placed; None places them on the first device.
      remat: as in `spo_jax.rewards.common.latent_model.make_model`.
      **options: as in `spo_jax.rewards.common.latent_model.make_model`.

    Raises:
      UserError: a file is missing, damaged, or holds weights that do not fit.
    """
    model = make_model(config, dtype, remat, **options)
    tokenizers = open_tokenizers(tokenizer_folders(config, folder), config)
    params = {"unet": read_first_half(folder / "unet", model, dtype)}
    for name, encoder in zip(ENCODERS, model.text, strict=False):
        params[name] = components.load_text(folder / name, text_shapes(encoder), dtype=dtype)
    params |= _read_head(state_file(folder), model, dtype)
    return ReadModel(model, place_weights(params, mesh, title=str(folder)), tokenizers, config)


def open_tokenizers(folders: Sequence[Path], config: LatentConfig) -> tuple[Tokenizer, ...]:
    """Opens the tokenizers in folders as the authors' code does, one for each text encoder.

    Raises:
      UserError: one cannot be read, or belongs to another text encoder.
    """
    tokenizers = tuple(open_tokenizer(folder, _TOKENS) for folder in folders)
    for tokenizer, encoder, name in zip(tokenizers, config.text, ENCODERS, strict=False):
        tokenizer.check_fits(encoder.vocab_size, encoder.max_position_embeddings, f"{config.where}/{name}")
    return tokenizers


def read_first_half(folder: Path, model: LatentModel, dtype: DType) -> Params:
    """Reads the first half of a UNet from a folder of diffusers."""
    state = store.read_state(folder, "diffusers")
    network = model.unet
    if any(re.search(DECODER, name) for name in state):
        network = UNet2DConditionModel(network.config)
    tree = rules.to_tree(state, unet_shapes(network), str(folder), dtype=dtype)
    kept = unet_shapes(model.unet)
    return {name: value for name, value in tree.items() if name in kept}


def _read_head(file: Path, model: LatentModel, dtype: DType) -> Params:
    state = _read_state(file)
    return rules.to_tree(state, head_shapes(model, _projection(state, model)), str(file), dtype=dtype)


def _read_state(file: Path) -> dict[str, np.ndarray]:
    return store.read_file(file) if file.suffix == ".safetensors" else read_torch_modules(file)


def _projection(state: Mapping[str, np.ndarray], model: LatentModel) -> int:
    """Returns the width of the features that are compared, which no config has for SD."""
    width = model.text[-1].config.projection_dim
    if not model.projects_text:
        return width
    # A wrong shape of any kind is reported by `to_tree`.
    return state.get("text_projection.weight", np.zeros((width, 0))).shape[0]


def abstract_model(
    config: LatentConfig, dtype: DType, mesh: Mesh | None, folder: Path | None = None, **options: Any
) -> ReadModel:
    """Returns a model with shapes instead of weights.

    Args:
      config: its configs.
      dtype: dtype of weights and activations.
      mesh: mesh on which the weights would lie.
      folder: its folder; None takes the projections to be as wide as the encoder's config says.
      **options: as in `spo_jax.rewards.common.latent_model.make_model`.
    """
    model = make_model(config, dtype, **options)
    shapes = model_shapes(model, _projection({} if folder is None else _read_state(state_file(folder)), model))
    tokenizers = tuple(AbstractTokenizer(encoder.max_position_embeddings) for encoder in config.text)
    return ReadModel(model, abstract_weights(shapes, dtype, mesh), tokenizers, config)


def write_model(
    folder: Path,
    config: LatentConfig,
    params: Params,
    base: Path,
    dtype: DType = np.float32,
    *,
    timesteps: tuple[int, int],
    guidance_scale: float,
) -> None:
    """Writes a latent reward model as `read_model` reads it, with the first half of its UNet alone.

    Args:
      folder: folder to write.
      config: configs of its networks.
      params: weights, as host arrays.
      base: folder of the diffusion model from which it was made, whose tokenizers are copied.
      dtype: dtype of the weights in the files; the scale stays float32.
      timesteps: lowest and highest timestep at which it judges.
      guidance_scale: guidance with which it was trained.

    Raises:
      UserError: the folder cannot be written, or a weight does not fit ``dtype``.
    """
    dtype = np.dtype(dtype)
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(params) if np.ndim(x))
    if largest > float(jnp.finfo(dtype).max):
        raise UserError(f"{folder}: a weight of {largest:g} does not fit {dtype}; write float32")
    unet = {"_class_name": "UNet2DConditionModel", **dataclasses.asdict(config.unet)}
    components.write_component(folder / "unet", unet, rules.to_state(params["unet"], dtype))
    for name, encoder in zip(ENCODERS, config.text, strict=False):
        content = {"model_type": "clip_text_model", **dataclasses.asdict(encoder)}
        state = components.text_state(params[name], dtype)
        components.write_component(folder / name, content, state, kind="transformers")
        tokenizer = name.replace("text_encoder", "tokenizer")
        copy_tokenizer(base / tokenizer, folder / tokenizer)
    head = {name: params[name] for name in ("visual_projection", "text_projection", "logit_scale") if name in params}
    store.write_state(folder / f"{STATE}.safetensors", rules.to_state(head, dtype))
    write_json(folder / JUDGE, {"timesteps": list(timesteps), "guidance_scale": guidance_scale})


def empty_row(read: ReadModel) -> PyTree:
    """Encodes the empty prompt, one row, on the devices; of an abstract model, returns the shapes."""
    ids = jax.ShapeDtypeStruct((1, len(read.tokenizers), read.tokenizers[0].length), jnp.int32)

    def encode(params: Params, ids: Int[jax.Array, "b e l"]) -> Any:
        return read.model.encode_text(params, ids).condition

    if isinstance(read.tokenizers[0], AbstractTokenizer):
        return jax.eval_shape(encode, read.params, ids)
    return jax.jit(encode)(read.params, read.tokenize([""]))
