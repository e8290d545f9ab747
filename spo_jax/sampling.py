"""From a model, an adapter and prompts to PNG files."""

import os
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, PngImagePlugin

from spo_jax.core.errors import UserError
from spo_jax.core.files import check_free, check_writable, write_atomic
from spo_jax.core.images import to_uint8
from spo_jax.core.typing import Params
from spo_jax.data.prompts import load_prompts
from spo_jax.pipeline.build import Pipeline, load_pipeline
from spo_jax.pipeline.sample import Sampler, initial_latents, read_latents
from spo_jax.weights.lora import read_lora


def sample(
    *,
    model: str,
    prompt: str = "",
    prompts: str = "",
    out: str | os.PathLike,
    lora: str = "",
    lora_scale: float = 1.0,
    revision: str = "",
    count: int = 1,
    seed: int = 0,
    steps: int = 20,
    guidance: float = 5.0,
    init_latents: str = "",
    batch: int = 8,
    dtype: str = "float32",
    overwrite: bool = False,
) -> list[Path]:
    """Draws pictures with DDIM (eta 0) and writes a PNG each; see the flags of `spo_jax.sample`.

    Returns:
      The files, in the order of prompts and counts.

    Raises:
      UserError: no prompt; a model, adapter or file that cannot be used; a picture is there already, or comes out as
        numbers that are not finite.
    """
    check_writable(out)
    wanted = [text for text in _prompts(prompt, prompts) for _ in range(count)]
    files = [Path(out) / f"{index:04d}.png" for index in range(len(wanted))]
    for path in files:
        check_free(path, overwrite)
    pipeline = load_pipeline(model, revision=revision or None, dtype=jnp.dtype(dtype))
    adapter, scale = _adapter(pipeline, lora)
    latents = initial_latents(seed, len(wanted), pipeline.latent_shape)
    if init_latents:
        latents = read_latents(init_latents, pipeline.latent_shape)
        if len(latents) != len(wanted):
            raise UserError(f"--init-latents={init_latents} holds {len(latents)} rows for {len(wanted)} pictures")
    batch = min(batch, len(wanted))
    sampler = Sampler(pipeline, steps=steps, guidance=guidance, lora_scale=scale * lora_scale, batch=batch)
    images = sampler(wanted, latents, adapter)
    if not np.isfinite(images).all():  # they would become black pixels
        raise UserError(
            f"pictures of --model={model} with --guidance={guidance} are not finite numbers: check the guidance, the "
            "LoRA and its strength, and try --dtype=float32"
        )
    settings = {"model": model, "lora": lora, "lora_scale": lora_scale, "steps": steps, "guidance": guidance}
    settings |= {"init_latents": init_latents} if init_latents else {"seed": seed}
    for index, (path, text, image) in enumerate(zip(files, wanted, to_uint8(images), strict=True)):
        _write_png(path, image, {"prompt": text, "index": index, **settings})
    print(f"wrote {len(files)} pictures to {out}")
    return files


def _prompts(prompt: str, prompts: str) -> list[str]:
    if bool(prompt) == bool(prompts):
        raise UserError("give one of --prompt=TEXT and --prompts=FILE")
    return [prompt] if prompt else load_prompts(prompts)


def _adapter(pipeline: Pipeline, lora: str) -> tuple[Params | None, float]:
    """The adapter's tree and alpha / r."""
    if not lora:
        return None, 1.0
    adapter = read_lora(lora, pipeline.params["unet"])
    return jax.tree.map(jnp.asarray, adapter.tree), adapter.alpha / adapter.rank


def _write_png(path: Path, image: np.ndarray, settings: Mapping) -> None:
    info = PngImagePlugin.PngInfo()
    for key, value in settings.items():
        info.add_itxt(key, str(value))
    write_atomic(path, lambda temporary: Image.fromarray(image).save(temporary, pnginfo=info))
