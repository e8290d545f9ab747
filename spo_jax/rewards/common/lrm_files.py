"""The files of a latent reward model (LRM): where they are, their configs, and for which models it judges; no jax here.

A folder holds ``unet/``, ``text_encoder/`` and for SDXL ``text_encoder_2/`` in the layouts of diffusers and
transformers, and the rest in ``state_dict.pt``, as published, or in ``state_dict.safetensors``, as it is written here.
A file ``judge.json`` may say on which timesteps and with which guidance the model was trained. The tokenizers lie in
``tokenizer/`` and ``tokenizer_2/``, or are those of the base model.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spo_jax import toy
from spo_jax.core.errors import UserError
from spo_jax.core.files import local_path, read_json_object
from spo_jax.data.tokenizer import holds_tokenizer
from spo_jax.models.stable_diffusion import presets
from spo_jax.models.stable_diffusion.config import UNetConfig
from spo_jax.nn.clip_config import CLIPTextConfig
from spo_jax.rewards.common.protocol import Context
from spo_jax.rewards.common.published_file import fetch_tokenizer
from spo_jax.weights import hub
from spo_jax.weights.kinds import describe

STATE = "state_dict"  # name of the file with projections and scale, without its ending
JUDGE = "judge.json"
GUIDANCE = 7.5  # of the published models, inside of the model
TRAINING_TIMESTEPS = 1000  # of Stable Diffusion's noise schedule
_ENCODERS = ("text_encoder", "text_encoder_2")
_KINDS = {"sd": "Stable Diffusion 1.x or 2.x", "sdxl": "SDXL"}
_PRESETS = {"sd": presets.SD15, "sdxl": presets.SDXL}
_BASES = {
    "sd": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}
_IN_REPOSITORY = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)/(?P<folder>[\w./-]+)")


@dataclasses.dataclass(frozen=True)
class LatentConfig:
    """What the configs of a latent reward model say.

    Attributes:
      where: its folder, for messages.
      unet: config of the UNet, of which only the first half is used.
      text: configs of its text encoders; SDXL has two.
      timesteps: the lowest and the highest timestep at which it judges.
      guidance_scale: guidance with which it was trained.
    """

    where: str
    unet: UNetConfig
    text: tuple[CLIPTextConfig, ...]
    timesteps: tuple[int, int] = (0, TRAINING_TIMESTEPS - 1)
    guidance_scale: float = GUIDANCE

    @property
    def kind(self) -> str:
        """The kind of pipeline whose latents it judges, ``sd`` or ``sdxl``."""
        return "sdxl" if self.unet.wants_size_conditions else "sd"


def local_folder(source: str) -> Path | None:
    """Returns the folder of a source that is here; None for what has to be on the hub.

    Args:
      source: folder, hub id, ``OWNER/NAME/FOLDER`` on the hub, or a name in `spo_jax.toy.LATENT_JUDGES`.

    Raises:
      UserError: there is no such folder, or it is something else than a latent reward model.
    """
    if source in toy.LATENT_JUDGES:
        return toy.LATENT_JUDGES[source]
    path = local_path(source)
    match = _IN_REPOSITORY.fullmatch(source)
    if not path.exists() and match is not None and not Path(source.split("/")[0]).is_dir():
        path = hub.local(match["repo"])
    else:
        path = hub.local(source)
    if path is not None:
        _check_folder(path)
    return path


def find_folder(source: str) -> Path:
    """Returns the folder of a source, fetched if it is on the hub; the arguments are those of `local_folder`."""
    path = local_folder(source)
    if path is not None:
        return path
    match = _IN_REPOSITORY.fullmatch(source)
    repository, folder = (match["repo"], match["folder"]) if match else (source, "")
    inside = f"{folder}/" if folder else ""
    path = hub.resolve(repository, allow_patterns=(f"{inside}*.json", f"{inside}*.pt", f"{inside}*/*")) / folder
    _check_folder(path)
    return path


def _check_folder(folder: Path) -> None:
    expected = f"expected a latent reward model: a folder with unet/, text_encoder/ and {STATE}.pt"
    if not folder.is_dir() or not (folder / "unet" / "config.json").is_file():
        raise UserError(f"{folder} is {describe(folder)}: {expected}")
    state_file(folder)


def state_file(folder: Path) -> Path:
    """Returns the file with projections and scale.

    Raises:
      UserError: there is none.
    """
    files = [folder / f"{STATE}{ending}" for ending in (".safetensors", ".pt")]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise UserError(
            f"{folder}: no {STATE}.pt here; expected projections and scale of a latent reward model beside unet/"
        )
    return found


def read_config(folder: Path) -> LatentConfig:
    """Reads and checks the configs of a folder.

    Raises:
      UserError: a config is missing, damaged, not implemented, or does not fit the others.
    """
    unet = _read(UNetConfig, folder / "unet")
    names = _ENCODERS if unet.wants_size_conditions else _ENCODERS[:1]
    text = tuple(_read(CLIPTextConfig, folder / name) for name in names)
    config = LatentConfig(str(folder), unet, text, *_read_judge(folder / JUDGE))
    width = sum(encoder.hidden_size for encoder in text)
    if unet.cross_attention_dim != width:
        raise UserError(
            f"{folder}/unet/config.json: cross_attention_dim = {unet.cross_attention_dim}, but the states of "
            f"{' and '.join(names)} are {width} wide: they belong to different models"
        )
    if unet.wants_size_conditions:
        _check_size_conditions(folder, unet, text[-1])
    return config


def _check_size_conditions(folder: Path, unet: UNetConfig, text: CLIPTextConfig) -> None:
    expected = text.projection_dim + 6 * unet.addition_time_embed_dim
    where = f"{folder}/unet/config.json"
    if unet.projection_class_embeddings_input_dim != expected:
        found = unet.projection_class_embeddings_input_dim
        raise UserError(f"{where}: projection_class_embeddings_input_dim = {found}, expected {expected}")
    if unet.sample_size is None:
        raise UserError(f"{where}: sample_size is missing, which is one of the model's inputs")


def _read(cls: Any, folder: Path) -> Any:
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{folder.parent}: no {folder.name}/config.json here; expected that of a latent reward model")
    return cls.from_dict(read_json_object(file), str(file))


def _read_judge(file: Path) -> tuple[tuple[int, int], float]:
    """Reads what a file says of the training: timesteps and guidance; the published ones without a file."""
    if not file.is_file():
        return LatentConfig.timesteps, GUIDANCE
    content = read_json_object(file)
    found = content.get("timesteps", list(LatentConfig.timesteps))
    guidance = content.get("guidance_scale", GUIDANCE)
    if type(guidance) not in (int, float) or not math.isfinite(guidance):
        raise UserError(f"{file}: guidance_scale = {guidance!r}: expected a number")
    is_range = isinstance(found, list) and len(found) == 2 and all(type(t) is int for t in found)
    if not is_range or not 0 <= found[0] <= found[1] < TRAINING_TIMESTEPS:
        raise UserError(f"{file}: timesteps = {found!r}: expected [LOWEST, HIGHEST] from 0 to {TRAINING_TIMESTEPS - 1}")
    return (found[0], found[1]), float(guidance)


def published_config(source: str, kind: str) -> LatentConfig:
    """Returns the config of a published model of a kind, for programs that are compiled without any file."""
    configs = _PRESETS[kind]
    text = tuple(CLIPTextConfig.from_dict(configs[name], source) for name in _ENCODERS if name in configs)
    return LatentConfig(source, UNetConfig.from_dict(configs["unet"], source), text)


def check_source(source: str, context: Context) -> None:
    """Refuses a latent reward model that is missing, damaged or does not fit, as far as that shows without the network.

    Args:
      source: see `local_folder`.
      context: see `check_fits`.

    Raises:
      UserError: as `local_folder`, `read_config` and `check_fits`.
    """
    folder = local_folder(source)
    if folder is not None:
        check_fits(read_config(folder), context)


def open_source(source: str, context: Context) -> tuple[Path, LatentConfig]:
    """Returns the folder of a latent reward model, fetched if it is on the hub, and its configs.

    The arguments and errors are those of `check_source`.
    """
    folder = find_folder(source)
    config = read_config(folder)
    check_fits(config, context)
    return folder, config


def check_trainable(kind: str) -> None:
    """Refuses a diffusion model whose network has no first half that could judge.

    Args:
      kind: `Pipeline.kind` of the model; empty if it is not known yet.

    Raises:
      UserError: it is of another family than Stable Diffusion.
    """
    if kind and kind not in _KINDS:
        raise UserError(
            f"config field model is of the kind {kind!r}, whose network has no first half that judges: expected "
            f"{' or '.join(_KINDS.values())}"
        )


def check_fits(config: LatentConfig, context: Context) -> None:
    """Refuses a judge of other latents than those that are to be judged.

    Args:
      config: config of the judge.
      context: the model's kind, the channels of its latents, and the timesteps at which they are judged.

    Raises:
      UserError: the judge is for another kind of model, for latents of another width, or for other timesteps.
    """
    where = f"{context.where}: the latent reward model {config.where}"
    if context.kind and context.kind != config.kind:
        raise UserError(
            f"{where} judges latents of {_KINDS[config.kind]}, but config field model is "
            f"{_KINDS.get(context.kind, context.kind)}: expected a latent reward model for it"
        )
    if context.channels and context.channels != config.unet.in_channels:
        raise UserError(
            f"{where} judges latents of {config.unet.in_channels} channels (in_channels in unet/config.json), but the "
            f"model's have {context.channels}: expected a latent reward model that was made from it"
        )
    low, high = config.timesteps
    outside = [t for t in context.timesteps if not low <= t <= high]
    if outside:
        raise UserError(
            f"{where} judges at timesteps {low} to {high}, but {_asked(context)} timestep {outside[0]}: "
            f"expected a model that was trained there{_others(context, min(outside) > high)}"
        )


def _asked(context: Context) -> str:
    """Says who asks at timesteps: a rollout, or a measurement, which a flag has named the judge of."""
    return "it is measured at" if context.field.startswith("--") else "the rollout has candidates at"


def _others(context: Context, are_high: bool) -> str:
    """Says which setting leaves timesteps out."""
    if context.field.startswith("--"):
        return ", or other --config.eval.timesteps"
    return ", or a higher spo.divert_start_step" if are_high else ""


def tokenizer_folders(config: LatentConfig, folder: Path) -> list[Path]:
    """Returns the folders of the tokenizers: the model's own, or those of its base model, which are fetched.

    Raises:
      UserError: a tokenizer is neither here nor on the hub.
    """
    found = []
    for name in ("tokenizer", "tokenizer_2")[: len(config.text)]:
        own = folder / name
        if not holds_tokenizer(own):
            own = fetch_tokenizer(folder, _BASES[config.kind], (f"{name}/*",), f"{name}/") / name
        found.append(own)
    return found


def describe_config(config: LatentConfig) -> Mapping[str, Any]:
    """Returns what the configs say, as JSON."""
    return {
        "unet": dataclasses.asdict(config.unet),
        "text": [dataclasses.asdict(encoder) for encoder in config.text],
    }
