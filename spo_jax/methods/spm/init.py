"""The weights from which training starts: a plain CLIP with time conditioning that changes nothing, or an SPM."""

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
from spo_jax.rewards.common.preference_model import read_config, resolve_model, tokenizer_folder
from spo_jax.weights import components, store


@dataclasses.dataclass(frozen=True)
class Start:
    """A time-conditioned CLIP before training.

    Attributes:
      clip: the network.
      params: float32, cut over the mesh as weights are.
      tokenizer: the folder of its tokenizer.
      is_plain: whether these are a plain CLIP's weights; it then scores as that CLIP does, at every timestep.
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
      key: for the weights that ``init`` does not hold.
      tokenizer: folder or hub id of its tokenizer when ``init`` does not hold one.
      random: take only the config of ``init``.
      remat: gradient checkpointing.
      dtype: dtype of activations; weights are float32.
      mesh: where the weights go; without one, to the first device.

    Raises:
      UserError: the model is missing or does not fit.
    """
    path = resolve_model(str(init))
    raw, where = read_config(path)
    config = CLIPConfig.from_dict(raw, where, time_conditioned=True)
    clip = CLIPModel(config, remat, dtype)
    plain = CLIPModel(dataclasses.replace(config, time_conditioned=False))
    folder = tokenizer_folder(path, tokenizer, "--config.tokenizer")
    if random:
        return Start(clip, _on_mesh(lambda key: _random(key, plain, clip), clip, mesh, key), folder, False)
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
    """Weights that ``function`` makes, laid over the mesh as weights are; never whole on one device."""
    out = None if mesh is None else shardings(clip_shapes(clip), mesh, title="preference model")
    return jax.jit(function, out_shardings=out)(*arguments)


def init_time_conditioning(key: Key, clip_params: Params, clip: CLIPModel) -> Params:
    """Adds the time conditioning to a plain CLIP's weights, as the SPO trainer's ``init_adaln_paras``.

    Modulation weights are 0, and so are biases except the gates, which are 1; the time MLP's weights are N(0, 0.02).
    The result gives exactly the plain CLIP's scores at every timestep.

    Args:
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
            value = value.reshape(6, width).at[jnp.array([2, 5])].set(1.0).reshape(-1)  # the two gates
        flat[path] = value
    return unflatten(flat)
