"""From a model, an adapter and prompts to PNG files."""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, PngImagePlugin

from spo_jax.core.errors import UserError
from spo_jax.core.files import check_free, check_writable, write_atomic
from spo_jax.core.images import to_uint8
from spo_jax.core.typing import Float, Params
from spo_jax.data.prompts import load_prompts
from spo_jax.models.sampler import Sampler, initial_latents, read_latents, shape_of_latents
from spo_jax.models.stable_diffusion.functions import SizeConditions
from spo_jax.models.stable_diffusion.pipeline import Pipeline, load_pipeline
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
    base: str = "",
    vae: str = "",
    count: int = 1,
    seed: int = 0,
    solver: str = "ddim",
    karras: bool = False,
    steps: int = 20,
    guidance: float = 5.0,
    height: int | None = None,
    width: int | None = None,
    original_size: str = "",
    crop: str = "",
    target_size: str = "",
    init_latents: str = "",
    batch: int = 8,
    dtype: str = "float32",
    overwrite: bool = False,
) -> list[Path]:
    """Draws pictures and writes a PNG each; see the flags of `spo_jax.sample`.

    Returns:
      The files, in the order of prompts and counts.

    Raises:
      UserError: no prompt; a model, adapter, file, solver or size that cannot be used; a picture is there already, or
        comes out as numbers that are not finite.
    """
    asked = _asked_sizes(original_size, crop, target_size)
    check_writable(out)
    wanted = [text for text in _prompts(prompt, prompts) for _ in range(count)]
    files = [Path(out) / f"{index:04d}.png" for index in range(len(wanted))]
    for path in files:
        check_free(path, overwrite)
    pipeline = load_pipeline(model, revision=revision or None, base=base, vae=vae, dtype=jnp.dtype(dtype))
    adapter, scale = _adapter(pipeline, lora)
    shape = shape_of_latents(pipeline, height, width)
    size = _size_conditions(pipeline, shape, asked)
    latents = _initial(init_latents, seed, len(wanted), shape)
    how = {"steps": steps, "guidance": guidance, "solver": solver, "karras": karras}
    batch = min(batch, len(wanted))
    sampler = Sampler(pipeline, lora_scale=scale * lora_scale, batch=batch, latent_shape=shape, size=size, **how)
    images = sampler(wanted, latents, adapter)
    _check_finite(images, model, guidance)
    settings = {"model": model, "lora": lora, "lora_scale": lora_scale, **how, **_told(images, size)}
    settings |= {"vae": vae} if vae else {}
    settings |= {"init_latents": init_latents} if init_latents else {"seed": seed}
    for index, (path, text, image) in enumerate(zip(files, wanted, to_uint8(images), strict=True)):
        _write_png(path, image, {"prompt": text, "index": index, **settings})
    print(f"wrote {len(files)} pictures to {out}")
    return files


def _prompts(prompt: str, prompts: str) -> list[str]:
    if bool(prompt) == bool(prompts):
        raise UserError("give one of --prompt=TEXT and --prompts=FILE")
    return [prompt] if prompt else load_prompts(prompts)


def _initial(
    init_latents: str, seed: int, count: int, shape: tuple[int, int, int]
) -> Float[np.ndarray, "b h w c"]:  # fmt: skip
    """From the file if there is one, else from the seed."""
    if not init_latents:
        return initial_latents(seed, count, shape)
    latents = read_latents(init_latents, shape)
    if len(latents) != count:
        raise UserError(f"--init-latents={init_latents} holds {len(latents)} rows for {count} pictures")
    return latents


def _asked_sizes(original: str, crop: str, target: str) -> dict[str, tuple[int, int]]:
    """What the flags say of SDXL's size conditions, by flag; ``768x1024`` as numbers."""
    given, asked = {"--original-size": original, "--crop": crop, "--target-size": target}, {}
    for flag, text in given.items():
        least, meaning = 0, "TOPxLEFT in pixels, such as 0x0"
        if flag != "--crop":
            least, meaning = 1, "HEIGHTxWIDTH in pixels, such as 768x1024"
        match = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", text)
        pair = tuple(map(int, match.groups())) if match else None
        if text and (pair is None or min(pair) < least):
            raise UserError(f"{flag}={text}: expected {meaning}")
        if pair:
            asked[flag] = pair
    return asked


def _size_conditions(
    pipeline: Pipeline, shape: tuple[int, int, int], asked: Mapping[str, tuple[int, int]]
) -> SizeConditions | None:
    """What is not asked for is the pictures' size, uncropped."""
    if pipeline.kind != "sdxl":
        if asked:
            raise UserError(f"{next(iter(asked))}: {pipeline.folder} takes no size conditions, only SDXL models do")
        return None
    fields = {flag.removeprefix("--").removesuffix("-size"): pair for flag, pair in asked.items()}
    return dataclasses.replace(SizeConditions.uncropped(pipeline.pixels(shape)), **fields)


def _check_finite(images: Float[np.ndarray, "b H W 3"], model: str, guidance: float) -> None:
    if not np.isfinite(images).all():  # they would become black pixels
        raise UserError(
            f"pictures of --model={model} with --guidance={guidance} are not finite numbers: check the guidance, the "
            "LoRA and its strength, and try --dtype=float32"
        )


def _told(images: Float[np.ndarray, "b H W 3"], size: SizeConditions | None) -> dict[str, Any]:
    """Sizes as a PNG's text fields hold them."""
    told = {"height": images.shape[1], "width": images.shape[2]}
    if size is None:
        return told
    pairs = {"original_size": size.original, "crop": size.crop, "target_size": size.target}
    return told | {name: "{}x{}".format(*pair) for name, pair in pairs.items()}


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
