"""Images of prompts as a user asks for them: a model, perhaps a LoRA, and settings, which are checked together."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from spo_jax.core.errors import UserError
from spo_jax.core.progress import stage
from spo_jax.core.typing import Float, Params
from spo_jax.core.words import counted, excerpt
from spo_jax.models import open_pipeline
from spo_jax.models.base import Pipeline
from spo_jax.models.lora import read_lora
from spo_jax.models.sampler import LatentsFile, Sampler, latents_of

MAX_PIXELS = 2**28  # of a batch: 1024 images of 512 x 512, and 3 GiB of float32
_WARNINGS = 5  # prompts that are named

Size = tuple[int, int]


class Drawing:
    """Images that are ready to be drawn: the model is read, and everything fits.

    Args:
      prompts: one per image.
      model: folder, hub id, single file, or ``toy``.
      revision: revision of the hub id; empty for none.
      base: where a single file's tokenizers and scheduler come from; empty for the default.
      vae: an autoencoder instead of the model's own; empty for none.
      unet: a UNet instead of the model's own; empty for none.
      dtype: ``float32`` or ``bfloat16``.
      lora: file of a LoRA; None for none.
      lora_scale: its strength.
      size: (height, width) in pixels; None is the model's own.
      conditions: SDXL's size conditions by name: ``original``, ``crop``, ``target``.
      init_latents: .npy file with the initial latents; None draws them from the seed.
      seed: seed of the initial latents.
      batch: largest number of images to draw at a time.
      how: solver, number of steps, guidance scale and kind of noise levels, as `Sampler` takes them.

    Attributes:
      fields: height, width and size conditions of the images, for their files.

    Raises:
      UserError: the model, the LoRA, the latents, the solver or a size cannot be used.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        *,
        model: str,
        revision: str,
        base: str,
        vae: str,
        unet: str,
        dtype: str,
        lora: Path | None,
        lora_scale: float,
        size: tuple[int | None, int | None],
        conditions: Mapping[str, Size],
        init_latents: Path | None,
        seed: int,
        batch: int,
        how: Mapping[str, Any],
    ):
        with stage(f"reading {model}"):
            replaced = {"base": base, "vae": vae, "unet": unet}
            pipeline = open_pipeline(model, revision=revision or None, dtype=jnp.dtype(dtype), **replaced)
        warn_of_cuts(pipeline, prompts)
        self._lora, scale = (None, 1.0) if lora is None else read_adapter(pipeline, lora)
        shape = pipeline.latent_shape_of(*size)
        options = _prompt_options(pipeline, shape, conditions)
        batch = min(batch, len(prompts))
        pixels = (shape[0] * pipeline.downscale, shape[1] * pipeline.downscale)
        check_pixels(f"--batch={batch}", batch, pixels)
        if init_latents:
            self._latents = LatentsFile(init_latents, len(prompts), shape)
        else:
            self._latents = functools.partial(latents_of, seed, shape=shape)
        self._sampler = Sampler(
            pipeline, lora_scale=scale * lora_scale, batch=batch, latent_shape=shape, prompt_options=options, **how
        )
        self._prompts = prompts
        self.fields = _size_fields(pixels, options)

    def batches(self) -> Iterator[Float[np.ndarray, "b H W 3"]]:
        """Yields the images, near [-1, 1] and not clipped, batch by batch."""
        return self._sampler.stream(self._prompts, self._latents, self._lora)


def warn_of_cuts(pipeline: Pipeline, prompts: Sequence[str]) -> None:
    """Logs what `cuts` says."""
    for warning in cuts(pipeline, prompts):
        logging.warning("%s", warning)


def cuts(pipeline: Pipeline, prompts: Sequence[str]) -> list[str]:
    """Says what the text encoders do not read of prompts that are too long, a line for each of the first few."""
    texts = list(dict.fromkeys(prompts))
    cut = [(text, end) for text, end in zip(texts, pipeline.cut_off(texts), strict=True) if end]
    limit = pipeline.token_shape[1]
    warnings = [
        f"prompt {excerpt(text)} is longer than {limit} tokens; cut off: {excerpt(end, 200)}"
        for text, end in cut[:_WARNINGS]
    ]
    if len(cut) > _WARNINGS:
        warnings.append(f"{counted(len(cut) - _WARNINGS, 'prompt')} more are longer than {limit} tokens")
    return warnings


def read_adapter(pipeline: Pipeline, lora: Path) -> tuple[Params, float]:
    """Reads the file of a LoRA; returns its tree and alpha / r.

    Raises:
      UserError: it is not a LoRA, or one of another model.
    """
    adapter = read_lora(lora, pipeline.params[pipeline.TRAINED])
    return jax.tree.map(jnp.asarray, adapter.tree), adapter.alpha / adapter.rank


def _prompt_options(
    pipeline: Pipeline, shape: tuple[int, int, int], conditions: Mapping[str, Size]
) -> dict[str, Any]:  # fmt: skip
    """Returns the pipeline's options for images of a latent shape, with size conditions."""
    try:
        return pipeline.prompt_options(shape, **conditions)
    except TypeError as error:  # the text encoding of this family has no such options
        raise UserError(f"{pipeline.folder} takes no size conditions ({', '.join(conditions)})") from error


def check_pixels(shown: str, batch: int, size: Size) -> None:
    """Refuses more pixels at a time than any device holds, before they are allocated.

    Args:
      shown: the number of images as the user gave it, for the message.
      batch: number of images at a time.
      size: (height, width) of an image.

    Raises:
      UserError: there are too many.
    """
    height, width = size
    if batch * height * width > MAX_PIXELS:
        fits = MAX_PIXELS // (height * width)
        raise UserError(f"{shown} images of {height}x{width} pixels at a time are too many: expected {fits} or fewer")


def _size_fields(pixels: Size, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sizes for a PNG's text fields."""
    fields = {"height": pixels[0], "width": pixels[1]}
    size = options.get("size")
    if size is None:
        return fields
    pairs = {"original_size": size.original, "crop": size.crop, "target_size": size.target}
    return fields | {name: "{}x{}".format(*pair) for name, pair in pairs.items()}
