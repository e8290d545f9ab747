"""The weights from which training starts: a step-aware preference model, or a plain CLIP with new time conditioning."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spo_jax.core.trees import flatten, unflatten
from spo_jax.core.typing import DType, Key, Params
from spo_jax.nn.clip import CLIPModel
from spo_jax.nn.clip_config import CLIPConfig
from spo_jax.nn.shapes import clip_shapes
from spo_jax.parallel.sharding import place_weights, shardings
from spo_jax.rewards.common.preference_files import read_config, resolve_model, tokenizer_folder
from spo_jax.weights import components, store


@dataclasses.dataclass(frozen=True)
class Start:
    """A time-conditioned CLIP before training.

    Attributes:
      clip: the network.
      params: its weights in float32, sharded over the mesh.
      tokenizer: folder of its tokenizer.
      is_plain: whether the weights were read from a plain CLIP; the network then gives that CLIP's scores at every
        timestep.
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
    """Reads a plain CLIP (PickScore) or a step-aware preference model to start training from.

    Args:
      init: folder, file or hub id, as in `spo_jax.rewards.common.preference_model.load_spm`.
      key: key for the weights that ``init`` does not hold.
      tokenizer: folder or hub id of the tokenizer, if ``init`` does not hold one.
      random: whether to take only the config of ``init`` and draw all weights.
      remat: whether to recompute activations in the backward pass.
      dtype: dtype of activations; weights are float32.
      mesh: mesh on which the weights are placed; None places them on the first device.

    Raises:
      UserError: the model is missing or does not fit.
    """
    # Build the network from its config.
    path = resolve_model(str(init))
    raw, where = read_config(path)
    config = CLIPConfig.from_dict(raw, where, time_conditioned=True)
    clip = CLIPModel(config, remat, dtype)
    plain = CLIPModel(dataclasses.replace(config, time_conditioned=False))
    folder = tokenizer_folder(path, tokenizer, "--config.tokenizer")
    if random:
        return Start(clip, _on_mesh(lambda key: _random(key, plain, clip), clip, mesh, key), folder, False)
    # Read the weights, and add the time conditioning if they have none.
    state = store.read_state(path, "transformers")
    conditioned = any("t_embedder." in name or "adaLN_modulation." in name for name in state)
    shapes = clip_shapes(clip if conditioned else plain)
    params = place_weights(components.clip_tree(state, shapes, str(path), np.float32), mesh, title=str(init))
    if not conditioned:
        params = _on_mesh(lambda key, params: init_time_conditioning(key, params, clip), clip, mesh, key, params)
    return Start(clip, params, folder, not conditioned)


def _random(key: Key, plain: CLIPModel, clip: CLIPModel) -> Params:
    init_key, time_key = jax.random.split(key)
    side = plain.config.vision.image_size
    channels = plain.config.vision.num_channels
    params = plain.init(init_key, jnp.zeros((1, 1), int), jnp.zeros((1, side, side, channels)))["params"]
    return init_time_conditioning(time_key, params, clip)


def _on_mesh(function: Callable[..., Params], clip: CLIPModel, mesh: Mesh | None, *arguments) -> Params:
    """Makes weights with ``function``, sharded over the mesh from the start, so that no device has to hold them all."""
    out = None if mesh is None else shardings(clip_shapes(clip), mesh, title="preference model")
    return jax.jit(function, out_shardings=out)(*arguments)


def init_time_conditioning(key: Key, clip_params: Params, clip: CLIPModel) -> Params:
    """Adds time conditioning to a plain CLIP's weights, as the SPO trainer's ``init_adaln_paras`` does.

    The weights of the modulation are 0, and so are its biases, except those of the gates, which are 1. The weights of
    the time MLP are drawn from N(0, 0.02). The result gives exactly the plain CLIP's scores at every timestep.

    Args:
      key: key for the weights of the time MLP.
      clip_params: weights of the same CLIP without time conditioning.
      clip: the time-conditioned network.
    """
    flat = flatten(clip_params)
    width = clip.config.vision.hidden_size
    shapes = flatten(clip_shapes(clip))
    added = [path for path in shapes if path not in flat]
    for path, path_key in zip(added, jax.random.split(key, len(added)), strict=True):
        value = jnp.zeros(shapes[path].shape)
        if path.startswith("t_embedder/") and path.endswith("/kernel"):
            value = 0.02 * jax.random.normal(path_key, value.shape)
        elif path.endswith("adaLN_modulation_1/bias") and value.shape == (6 * width,):
            value = value.reshape(6, width).at[jnp.array([2, 5])].set(1.0).reshape(-1)  # rows 2 and 5 are the gates
        flat[path] = value
    return unflatten(flat)
