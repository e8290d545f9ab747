"""What methods need to know of a text-to-image model, and guided predictions of its network."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.typing import Array, DType, Float, Int, Num, Params, PyTree
from spo_jax.diffusion.guidance import guided
from spo_jax.diffusion.process import Process
from spo_jax.diffusion.steps import SolverSteps


@runtime_checkable
class Pipeline(Protocol):
    """One text-to-image model: networks, weights, tokenizers and noise schedule.

    A model family is a folder in `spo_jax.models` whose ``pipeline.py`` has a class like this one. What prompts are
    encoded to is opaque to everyone else: a PyTree of arrays whose leading axis is the prompts'.

    Attributes:
      FAMILY: name of the family's folder.
      TRAINED: which entry of `params` is the network that methods train.
      folder: where the model was read from: a diffusers folder or a single file.
      params: weights by component, as arrays on the mesh, or shapes of an abstract pipeline.
    """

    FAMILY: ClassVar[str]
    TRAINED: ClassVar[str]
    folder: Path
    params: Params

    @property
    def kind(self) -> str:
        """Which models share judges and adapters with this one, such as ``sd`` or ``sdxl``."""
        ...

    @property
    def dtype(self) -> DType:
        """Dtype of the trained network's activations and frozen weights."""
        ...

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of latents at the size that the model was trained for."""
        ...

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels at that size."""
        ...

    @property
    def downscale(self) -> int:
        """Pixels per latent along a side."""
        ...

    @property
    def text_params(self) -> Params:
        """The text encoders' entries of `params`."""
        ...

    @property
    def token_shape(self) -> tuple[int, int]:
        """(number of text encoders, tokens of a prompt)."""
        ...

    def process(self, steps: int) -> Process:
        """The diffusion process cut into ``steps`` sampling steps."""
        ...

    def solver_steps(self, solver: str, steps: int, karras: bool = False) -> SolverSteps:
        """The table of a deterministic solver."""
        ...

    def prompt_options(self, latent_shape: tuple[int, int, int]) -> dict[str, Any]:
        """Keyword arguments for the three encoders below when images of that size are made."""
        ...

    def tokenize(self, prompts: Sequence[str]) -> Int[np.ndarray, "b e l"]:
        """Tokens for each of the e text encoders, on the host."""
        ...

    def encode_tokens(self, params: Params, ids: Int[Array, "b e l"], **options: Any) -> PyTree:
        """What the network is conditioned on, inside a program; ``params`` are `text_params`."""
        ...

    def encode_prompts(self, prompts: Sequence[str], **options: Any) -> PyTree:
        """The same on the host; computed once per prompt and kept by the caller."""
        ...

    def encode_unconditional(self, **options: Any) -> PyTree:
        """What guidance leads away from: one row."""
        ...

    def predict(
        self,
        params: Params,
        lora: Params | None,
        x: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        condition: PyTree,
        lora_scale: float = 1.0,
    ) -> Float[Array, "b h w c"]:
        """The trained network's prediction; ``params`` is its entry of `params`, ``lora`` None is the base model."""
        ...

    def decode(self, params: Params, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        """Images near [-1, 1], not clipped; ``params`` is the entry ``vae`` of `params`."""
        ...

    def encode(
        self, params: Params, images: Float[Array, "b H W 3"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        """Mean and log variance of the autoencoder's posterior, before `scale_latents`; images in [-1, 1]."""
        ...

    def scale_latents(self, latents: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """The autoencoder's latents as the diffusion model sees them."""
        ...

    def encoder_fingerprint(self) -> Mapping[str, Any]:
        """What latents depend on, as JSON, for those that are kept on disk."""
        ...


@dataclasses.dataclass(frozen=True)
class Decoder:
    """How latents become images: the pipeline's own autoencoder, or a distilled one.

    Attributes:
      params: its weights.
      apply: function of (params, latents) to images near [-1, 1], not clipped.
    """

    params: Params
    apply: Callable[[Params, Float[Array, "b h w c"]], Float[Array, "b H W 3"]]


class Guidance(NamedTuple):
    """Inputs of classifier-free guidance.

    Attributes:
      condition: what prompts are encoded to, b rows.
      unconditional: the same of the unconditional input; b rows, or one row for all.
      scale: guidance scale w.
    """

    condition: PyTree
    unconditional: PyTree
    scale: float


def repeat_rows(tree: PyTree, copies: int) -> PyTree:
    """Every row ``copies`` times, one after the other: the copies of a prompt stay on its device."""
    return jax.tree.map(lambda x: jnp.repeat(x, copies, axis=0), tree)


def count_rows(tree: PyTree) -> int:
    """The size of the leading axis, which all leaves share."""
    return len(jax.tree.leaves(tree)[0])


def denoise(
    pipeline: Pipeline,
    params: Params,
    lora: Params | None,
    guidance: Guidance,
    x: Float[Array, "*k b h w c"],
    t: Num[Array, "*b"],
    lora_scale: float = 1.0,
) -> Float[Array, "*k b h w c"]:
    """Guided prediction of the pipeline's network.

    Args:
      params: the network's base weights.
      lora: the adapter's tree; None is the base model.
      x: latents; leading axes before b are copies of the prompts, folded into one batch.
      t: one timestep, or one per row of b (without copies).
      lora_scale: alpha / r, times the strength that a user asks for.
    """

    def predict(x: Array, t: Array, condition: PyTree) -> Array:
        return pipeline.predict(params, lora, x, t, condition, lora_scale)

    # The prompts' axis comes first and varies slowest: where it is cut over devices, copies of a prompt stay together.
    by_prompt = jnp.moveaxis(x, -4, 0)  # [k b h w c] -> [b k h w c]
    flat = by_prompt.reshape(-1, *x.shape[-3:])  # [b·k h w c]
    copies = len(flat) // len(by_prompt)
    condition = repeat_rows(guidance.condition, copies)
    unconditional = repeat_rows(guidance.unconditional, len(flat) // count_rows(guidance.unconditional))
    t = jnp.broadcast_to(t, flat.shape[:1])
    out = guided(predict, flat, t, condition, unconditional, guidance.scale)
    return jnp.moveaxis(out.reshape(by_prompt.shape), 0, -4)


def bind_denoise(
    pipeline: Pipeline, params: Params, lora: Params | None, guidance: Guidance, lora_scale: float = 1.0
) -> Callable[[Array, Array], Array]:
    """`denoise` with everything fixed except (x, t): what samplers and the resampler take."""
    return lambda x, t: denoise(pipeline, params, lora, guidance, x, t, lora_scale)
