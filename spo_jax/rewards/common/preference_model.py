"""The step-aware preference model: reading and writing it, and its starting point from a plain CLIP."""

import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spo_jax import toy
from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json_object, write_atomic
from spo_jax.core.trees import flatten, unflatten
from spo_jax.core.typing import DType, Key, Params
from spo_jax.data.tokenizer import Tokenizer
from spo_jax.nn.clip import CLIPModel
from spo_jax.nn.clip_config import CLIP_H, CLIPConfig
from spo_jax.parallel.sharding import place_weights
from spo_jax.weights import components as clip_weights
from spo_jax.weights import hub
from spo_jax.weights.components import write_component
from spo_jax.weights.rules import to_state


@dataclasses.dataclass(frozen=True)
class SPM:
    """A preference model: network, weights, tokenizer."""

    clip: CLIPModel
    params: Params
    tokenizer: Tokenizer


def load_spm(
    model: str | os.PathLike,
    *,
    tokenizer: str | os.PathLike | None = None,
    dtype: DType = jnp.float32,
    mesh: Mesh | None = None,
    judges: str | None = None,
) -> SPM:
    """Reads a step-aware preference model in transformers' CLIPModel layout (with the SPO authors' key names).

    Args:
      model: folder, weights file, hub id, one file of a hub repository (``owner/name/file``), or ``"embedded"``.
      tokenizer: folder or hub id of its tokenizer when ``model`` does not hold one.
      mesh: where the weights go; without one, to the first device.
      judges: `Pipeline.kind` of the pipeline whose pictures it is to judge; None asks for nothing.

    Raises:
      UserError: what is missing or does not fit; a model that was trained on another kind of pipeline.
    """
    path = resolve_model(str(model))
    config, where = read_config(path)
    check_kind(path, config, judges)
    clip = CLIPModel(CLIPConfig.from_dict(config, where, time_conditioned=True), dtype=dtype)
    return read_model(path, clip, mesh, str(model), tokenizer_folder(path, tokenizer))


def read_model(path: Path, clip: CLIPModel, mesh: Mesh | None, title: str, tokenizer: Path) -> SPM:
    """The weights of ``clip``, in its dtype, from a folder or file onto the mesh; ``title`` names them in the log.

    Raises:
      UserError: weights or tokenizer are missing or do not fit.
    """
    weights = clip_weights.load_clip(path, clip_shapes(clip), dtype=clip.dtype)
    return SPM(clip, place_weights(weights, mesh, title=title), Tokenizer(tokenizer))


def read_config(path: Path) -> tuple[dict[str, Any], str]:
    """The config of a preference model's folder or file, and where it came from."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    if (path / "model_index.json").is_file():
        raise UserError(f"{path}: this is a diffusion pipeline; expected a preference model or a CLIP")
    # The published checkpoints are single files of CLIP ViT-H/14 without a config beside them.
    config = read_json_object(file) if file.is_file() or path.is_dir() else CLIP_H
    if "_class_name" in config:  # diffusers writes it, transformers does not
        raise UserError(f"{file}: this is a {config['_class_name']}; expected a preference model or a CLIP")
    return config, str(file)


_TOKENIZER_FILES = (
    "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip


def write_spm(
    folder: str | os.PathLike,
    config: CLIPConfig,
    params: Params,
    tokenizer: Path | None = None,
    dtype: DType = jnp.float32,
    trained_on: str = "",
) -> None:
    """Writes a preference model as `load_spm` reads it, its weights under the names of the published ones.

    Args:
      params: host arrays.
      tokenizer: folder whose tokenizer files are copied; None copies none.
      dtype: of the weights in the file.
      trained_on: `Pipeline.kind` of the pipeline whose predictions it was trained on.

    Raises:
      UserError: the folder cannot be written, or a weight does not fit ``dtype``.
    """
    # Lone numbers stay float32.
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(params) if np.ndim(x))
    if largest > float(jnp.finfo(dtype).max):
        raise UserError(f"{folder}: a weight of {largest:g} does not fit {np.dtype(dtype)}; write float32")
    content = config_fields(config) | ({TRAINED_ON: trained_on} if trained_on else {})
    # The authors' class holds the network as `self.model`.
    state = {f"model.{name}": value for name, value in to_state(params, np.dtype(dtype)).items()}
    write_component(folder, content, state, kind="transformers")
    for name in _TOKENIZER_FILES if tokenizer is not None else ():
        if (source := tokenizer / name).is_file():
            write_atomic(Path(folder) / "tokenizer" / name, lambda path, source=source: shutil.copyfile(source, path))


def config_fields(config: CLIPConfig) -> dict[str, Any]:
    """What ``config.json`` of a preference model says, as `CLIPConfig.from_dict` reads it."""
    tower = lambda config, kind: dataclasses.asdict(config) | {"model_type": kind}  # noqa: E731
    return {
        "architectures": ["HFTimeConditionedCLIPModel"],
        "model_type": "clip",
        "projection_dim": config.projection_dim,
        "text_config": tower(config.text, "clip_text_model"),
        "vision_config": tower(config.vision, "clip_vision_model"),
    }


# Field of config.json: the kind of pipeline that made the pictures which a model was trained on. Shapes cannot tell.
TRAINED_ON = "_trained_on"
_PUBLISHED = {
    "sd-v1-5_step-aware_preference_model.bin": "sd",
    "sdxl_step-aware_preference_model.bin": "sdxl",
}


def trained_on_kind(path: Path, config: Mapping[str, Any]) -> str:
    """`Pipeline.kind` of the pipeline whose predictions a model was trained on; empty where nothing tells."""
    return config.get(TRAINED_ON) or _PUBLISHED.get(path.name, "")


def check_kind(path: Path, config: Mapping[str, Any], judges: str | None, flag: str = "--config.spm.model") -> None:
    """Refuses a model of another kind of pipeline than ``judges`` (`Pipeline.kind`, or None), where that is told."""
    trained_on = trained_on_kind(path, config)
    if judges and trained_on and judges != trained_on:
        names = {"sd": "Stable Diffusion 1.x or 2.x", "sdxl": "SDXL"}
        raise UserError(
            f"{path}: this preference model was trained on clean predictions of {names.get(trained_on, trained_on)}, "
            f"but config field model is {names[judges]}: name one for it with {flag}"
        )


def resolve_model(model: str) -> Path:
    """The local folder or file; ``owner/name/file`` is one file of a hub repository."""
    if model == toy.NAME:
        return toy.ASSETS / "spm"
    parts = model.split("/")
    if len(parts) == 3 and not Path(model).exists() and not model.startswith(("/", ".", "~")):
        return hub.resolve("/".join(parts[:2]), allow_patterns=(parts[2],)) / parts[2]
    return hub.resolve(model)


def tokenizer_folder(path: Path, tokenizer: str | os.PathLike | None, flag: str = "--config.spm.tokenizer") -> Path:
    """Where a model's tokenizer is: in ``tokenizer`` (folder or hub id) if that is named, else beside the model.

    Raises:
      UserError: it is in neither; ``flag`` names one.
    """
    if tokenizer is not None:
        path = hub.resolve(tokenizer, allow_patterns=("*.json", "*.txt"))
    for candidate in (path, path / "tokenizer"):
        if any((candidate / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            return candidate
    raise UserError(f"{path}: no tokenizer beside the preference model; name one with {flag}")


def clip_shapes(clip: CLIPModel) -> Params:
    """Shapes of the model's weights, without allocating them."""
    size = clip.config.vision.image_size
    inputs = (jnp.zeros((1, 1), int), jnp.zeros((1, size, size, clip.config.vision.num_channels)))
    t = (jnp.zeros(1),) if clip.config.time_conditioned else ()
    return jax.eval_shape(clip.init, jax.random.key(0), *inputs, *t)["params"]


def init_time_conditioning(key: Key, clip_params: Params, clip: CLIPModel) -> Params:
    """Adds the time conditioning to a plain CLIP's weights, as the SPO trainer's ``init_adaln_paras``.

    Modulation weights are 0, biases 0 but for the gates, which are 1; the time MLP's weights are N(0, 0.02). The
    result gives exactly the plain CLIP's scores at every timestep.

    Args:
      clip_params: weights of the same CLIP without time conditioning.
      clip: the time-conditioned network.
    """
    flat, width = flatten(clip_params), clip.config.vision.hidden_size
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
