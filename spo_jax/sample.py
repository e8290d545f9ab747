"""Draws images: ``python -m spo_jax.sample --model=toy --lora=LORA.safetensors --prompt="a red star"``.

Writes PNGs to ``--out``, with the prompt and the settings in their text fields. No safety checker is applied.
"""

import math
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image, PngImagePlugin

from spo_jax import toy
from spo_jax.core.cli import callable_module, run_command
from spo_jax.core.config import SEED_LIMIT
from spo_jax.core.errors import UserError
from spo_jax.core.files import check_free, check_writable, write_atomic
from spo_jax.core.images import to_uint8
from spo_jax.core.typing import Float, Params
from spo_jax.data.prompts import load_prompts
from spo_jax.diffusion.steps import SOLVERS
from spo_jax.models import open_pipeline
from spo_jax.models.base import Pipeline
from spo_jax.models.lora import read_lora
from spo_jax.models.sampler import Sampler, initial_latents, read_latents


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
    """Draws images and writes a PNG for each; ``python -m spo_jax.sample --help`` explains the arguments.

    Returns:
      The files, ordered by prompt and then by the number of the image.

    Raises:
      UserError: there is no prompt; or a model, LoRA, file, solver or size cannot be used; or a file exists already; or
        an image has values that are not finite.
    """
    # Check everything that can be checked before the model is read.
    sizes = {
        "original": _size_pair("--original-size", original_size, 1, "HEIGHTxWIDTH in pixels, such as 768x1024"),
        "crop": _size_pair("--crop", crop, 0, "TOPxLEFT in pixels, such as 0x0"),
        "target": _size_pair("--target-size", target_size, 1, "HEIGHTxWIDTH in pixels, such as 768x1024"),
    }
    check_writable(out)
    wanted = [text for text in _prompts(prompt, prompts) for _ in range(count)]
    files = [Path(out) / f"{index:04d}.png" for index in range(len(wanted))]
    for path in files:
        check_free(path, overwrite)

    # Read the model, and draw.
    pipeline = open_pipeline(model, revision=revision or None, base=base, vae=vae, dtype=jnp.dtype(dtype))
    adapter, scale = _adapter(pipeline, lora)
    shape = pipeline.latent_shape_of(height, width)
    options = _prompt_options(pipeline, shape, sizes)
    latents = _initial(init_latents, seed, len(wanted), shape)
    how = {"steps": steps, "guidance": guidance, "solver": solver, "karras": karras}
    sampler = Sampler(
        pipeline,
        lora_scale=scale * lora_scale,
        batch=min(batch, len(wanted)),
        latent_shape=shape,
        prompt_options=options,
        **how,
    )
    images = sampler(wanted, latents, adapter)
    _check_finite(images, model, guidance)

    # Write the files.
    settings = {"model": model, "lora": lora, "lora_scale": lora_scale, **how, **_size_fields(images, options)}
    settings |= {"vae": vae} if vae else {}
    settings |= {"init_latents": init_latents} if init_latents else {"seed": seed}
    for index, (path, text, image) in enumerate(zip(files, wanted, to_uint8(images), strict=True)):
        _write_png(path, image, {"prompt": text, "index": index, **settings})
    print(f"wrote {len(files)} images to {out}")
    return files


def _prompts(prompt: str, prompts: str) -> list[str]:
    if bool(prompt) == bool(prompts):
        raise UserError("give either --prompt=TEXT or --prompts=FILE")
    return [prompt] if prompt else load_prompts(prompts)


def _initial(init_latents: str, seed: int, count: int, shape: tuple[int, int, int]) -> Float[np.ndarray, "b h w c"]:
    """Returns the initial latents from the file if there is one, otherwise from the seed."""
    if not init_latents:
        return initial_latents(seed, count, shape)
    latents = read_latents(init_latents, shape)
    if len(latents) != count:
        raise UserError(f"--init-latents={init_latents} holds {len(latents)} rows for {count} images")
    return latents


def _size_pair(flag: str, text: str, least: int, expected: str) -> tuple[int, int] | None:
    """Parses a size such as ``768x1024``; returns None if the flag is not given."""
    if not text:
        return None
    match = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", text)
    pair = tuple(map(int, match.groups())) if match else None
    if pair is None or min(pair) < least:
        raise UserError(f"{flag}={text}: expected {expected}")
    return pair


def _prompt_options(
    pipeline: Pipeline, shape: tuple[int, int, int], sizes: Mapping[str, tuple[int, int] | None]
) -> dict[str, Any]:
    """Returns the pipeline's options for images of a latent shape, with the size conditions of the flags."""
    given = {name: pair for name, pair in sizes.items() if pair is not None}
    try:
        return pipeline.prompt_options(shape, **given)
    except TypeError as error:  # the text encoding of this family has no such options
        raise UserError(f"{pipeline.folder} takes no size conditions ({', '.join(given)})") from error


def _check_finite(images: Float[np.ndarray, "b H W 3"], model: str, guidance: float) -> None:
    if not np.isfinite(images).all():  # they would become black pixels
        raise UserError(
            f"images of --model={model} with --guidance={guidance} have values that are not finite: check the "
            "guidance, the LoRA and its strength, and try --dtype=float32"
        )


def _size_fields(images: Float[np.ndarray, "b H W 3"], options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sizes for a PNG's text fields."""
    fields = {"height": images.shape[1], "width": images.shape[2]}
    size = options.get("size")
    if size is None:
        return fields
    pairs = {"original_size": size.original, "crop": size.crop, "target_size": size.target}
    return fields | {name: "{}x{}".format(*pair) for name, pair in pairs.items()}


def _adapter(pipeline: Pipeline, lora: str) -> tuple[Params | None, float]:
    """Reads the adapter; returns its tree and alpha / r, or None and 1 without an adapter."""
    if not lora:
        return None, 1.0
    adapter = read_lora(lora, pipeline.params[pipeline.TRAINED])
    return jax.tree.map(jnp.asarray, adapter.tree), adapter.alpha / adapter.rank


def _write_png(path: Path, image: np.ndarray, settings: Mapping[str, Any]) -> None:
    info = PngImagePlugin.PngInfo()
    for key, value in settings.items():
        info.add_itxt(key, str(value))
    write_atomic(path, lambda temporary: Image.fromarray(image).save(temporary, pnginfo=info))


# The command


def run() -> None:
    """Runs the command."""
    named = {
        "model": flags.DEFINE_string("model", toy.NAME, "Draw with this model: folder, hub id, single file, or 'toy'."),
        "revision": flags.DEFINE_string("revision", "", "Use this revision of the hub id."),
        "base": flags.DEFINE_string(
            "base", "", "Take a single file's tokenizers and scheduler from this folder or hub id."
        ),
        "vae": flags.DEFINE_string("vae", "", "Use this autoencoder (folder or hub id) instead of the model's own."),
        "lora": flags.DEFINE_string("lora", "", "Apply this LoRA file, in our, diffusers' or kohya's format."),
        "lora_scale": flags.DEFINE_float("lora-scale", 1.0, "Multiply the LoRA by this strength."),
        "prompt": flags.DEFINE_string("prompt", "", "Draw this prompt."),
        "prompts": flags.DEFINE_string("prompts", "", "Draw the prompts of this file: .txt, .json or .jsonl."),
        "count": flags.DEFINE_integer("count", 1, "Draw this number of images per prompt.", lower_bound=1),
        "seed": flags.DEFINE_integer(
            "seed", 0, "Draw the initial latents from this seed.", lower_bound=0, upper_bound=SEED_LIMIT - 1
        ),
        "solver": flags.DEFINE_enum(
            "solver", "ddim", list(SOLVERS), "Sample with DDIM (eta 0), Euler or DPM-Solver++ 2M."
        ),
        "karras": flags.DEFINE_bool("karras", False, "Space noise levels as in Karras et al., with euler and dpm++."),
        "steps": flags.DEFINE_integer("steps", 20, "Take this number of sampling steps.", lower_bound=1),
        "guidance": flags.DEFINE_float("guidance", 5.0, "Use this classifier-free guidance scale."),
        "height": flags.DEFINE_integer(
            "height", None, "Make images this high, in pixels (default: the model's own height).", lower_bound=1
        ),
        "width": flags.DEFINE_integer(
            "width", None, "Make images this wide, in pixels (default: the model's own width).", lower_bound=1
        ),
        "original_size": flags.DEFINE_string(
            "original-size", "", "Set SDXL's original size, HEIGHTxWIDTH (default: the images' size)."
        ),
        "crop": flags.DEFINE_string("crop", "", "Set SDXL's crop, TOPxLEFT (default: 0x0)."),
        "target_size": flags.DEFINE_string(
            "target-size", "", "Set SDXL's target size, HEIGHTxWIDTH (default: the images' size)."
        ),
        "init_latents": flags.DEFINE_string(
            "init-latents", "", "Read the initial latents from this .npy file, [b c h w] with a row per image."
        ),
        "batch": flags.DEFINE_integer("batch", 8, "Draw this number of images at a time.", lower_bound=1),
        "dtype": flags.DEFINE_enum(
            "dtype", "float32", ["float32", "bfloat16"], "Compute weights and activations in this dtype."
        ),
        "out": flags.DEFINE_string("out", "samples", "Write the PNGs to this folder."),
        "overwrite": flags.DEFINE_bool("overwrite", False, "Replace PNGs with the same names in --out."),
    }
    for name in ("guidance", "lora-scale"):
        flags.register_validator(name, math.isfinite, "expected a finite number")

    def main(_) -> None:
        sample(**{name: flag.value for name, flag in named.items()})

    run_command(main)


callable_module(__name__, sample)

if __name__ == "__main__":
    sys.exit(run())
