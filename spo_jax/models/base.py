"""The protocol of a text-to-image model, as methods and the sampler use it, and guided predictions of its network."""

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

TEXT_CHUNK = 64  # prompts that `Pipeline.encode_prompts` encodes at a time, in one compiled shape


@runtime_checkable
class Pipeline(Protocol):
    """One text-to-image model: networks, weights, tokenizers and noise schedule.

    A model family is a subpackage of `spo_jax.models` whose ``pipeline.py`` has a class with these members. The
    encoding of prompts is opaque to its callers: a PyTree of arrays whose leading axis runs over the prompts.

    It may have a function ``facts()`` as well, whose result the doctor shows: what tells models of the family apart, in
    words by name.

    Attributes:
      FAMILY: name of the family's subpackage.
      TRAINED: entry of `params` that holds the network trained by methods.
      folder: diffusers folder or single file from which the model was read.
      params: weights by component, as arrays on the mesh; an abstract pipeline has shapes instead.
    """

    FAMILY: ClassVar[str]
    TRAINED: ClassVar[str]
    folder: Path
    params: Params

    @property
    def kind(self) -> str:
        """The kind of model, such as ``sd`` or ``sdxl``; models of one kind share judges and adapters."""
        ...

    @property
    def dtype(self) -> DType:
        """The dtype of the trained network's activations and frozen weights."""
        ...

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The shape (h, w, c) of latents at the size that the model was trained for."""
        ...

    @property
    def image_size(self) -> tuple[int, int]:
        """The (height, width) of images in pixels at the size that the model was trained for."""
        ...

    @property
    def downscale(self) -> int:
        """The number of pixels per latent along a side."""
        ...

    def latent_shape_of(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        """Returns the shape (h, w, c) of latents for images of another size.

        Args:
          height: height in pixels; None is the model's own.
          width: width in pixels; None is the model's own.

        Raises:
          UserError: the model cannot draw images of this size; it names the flag ``--height`` or ``--width``.
        """
        ...

    @property
    def text_params(self) -> Params:
        """The text encoders' entries of `params`."""
        ...

    @property
    def token_shape(self) -> tuple[int, int]:
        """The number of text encoders, and the number of tokens of a prompt."""
        ...

    def process(self, steps: int) -> Process:
        """Returns the diffusion process divided into ``steps`` sampling steps."""
        ...

    def solver_steps(self, solver: str, steps: int, karras: bool = False) -> SolverSteps:
        """Returns the table of a deterministic solver."""
        ...

    def prompt_options(self, latent_shape: tuple[int, int, int]) -> dict[str, Any]:
        """Returns the keyword arguments with which prompts are encoded for images of the given latent shape."""
        ...

    def tokenize(self, prompts: Sequence[str]) -> Int[np.ndarray, "b e l"]:
        """Tokenizes prompts on the host, once for each of the e text encoders."""
        ...

    def cut_off(self, prompts: Sequence[str]) -> list[str]:
        """Returns the end of each prompt that is beyond the tokens of a prompt; empty where all of it is read."""
        ...

    def encode_tokens(self, params: Params, ids: Int[Array, "b e l"], **options: Any) -> PyTree:
        """Encodes tokens to the network's condition inside a program; ``params`` are `text_params`."""
        ...

    def encode_prompts(self, prompts: Sequence[str], **options: Any) -> PyTree:
        """Encodes prompts to the network's condition on the host; callers compute it once per prompt and keep it."""
        ...

    def encode_unconditional(self, **options: Any) -> PyTree:
        """Returns the unconditional input of classifier-free guidance, which has one row."""
        ...

    def predict(
        self,
        params: Params,
        lora: Params | None,
        x: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        condition: PyTree,
        lora_scale: float | Float[Array, ""] = 1.0,
    ) -> Float[Array, "b h w c"]:
        """Evaluates the trained network.

        Args:
          params: the network's entry of `params`.
          lora: tree of the adapter; None evaluates the base model.
          x: noisy latents.
          t: timesteps.
          condition: encoded prompts.
          lora_scale: factor of the adapter's update.
        """
        ...

    def decode(self, params: Params, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        """Decodes latents to images near [-1, 1], without clipping; ``params`` is the entry ``vae`` of `params`."""
        ...

    def encode(
        self, params: Params, images: Float[Array, "b H W 3"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        """Returns mean and log variance of the autoencoder's posterior, before `scale_latents`.

        Args:
          params: the entry ``vae`` of `params`.
          images: images in [-1, 1].
        """
        ...

    def scale_latents(self, latents: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """Scales the autoencoder's latents to the range that the diffusion model sees."""
        ...

    def encoder_fingerprint(self) -> Mapping[str, Any]:
        """Returns everything that latents depend on, as JSON, to identify latents that are stored on disk."""
        ...


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A decoder of latents to images: the pipeline's own autoencoder, or a distilled one.

    Attributes:
      params: weights of the decoder.
      apply: function from (params, latents) to images near [-1, 1], which are not clipped.
    """

    params: Params
    apply: Callable[[Params, Float[Array, "b h w c"]], Float[Array, "b H W 3"]]


class Guidance(NamedTuple):
    """Inputs of classifier-free guidance.

    Attributes:
      condition: encoded prompts, b rows.
      unconditional: encoded unconditional input; b rows, or one row for all prompts.
      scale: guidance scale w.
    """

    condition: PyTree
    unconditional: PyTree
    scale: float | Float[Array, ""]


def repeat_rows(tree: PyTree, copies: int) -> PyTree:
    """Repeats every row ``copies`` times, with the copies side by side, so that they stay on the prompt's device."""
    return jax.tree.map(lambda x: jnp.repeat(x, copies, axis=0), tree)


def count_rows(tree: PyTree) -> int:
    """Returns the size of the leading axis, which all leaves share."""
    return len(jax.tree.leaves(tree)[0])


def denoise(
    pipeline: Pipeline,
    params: Params,
    lora: Params | None,
    guidance: Guidance,
    x: Float[Array, "*k b h w c"],
    t: Num[Array, "*b"],
    lora_scale: float | Float[Array, ""] = 1.0,
) -> Float[Array, "*k b h w c"]:
    """Evaluates the pipeline's network with classifier-free guidance.

    Args:
      pipeline: the model.
      params: base weights of the trained network.
      lora: tree of the adapter; None evaluates the base model.
      guidance: encoded prompts and guidance scale.
      x: latents; axes before b hold copies of the prompts and are folded into one batch.
      t: one timestep, or one per row of b (without copies).
      lora_scale: alpha / r times the strength that a user requests.
    """

    def predict(x: Array, t: Array, condition: PyTree) -> Array:
        return pipeline.predict(params, lora, x, t, condition, lora_scale)

    # The prompts' axis comes first and varies slowest, so that the copies of a prompt stay on one device.
    by_prompt = jnp.moveaxis(x, -4, 0)  # [k b h w c] -> [b k h w c]
    flat = by_prompt.reshape(-1, *x.shape[-3:])  # [b k h w c] -> [b*k h w c]
    copies = len(flat) // len(by_prompt)
    condition = repeat_rows(guidance.condition, copies)
    unconditional = repeat_rows(guidance.unconditional, len(flat) // count_rows(guidance.unconditional))
    t = jnp.broadcast_to(t, flat.shape[:1])
    out = guided(predict, flat, t, condition, unconditional, guidance.scale)
    return jnp.moveaxis(out.reshape(by_prompt.shape), 0, -4)  # [b*k h w c] -> [k b h w c]


def bind_denoise(
    pipeline: Pipeline,
    params: Params,
    lora: Params | None,
    guidance: Guidance,
    lora_scale: float | Float[Array, ""] = 1.0,
) -> Callable[[Array, Array], Array]:
    """Binds all arguments of `denoise` except x and t; samplers and the resampler take such a function."""

    def bound(x: Array, t: Array) -> Array:
        return denoise(pipeline, params, lora, guidance, x, t, lora_scale)

    return bound
