"""The weights from which training starts: a plain CLIP with time conditioning that changes nothing, or an SPM."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spo_jax.core.typing import DType, Key, Params
from spo_jax.nn.clip import CLIPModel
from spo_jax.nn.clip_config import CLIPConfig
from spo_jax.parallel.sharding import place_weights, shardings
from spo_jax.rewards.common.preference_model import (
    clip_shapes,
    init_time_conditioning,
    read_config,
    resolve_model,
    tokenizer_folder,
)
from spo_jax.weights import store
from spo_jax.weights.components import clip_tree


@dataclasses.dataclass(frozen=True)
class Start:
    """A time-conditioned CLIP before training.

    Attributes:
      params: float32, cut over the mesh as weights are.
      tokenizer: the folder of its tokenizer.
      is_plain: whether these are a plain CLIP's weights: then it scores as that does, at every timestep.
    """

    clip: CLIPModel
    params: Params
    tokenizer: Path
    is_plain: bool


def load_start(
    init: str | os.PathLike,
    key: Key,
    *,
    tokenizer: str | os.PathLike | None = None,
    random: bool = False,
    remat: bool = False,
    dtype: DType = jnp.float32,
    mesh: Mesh | None = None,
) -> Start:
    """Reads a plain CLIP (PickScore) or a step-aware preference model to train on from there.

    Args:
      init: folder, file or hub id, as in `spo_jax.rewards.common.preference_model.load_spm`.
      key: of the weights that ``init`` does not hold.
      tokenizer: folder or hub id of its tokenizer when ``init`` does not hold one.
      random: take only the config of ``init``.
      remat: gradient checkpointing. dtype: of activations; weights are float32.

    Raises:
      UserError: what is missing or does not fit.
    """
    path = resolve_model(str(init))
    raw, where = read_config(path)
    config = CLIPConfig.from_dict(raw, where, time_conditioned=True)
    clip, plain = CLIPModel(config, remat, dtype), CLIPModel(dataclasses.replace(config, time_conditioned=False))
    folder = tokenizer_folder(path, tokenizer, "--config.tokenizer")
    if random:
        return Start(clip, _on_mesh(lambda key: _random(key, plain, clip), clip, mesh, key), folder, False)
    state = store.read_state(path, "transformers")
    conditioned = any("t_embedder." in name or "adaLN_modulation." in name for name in state)
    shapes = clip_shapes(clip if conditioned else plain)
    params = place_weights(clip_tree(state, shapes, str(path), np.float32), mesh, title=str(init))
    if not conditioned:
        params = _on_mesh(lambda key, params: init_time_conditioning(key, params, clip), clip, mesh, key, params)
    return Start(clip, params, folder, not conditioned)


def _random(key: Key, plain: CLIPModel, clip: CLIPModel) -> Params:
    init_key, time_key = jax.random.split(key)
    side, channels = plain.config.vision.image_size, plain.config.vision.num_channels
    params = plain.init(init_key, jnp.zeros((1, 1), int), jnp.zeros((1, side, side, channels)))["params"]
    return init_time_conditioning(time_key, params, clip)


def _on_mesh(function, clip: CLIPModel, mesh: Mesh | None, *arguments) -> Params:
    """What ``function`` makes, laid over the mesh as weights are; never whole on one device."""
    out = None if mesh is None else shardings(clip_shapes(clip), mesh, title="preference model")
    return jax.jit(function, out_shardings=out)(*arguments)
