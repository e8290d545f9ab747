"""The Stable Diffusion pipeline, SD and SDXL: networks, weights and tokenizers as one, and how it is read."""

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
from spo_jax.core.files import read_json_object
from spo_jax.core.typing import Array, DType, Float, Int, Num, Params
from spo_jax.data.tokenizer import AbstractTokenizer, Tokenizer
from spo_jax.diffusion.ddpm import DDPM, make_ddpm
from spo_jax.diffusion.schedule import ScheduleConfig
from spo_jax.diffusion.steps import SolverSteps, solver_steps
from spo_jax.models.stable_diffusion import sources
from spo_jax.models.stable_diffusion.checks import check_parts
from spo_jax.models.stable_diffusion.conditioning import Conditioning, SizeConditions
from spo_jax.models.stable_diffusion.config import UNetConfig
from spo_jax.models.stable_diffusion.unet import UNet2DConditionModel
from spo_jax.nn.clip import CLIPTextModel
from spo_jax.nn.clip_config import CLIPTextConfig
from spo_jax.nn.lora import scaled
from spo_jax.nn.shapes import text_shapes, vae_shapes
from spo_jax.nn.vae import AutoencoderKL, VAEConfig
from spo_jax.parallel.chunks import in_chunks
from spo_jax.parallel.mesh import gathered
from spo_jax.parallel.sharding import abstract_weights, place_weights
from spo_jax.weights.digest import weights_digest

COMPONENTS = sources.COMPONENTS
TEXT_CHUNK = 64  # prompts encoded at a time, in one compiled shape
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


@dataclasses.dataclass(frozen=True)
class StableDiffusion:
    """A `spo_jax.models.base.Pipeline`: one Stable Diffusion model, of the first generations or SDXL.

    Attributes:
      folder: where it was read from: a diffusers folder (other files are copied from there on export), or a single
        file.
      unet: the network that is trained.
      vae: float32 where SDXL's config says `force_upcast`, whatever the others are, as in diffusers' pipeline.
      text_encoder: SD's only text encoder, SDXL's first.
      tokenizer: its tokenizer.
      scheduler: the noise schedule's config.
      params: {"unet", "vae", "text_encoder"} weights, and SDXL's "text_encoder_2".
      text_encoder_2: SDXL only.
      tokenizer_2: SDXL only.
      zero_unconditional: zeros are the unconditional input, not the encoded empty prompt.
      base: the folder of tokenizers and scheduler, where that is another one.
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
        """``sdxl``, or ``sd`` for its predecessors."""
        return "sd" if self.text_encoder_2 is None else "sdxl"

    @property
    def dtype(self) -> DType:
        """Dtype of the UNet's activations and frozen weights."""
        return self.unet.dtype

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(h, w, c) at the size that the model was trained for."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return height, width, self.unet.config.in_channels

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels at that size."""
        return self.pixels(self.latent_shape)

    @property
    def downscale(self) -> int:
        """Pixels per latent along a side."""
        return self.vae.config.downscale

    @property
    def scheduler_file(self) -> Path:
        """The file that `scheduler` was read from, for messages."""
        return (self.base or self.folder) / "scheduler" / sources.SCHEDULER_FILE

    @property
    def text_params(self) -> Params:
        """Weights of the text encoders."""
        return {name: self.params[name] for name in _TEXT_ENCODERS if name in self.params}

    @property
    def token_shape(self) -> tuple[int, int]:
        """(number of text encoders, tokens of a prompt)."""
        return len(self.text_params), self.tokenizer.length

    def pixels(self, latent_shape: tuple[int, int, int]) -> tuple[int, int]:
        """(height, width) of an image of latents (h, w, c)."""
        height, width, _ = latent_shape
        return height * self.downscale, width * self.downscale

    def latent_shape_of(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        """(h, w, c) for images of that size in pixels; None is the model's own.

        Raises:
          UserError: a side that autoencoder and UNet cannot halve as often as they do.
        """
        whole = self.downscale * 2 ** (len(self.unet.config.block_out_channels) - 1)
        shape = list(self.latent_shape)
        for axis, (name, side) in enumerate((("height", height), ("width", width))):
            if side is None:
                continue
            near = side // whole * whole
            if near != side or side < 1:
                choice = f"{near} or {near + whole}" if near > 0 else str(whole)
                raise UserError(
                    f"--{name}={side}: expected a multiple of {whole}, as the model halves it; try {choice}"
                )
            shape[axis] = side // self.downscale
        return tuple(shape)

    # The process

    def process(self, steps: int) -> DDPM:
        """The diffusion process cut into ``steps`` sampling steps."""
        return make_ddpm(self.scheduler, steps)

    def solver_steps(self, solver: str, steps: int, karras: bool = False) -> SolverSteps:
        """The table of a deterministic solver (see `spo_jax.diffusion.steps.solver_steps`)."""
        return solver_steps(self.scheduler, solver, steps, karras)

    # Text

    def prompt_options(
        self,
        latent_shape: tuple[int, int, int],
        original: tuple[int, int] | None = None,
        crop: tuple[int, int] | None = None,
        target: tuple[int, int] | None = None,
    ) -> dict[str, Any]:
        """What `encode_prompts` takes besides prompts: SDXL's size conditions for images of that size.

        Args:
          latent_shape: (h, w, c).
          original: (height, width) instead of the images' own; likewise the others, see `SizeConditions`.

        Raises:
          UserError: size conditions for a model that takes none.
        """
        given = {"original": original, "crop": crop, "target": target}
        given = {name: pair for name, pair in given.items() if pair is not None}
        if self.kind == "sdxl":
            return {"size": dataclasses.replace(SizeConditions.uncropped(self.pixels(latent_shape)), **given)}
        if given:
            raise UserError(f"{self.folder} takes no size conditions ({', '.join(given)}): only SDXL models do")
        return {}

    def tokenize(self, prompts: Sequence[str]) -> Int[np.ndarray, "b e l"]:
        """Tokens for each of the e text encoders."""
        tokenizers = [self.tokenizer, *([self.tokenizer_2] if self.tokenizer_2 else [])]
        return np.stack([tokenizer(prompts) for tokenizer in tokenizers], axis=1)

    def encode_tokens(
        self, params: Params, ids: Int[Array | np.ndarray, "b e l"], size: SizeConditions | None = None
    ) -> Conditioning:
        """What the UNet is conditioned on, from tokens; inside a program or outside.

        SD takes its text encoder's last states; SDXL both encoders' penultimate ones side by side, the second's
        projected pooled text, and ``size`` (diffusers' `StableDiffusionXLPipeline.encode_prompt`).

        Args:
          params: `text_params`.
          size: None is the model's own size, uncropped.

        Raises:
          UserError: a size is given to a model that takes none.
        """
        encoders = (self.text_encoder, self.text_encoder_2)[: len(params)]
        encoded = _encode_text(encoders, tuple(params[name] for name in _TEXT_ENCODERS[: len(params)]), ids)
        return encoded._replace(time_ids=self._time_ids(len(ids), size))

    def encode_prompts(self, prompts: Sequence[str], size: SizeConditions | None = None) -> Conditioning:
        """`encode_tokens` of prompts, on the host; computed once per prompt and kept by the caller."""
        encode = functools.partial(self.encode_tokens, self.text_params, size=size)
        return in_chunks(encode, self.tokenize(prompts), TEXT_CHUNK)

    def encode_unconditional(self, size: SizeConditions | None = None) -> Conditioning:
        """What guidance leads away from, one row: the empty prompt; zeros where the pipeline says so (SDXL).

        Args and raises as `encode_tokens`.
        """
        if not self.zero_unconditional:
            return self.encode_prompts([""], size)
        states = np.zeros((1, self.tokenizer.length, self.unet.config.cross_attention_dim), self.text_encoder.dtype)
        pooled = np.zeros((1, self.text_encoder_2.config.projection_dim), self.text_encoder_2.dtype)
        return Conditioning(states, pooled, self._time_ids(1, size))

    def _time_ids(self, rows: int, size: SizeConditions | None) -> Float[np.ndarray, "b 6"] | None:
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
        lora_scale: float = 1.0,
    ) -> Float[Array, "b h w c"]:
        """The UNet's prediction.

        Args:
          params: the UNet's base weights.
          lora: the adapter's tree; None is the base model.
          lora_scale: alpha / r, times the strength that a user asks for.
        """
        variables = {"params": params} if lora is None else {"params": params, "lora": scaled(lora, lora_scale)}
        return self.unet.apply(variables, x, t, *condition)

    def decode(self, params: Params, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        """Images near [-1, 1], not clipped, of latents as the diffusion model sees them."""
        return self.vae.apply({"params": params}, latents / self.vae.config.scaling_factor, method="decode")

    def encode(
        self, params: Params, images: Float[Array, "b H W 3"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        """Mean and log variance of the autoencoder's posterior, before `scale_latents`."""
        return self.vae.apply({"params": params}, images, method="encode")

    def scale_latents(self, latents: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """The autoencoder's latents as the diffusion model sees them."""
        return latents * self.vae.config.scaling_factor

    def encoder_fingerprint(self) -> Mapping[str, Any]:
        """What latents depend on: the autoencoder's config and its encoder's weights.

        The decoder plays no part: one that was tuned later may use the same latents.
        """
        weights = self.params["vae"]
        return {
            "autoencoder": dataclasses.asdict(self.vae.config),
            "autoencoder weights": weights_digest(
                {name: weights[name] for name in ("encoder", "quant_conv") if name in weights}
            ),
        }


@functools.partial(jax.jit, static_argnums=0)
def _encode_text(
    encoders: tuple[CLIPTextModel, ...], params: tuple[Params, ...], ids: Int[Array, "b e l"]
) -> Conditioning:
    pairs = zip(encoders, params, strict=True)
    outputs = [encoder.apply({"params": weights}, ids[:, e]) for e, (encoder, weights) in enumerate(pairs)]
    if len(outputs) == 1:
        return gathered(Conditioning(outputs[0][0].last))
    states = jnp.concatenate([output.penultimate for output, _ in outputs], axis=-1)
    return gathered(Conditioning(states, pooled=outputs[-1][1]))


# Reading


def claims(path: Path) -> bool:
    """Whether a folder or file is this family's: a diffusers folder of its classes, or a single-file checkpoint."""
    if path.is_file():
        return True
    index = path / "model_index.json"
    return index.is_file() and read_json_object(index).get("_class_name") in sources.CLASSES


def load(
    path: Path,
    *,
    dtype: DType = jnp.float32,
    remat: bool = False,
    mesh: Mesh | None = None,
    vae: str | os.PathLike = "",
    base: str | os.PathLike = "",
    abstract: bool = False,
) -> StableDiffusion:
    """Reads a pipeline that the family claims; arguments as `spo_jax.models.open_pipeline`."""
    return _assemble(sources.open_source(path, base), vae, dtype, remat, mesh, abstract)


def load_published(
    name: str, *, dtype: DType, remat: bool, mesh: Mesh | None, vae: str | os.PathLike = ""
) -> StableDiffusion | None:
    """The abstract pipeline of a hub id whose configs are known, or None."""
    source = sources.published_source(name)
    return None if source is None else _assemble(source, vae, dtype, remat, mesh, True)


def _assemble(
    source: sources.Source, vae: str | os.PathLike, dtype: DType, remat: bool, mesh: Mesh | None, abstract: bool
) -> StableDiffusion:
    vae_source = source
    if vae:
        vae_source = (abstract and sources.published_vae(str(vae))) or sources.open_vae(vae)
    modules = _modules(source, vae_source, dtype, remat)
    tokenizers = _tokenizers(source, modules, abstract)
    check_parts(source, vae_source, {name: module.config for name, module in modules.items()}, tokenizers)
    params = {}
    for name, module in modules.items():
        part = vae_source if name == "vae" else source
        shapes = shapes_of_module(name, module)
        if abstract:
            params[name] = abstract_weights(shapes, module.dtype, mesh)
        else:
            params[name] = part.weights(name, shapes, module.dtype)
    if not abstract:
        # On the devices once and for all: numpy arrays would travel there with every call.
        params = place_weights(params, mesh, title=str(source.path))
    where = str(source.base / "scheduler" / sources.SCHEDULER_FILE)
    return StableDiffusion(
        folder=source.path,
        base=source.base,
        **modules,
        **tokenizers,
        scheduler=ScheduleConfig.from_dict(source.scheduler(), where),
        params=params,
        zero_unconditional=source.zero_unconditional,
    )


def _modules(source: sources.Source, vae_source: sources.PartSource, dtype: DType, remat: bool) -> dict[str, Any]:
    def config(cls: Any, part: sources.PartSource, name: str) -> Any:
        return cls.from_dict(part.config(name), part.where(name))

    vae_config = config(VAEConfig, vae_source, "vae")
    upcast = source.kind == "sdxl" and vae_config.force_upcast
    modules = {
        "unet": UNet2DConditionModel(config(UNetConfig, source, "unet"), remat, dtype),
        "vae": AutoencoderKL(vae_config, jnp.float32 if upcast else dtype),
        "text_encoder": CLIPTextModel(config(CLIPTextConfig, source, "text_encoder"), dtype=dtype),
    }
    if source.kind == "sdxl":
        text_config = config(CLIPTextConfig, source, "text_encoder_2")
        modules["text_encoder_2"] = CLIPTextModel(text_config, projection=True, dtype=dtype)
    return modules


def _tokenizers(source: sources.Source, modules: Mapping[str, Any], abstract: bool) -> dict[str, Tokenizer]:
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


# Shapes of weights, without allocating them


def shapes_of_module(name: str, module: Any) -> Params:
    """Shapes of a component's weights."""
    if name == "unet":
        return unet_shapes(module)
    return vae_shapes(module) if name == "vae" else text_shapes(module)


def unet_shapes(unet: UNet2DConditionModel) -> Params:
    """Shapes of the UNet's weights."""
    config = unet.config
    x = jnp.zeros((1, 8, 8, config.in_channels))
    extra = ()
    if config.wants_size_conditions:
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        extra = (jnp.zeros((1, pooled)), jnp.zeros((1, 6)))
    states = jnp.zeros((1, 1, config.cross_attention_dim))
    return jax.eval_shape(unet.init, jax.random.key(0), x, jnp.zeros(1), states, *extra)["params"]
