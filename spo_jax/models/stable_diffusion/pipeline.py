"""The Stable Diffusion pipeline (SD and SDXL), which joins networks, weights and tokenizers, and its readers."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Array, DType, Float, Int, Num, Params
from spo_jax.data.tokenizer import AbstractTokenizer, Tokenizer
from spo_jax.diffusion.ddpm import DDPM, make_ddpm
from spo_jax.diffusion.schedule import ScheduleConfig
from spo_jax.diffusion.steps import SolverSteps, solver_steps
from spo_jax.models.base import TEXT_CHUNK
from spo_jax.models.stable_diffusion import parts, sources
from spo_jax.models.stable_diffusion.checks import check_parts
from spo_jax.models.stable_diffusion.conditioning import Conditioning, SizeConditions
from spo_jax.models.stable_diffusion.config import UNetConfig
from spo_jax.models.stable_diffusion.text import encode_texts
from spo_jax.models.stable_diffusion.unet import UNet2DConditionModel, UNetEncoder
from spo_jax.nn.clip import CLIPTextModel
from spo_jax.nn.clip_config import CLIPTextConfig
from spo_jax.nn.lora import scaled
from spo_jax.nn.shapes import floats, text_shapes, vae_shapes, weight_shapes
from spo_jax.nn.vae import AutoencoderKL, VAEConfig
from spo_jax.parallel.chunks import in_chunks
from spo_jax.parallel.mesh import gathered
from spo_jax.parallel.sharding import abstract_weights, place_weights
from spo_jax.weights.digest import weights_digest

_TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


@dataclasses.dataclass(frozen=True)
class StableDiffusion:
    """A `spo_jax.models.base.Pipeline`: one Stable Diffusion model, 1.x, 2.x or SDXL.

    Attributes:
      folder: diffusers folder from which it was read, whose other files are copied on export; or a single file.
      unet: the trained network.
      vae: the autoencoder; float32 if SDXL's config says `force_upcast`, for all dtypes of the other networks, as in
        diffusers' pipeline.
      text_encoder: SD's only text encoder, or SDXL's first one.
      tokenizer: tokenizer of ``text_encoder``.
      scheduler: config of the noise schedule.
      params: weights of "unet", "vae", "text_encoder" and SDXL's "text_encoder_2".
      text_encoder_2: SDXL's second text encoder.
      tokenizer_2: tokenizer of ``text_encoder_2``.
      zero_unconditional: whether the unconditional input is zeros instead of the encoded empty prompt.
      base: folder of the tokenizers and the scheduler, if it is not ``folder``.
    """

    FAMILY: ClassVar[str] = "stable_diffusion"
    TRAINED: ClassVar[str] = "unet"

    folder: Path
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: Tokenizer
    scheduler: ScheduleConfig
    params: Params
    text_encoder_2: CLIPTextModel | None = None
    tokenizer_2: Tokenizer | None = None
    zero_unconditional: bool = False
    base: Path | None = None

    # Sizes and parts

    @property
    def kind(self) -> str:
        """The kind of model: ``sdxl``, or ``sd`` for SD 1.x and 2.x."""
        return "sd" if self.text_encoder_2 is None else "sdxl"

    def facts(self) -> dict[str, str]:
        """Returns what tells models of the family apart, in words by name."""
        return {
            "architecture": parts.architecture(dataclasses.asdict(self.unet.config)),
            "prediction": self.scheduler.prediction_type,
        }

    @property
    def dtype(self) -> DType:
        """The dtype of the UNet's activations and frozen weights."""
        return self.unet.dtype

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The shape (h, w, c) of latents at the size that the model was trained for."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return height, width, self.unet.config.in_channels

    @property
    def image_size(self) -> tuple[int, int]:
        """The (height, width) of images in pixels at the size that the model was trained for."""
        return self.pixels(self.latent_shape)

    @property
    def downscale(self) -> int:
        """The number of pixels per latent along a side."""
        return self.vae.config.downscale

    @property
    def text_params(self) -> Params:
        """The weights of the text encoders."""
        return {name: self.params[name] for name in _TEXT_ENCODERS if name in self.params}

    @property
    def token_shape(self) -> tuple[int, int]:
        """The number of text encoders, and the number of tokens of a prompt."""
        return len(self.text_params), self.tokenizer.length

    def pixels(self, latent_shape: tuple[int, int, int]) -> tuple[int, int]:
        """Returns the (height, width) of the image that latents of shape (h, w, c) are decoded to."""
        height, width, _ = latent_shape
        return height * self.downscale, width * self.downscale

    def latent_shape_of(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        """Returns the latent shape (h, w, c) for images of the given size.

        Args:
          height: height in pixels; None is the model's own.
          width: width in pixels; None is the model's own.

        Raises:
          UserError: a side cannot be halved as often as the autoencoder and the UNet halve it.
        """
        multiple = self.downscale * 2 ** (len(self.unet.config.block_out_channels) - 1)
        shape = list(self.latent_shape)
        for axis, (name, side) in enumerate((("height", height), ("width", width))):
            if side is None:
                continue
            below = side // multiple * multiple
            if below != side or side < 1:
                choice = f"{below} or {below + multiple}" if below > 0 else str(multiple)
                raise UserError(
                    f"--{name}={side}: expected a multiple of {multiple}, because the model halves it; try {choice}"
                )
            shape[axis] = side // self.downscale
        return tuple(shape)

    # The process

    def process(self, steps: int) -> DDPM:
        """Returns the diffusion process divided into ``steps`` sampling steps."""
        return make_ddpm(self.scheduler, steps)

    def solver_steps(self, solver: str, steps: int, karras: bool = False) -> SolverSteps:
        """Returns the table of a deterministic solver (see `spo_jax.diffusion.steps.solver_steps`)."""
        return solver_steps(self.scheduler, solver, steps, karras)

    # Text

    def prompt_options(
        self,
        latent_shape: tuple[int, int, int],
        original: tuple[int, int] | None = None,
        crop: tuple[int, int] | None = None,
        target: tuple[int, int] | None = None,
    ) -> dict[str, Any]:
        """Returns the keyword arguments of `encode_prompts`: SDXL's size conditions for images of the given shape.

        Args:
          latent_shape: shape (h, w, c) of the latents.
          original: replaces the original size in `SizeConditions`, which is otherwise the images' own.
          crop: replaces the crop in `SizeConditions`, which is otherwise (0, 0).
          target: replaces the target size in `SizeConditions`, which is otherwise the images' own.

        Raises:
          UserError: size conditions are given for a model that takes none.
        """
        conditions = {"original": original, "crop": crop, "target": target}
        given = {name: pair for name, pair in conditions.items() if pair is not None}
        if self.kind == "sdxl":
            return {"size": dataclasses.replace(SizeConditions.uncropped(self.pixels(latent_shape)), **given)}
        if given:
            raise UserError(f"{self.folder} takes no size conditions ({', '.join(given)}): only SDXL models do")
        return {}

    def tokenize(self, prompts: Sequence[str]) -> Int[np.ndarray, "b e l"]:
        """Tokenizes prompts on the host, once for each of the e text encoders."""
        return np.stack([tokenizer(prompts) for tokenizer in self._tokenizers], axis=1)

    def cut_off(self, prompts: Sequence[str]) -> list[str]:
        """Returns the end of each prompt that one of the text encoders does not read; empty where all of it is read."""
        return [max(ends, key=len) for ends in zip(*(t.cut_off(prompts) for t in self._tokenizers), strict=True)]

    @property
    def _tokenizers(self) -> list[Tokenizer]:
        return [self.tokenizer] + ([self.tokenizer_2] if self.tokenizer_2 else [])

    def encode_tokens(
        self, params: Params, ids: Int[Array | np.ndarray, "b e l"], size: SizeConditions | None = None
    ) -> Conditioning:
        """Encodes tokens to the UNet's condition, inside a program or outside.

        SD takes the last states of its text encoder. SDXL takes the penultimate states of both encoders side by side,
        the second encoder's projected pooled text, and ``size`` (diffusers'
        `StableDiffusionXLPipeline.encode_prompt`).

        Args:
          params: `text_params`.
          ids: tokens for each text encoder.
          size: size conditions; None is the model's own size, uncropped.

        Raises:
          UserError: size conditions are given for a model that takes none.
        """
        encoders = (self.text_encoder, self.text_encoder_2)[: len(params)]
        encoded = _encode_text(encoders, tuple(params[name] for name in _TEXT_ENCODERS[: len(params)]), ids)
        return encoded._replace(time_ids=self._time_ids(len(ids), size))

    def encode_prompts(self, prompts: Sequence[str], size: SizeConditions | None = None) -> Conditioning:
        """Encodes prompts as `encode_tokens`, on the host; callers compute it once per prompt and keep it."""
        encode = functools.partial(self.encode_tokens, self.text_params, size=size)
        return in_chunks(encode, self.tokenize(prompts), TEXT_CHUNK)

    def encode_unconditional(self, size: SizeConditions | None = None) -> Conditioning:
        """Returns the unconditional input of guidance, which has one row.

        It is the encoded empty prompt, or zeros if an SDXL pipeline says so.

        Args:
          size: as in `encode_tokens`.

        Raises:
          UserError: as `encode_tokens`.
        """
        if not self.zero_unconditional:
            return self.encode_prompts([""], size)
        states = np.zeros((1, self.tokenizer.length, self.unet.config.cross_attention_dim), self.text_encoder.dtype)
        pooled = np.zeros((1, self.text_encoder_2.config.projection_dim), self.text_encoder_2.dtype)
        return Conditioning(states, pooled, self._time_ids(1, size))

    def _time_ids(self, rows: int, size: SizeConditions | None) -> Float[np.ndarray, "b 6"] | None:
        """Returns SDXL's size conditions, the same for all rows."""
        if self.kind != "sdxl":
            if size is not None:
                raise UserError(f"{self.folder} takes no size conditions: only SDXL models do")
            return None
        size = size or SizeConditions.uncropped(self.image_size)
        return np.tile(np.asarray([size.time_ids], np.float32), (rows, 1))

    # The networks

    def predict(
        self,
        params: Params,
        lora: Params | None,
        x: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        condition: Conditioning,
        lora_scale: float | Float[Array, ""] = 1.0,
    ) -> Float[Array, "b h w c"]:
        """Evaluates the UNet.

        Args:
          params: base weights of the UNet.
          lora: tree of the adapter; None evaluates the base model.
          x: noisy latents.
          t: timesteps.
          condition: encoded prompts.
          lora_scale: alpha / r times the strength that a user requests.
        """
        variables = {"params": params} if lora is None else {"params": params, "lora": scaled(lora, lora_scale)}
        return self.unet.apply(variables, x, t, *condition)

    def decode(self, params: Params, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        """Decodes latents, as the diffusion model sees them, to images near [-1, 1], which are not clipped."""
        return self.vae.apply({"params": params}, latents / self.vae.config.scaling_factor, method="decode")

    def encode(
        self, params: Params, images: Float[Array, "b H W 3"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        """Returns mean and log variance of the autoencoder's posterior, before `scale_latents`."""
        return self.vae.apply({"params": params}, images, method="encode")

    def scale_latents(self, latents: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """Scales the autoencoder's latents to the range that the diffusion model sees."""
        return latents * self.vae.config.scaling_factor

    def encoder_fingerprint(self) -> Mapping[str, Any]:
        """Returns everything that latents depend on: the autoencoder's config and its encoder's weights.

        The decoder is left out, because a decoder that was tuned later may use the same latents.
        """
        weights = self.params["vae"]
        encoder = {name: weights[name] for name in ("encoder", "quant_conv") if name in weights}
        return {
            "autoencoder": dataclasses.asdict(self.vae.config),
            "autoencoder weights": weights_digest(encoder),
        }


@functools.partial(jax.jit, static_argnums=0)
def _encode_text(
    encoders: tuple[CLIPTextModel, ...], params: tuple[Params, ...], ids: Int[Array, "b e l"]
) -> Conditioning:
    """Encodes tokens with one or both text encoders."""
    texts = encode_texts(encoders, params, ids)
    return gathered(Conditioning(texts.states, texts.pooled if len(encoders) > 1 else None))


# Reading


def load(
    path: Path,
    *,
    dtype: DType = jnp.float32,
    remat: bool | str = False,
    mesh: Mesh | None = None,
    vae: str | os.PathLike = "",
    unet: str | os.PathLike = "",
    base: str | os.PathLike = "",
    abstract: bool = False,
) -> StableDiffusion:
    """Reads a pipeline that the family claims; the arguments are those of `spo_jax.models.open_pipeline`."""
    return _assemble(sources.open_source(path, base), vae, unet, dtype, remat, mesh, abstract)


def load_published(
    name: str,
    *,
    dtype: DType,
    remat: bool | str,
    mesh: Mesh | None,
    vae: str | os.PathLike = "",
    unet: str | os.PathLike = "",
) -> StableDiffusion | None:
    """Returns the abstract pipeline of a hub id whose configs are known, or None."""
    source = sources.published_source(name)
    return None if source is None else _assemble(source, vae, unet, dtype, remat, mesh, abstract=True)


def _assemble(
    source: sources.Source,
    vae: str | os.PathLike,
    unet: str | os.PathLike,
    dtype: DType,
    remat: bool | str,
    mesh: Mesh | None,
    abstract: bool,
) -> StableDiffusion:
    """Makes a pipeline from the parts of a source, and from parts that replace its own."""
    others: dict[str, parts.PartSource | sources.Source] = {}
    if vae:
        others["vae"] = (abstract and parts.published_vae(str(vae))) or parts.open_vae(vae)
    if unet:
        others["unet"] = parts.open_unet(unet)
        parts.check_unet(others["unet"], source.config("unet"), source.path)
    # Read all configs and check that the parts fit, before minutes are spent on reading weights.
    modules = _modules(source, others, dtype, remat)
    tokenizers = _tokenizers(source, modules, abstract)
    check_parts(source, others, {name: module.config for name, module in modules.items()}, tokenizers)
    where = str(source.base / "scheduler" / sources.SCHEDULER_FILE)
    scheduler = ScheduleConfig.from_dict(source.scheduler(), where)
    # Read the weights, or only their shapes.
    params = {}
    for name, module in modules.items():
        shapes = shapes_of_module(name, module)
        if abstract:
            params[name] = abstract_weights(shapes, module.dtype, mesh)
        else:
            params[name] = others.get(name, source).weights(name, shapes, module.dtype)
    if not abstract:
        # The weights stay on the devices; numpy arrays would be transferred with every call.
        params = place_weights(params, mesh, title=str(source.path))
    return StableDiffusion(
        folder=source.path,
        base=source.base,
        **modules,
        **tokenizers,
        scheduler=scheduler,
        params=params,
        zero_unconditional=source.zero_unconditional,
    )


def _modules(
    source: sources.Source, others: Mapping[str, parts.PartSource | sources.Source], dtype: DType, remat: bool | str
) -> dict[str, Any]:
    """Makes the networks by component."""

    def config(cls: Any, name: str) -> Any:
        part = others.get(name, source)
        return cls.from_dict(part.config(name), part.where(name))

    vae_config = config(VAEConfig, "vae")
    upcast = source.kind == "sdxl" and vae_config.force_upcast
    modules = {
        "unet": UNet2DConditionModel(config(UNetConfig, "unet"), remat, dtype),
        "vae": AutoencoderKL(vae_config, jnp.float32 if upcast else dtype),
        "text_encoder": CLIPTextModel(config(CLIPTextConfig, "text_encoder"), dtype=dtype),
    }
    if source.kind == "sdxl":
        text_config = config(CLIPTextConfig, "text_encoder_2")
        modules["text_encoder_2"] = CLIPTextModel(text_config, projection=True, dtype=dtype)
    return modules


def _tokenizers(source: sources.Source, modules: Mapping[str, Any], abstract: bool) -> dict[str, Tokenizer]:
    """Makes one tokenizer for each text encoder."""
    tokenizers = {}
    for encoder in _TEXT_ENCODERS:
        if encoder not in modules:
            continue
        name = encoder.replace("text_encoder", "tokenizer")
        if abstract:
            tokenizers[name] = AbstractTokenizer(modules[encoder].config.max_position_embeddings)
        else:
            tokenizers[name] = Tokenizer(source.base / name)
    return tokenizers


# Shapes of weights, which are not allocated


def shapes_of_module(name: str, module: Any) -> Params:
    """Returns the shapes of a component's weights."""
    if name == "unet":
        return unet_shapes(module)
    return vae_shapes(module) if name == "vae" else text_shapes(module)


def unet_shapes(unet: UNet2DConditionModel | UNetEncoder) -> Params:
    """Returns the shapes of the weights of a UNet, or of its first half."""
    config = unet.config
    extra = ()
    if config.wants_size_conditions:
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        extra = (floats(1, pooled), floats(1, 6))
    x, states = floats(1, 8, 8, config.in_channels), floats(1, 1, config.cross_attention_dim)
    return weight_shapes(unet, x, floats(1), states, *extra)
