"""Draws images: ``python -m spo_jax.sample --model=toy --prompt="a red star" --count=8``.

Writes PNGs to ``--out``, with the prompt and the settings in their text fields, batch by batch, so that what is drawn
stays whatever happens later; and a contact sheet of them. No safety checker is applied.
"""

import functools
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from absl import flags, logging

from spo_jax import toy
from spo_jax.core.cli import callable_module, run_command
from spo_jax.core.drawing_limits import check_limits, check_prompt, checked_prompts, flag_bounds
from spo_jax.core.errors import UserError
from spo_jax.core.files import local_path
from spo_jax.core.memory import explaining_memory
from spo_jax.core.progress import stage
from spo_jax.core.words import counted, excerpt
from spo_jax.data.image_folder import ImageFolder
from spo_jax.data.image_writer import ImageWriter
from spo_jax.data.prompts import load_prompts
from spo_jax.diffusion import SOLVERS
from spo_jax.models import check_model
from spo_jax.toy.tokenizer import hint_at_vocabulary
from spo_jax.weights.lora import find_lora

MAX_IMAGES = 1_000_000
OUT = "samples"
_SIZE = "HEIGHTxWIDTH in pixels, such as 768x1024"
_WEB_UI_LORA = re.compile(r"<lora:[^<>]*>", re.IGNORECASE)


def sample(
    *,
    model: str = toy.NAME,
    prompt: str = "",
    prompts: str | os.PathLike | Sequence[str] = "",
    out: str | os.PathLike = OUT,
    lora: str = "",
    lora_scale: float = 1.0,
    revision: str = "",
    base: str = "",
    vae: str = "",
    unet: str = "",
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

    ``prompts`` may also be a list of prompts instead of a file.

    Returns:
      The files of the images, ordered by prompt and then by the number of the image.

    Raises:
      UserError: there is no prompt; or a model, LoRA, file, solver or size cannot be used; or images have values that
        are not finite, and then all others are written.
    """
    # Check everything that can be checked before the model is read.
    check_limits(count=count, seed=seed, steps=steps, height=height, width=width, batch=batch, guidance=guidance)
    sizes = _sizes({"original-size": original_size, "crop": crop, "target-size": target_size})
    if init_latents and not local_path(init_latents).is_file():
        raise UserError(f"cannot read initial latents from {init_latents}: expected a .npy file")
    folder = ImageFolder(out, overwrite)
    wanted = _repeated(_prompts(prompt, prompts), count)
    check_model(model, base, vae, unet)

    _hint_at_web_ui_syntax(wanted)
    if model == toy.NAME and (unknown := hint_at_vocabulary(wanted)):
        logging.warning("%s", unknown)
    lora_file = find_lora(lora) if lora else None

    # Read the model.
    with stage("importing JAX"):
        from spo_jax.models.drawing import Drawing

    how = {"steps": steps, "guidance": guidance, "solver": solver, "karras": karras}
    advice = functools.partial(_memory_advice, min(batch, len(wanted)), dtype)
    with explaining_memory(advice):
        drawing = Drawing(
            wanted, model=model, revision=revision, base=base, vae=vae, unet=unet, dtype=dtype, lora=lora_file,
            lora_scale=lora_scale, size=(height, width), conditions=sizes,
            init_latents=local_path(init_latents) if init_latents else None, seed=seed, batch=batch, how=how,
        )  # fmt: skip

    # Draw and write.
    settings = {"model": model, "lora": lora, "lora_scale": lora_scale, **how, **drawing.fields}
    settings |= {name: source for name, source in (("vae", vae), ("unet", unet)) if source}
    settings |= {"init_latents": init_latents} if init_latents else {"seed": seed}
    with explaining_memory(advice):
        return _written(ImageWriter(folder, wanted, settings, count), drawing.batches(), out)


def _written(images: ImageWriter, batches: Iterable, out: str | os.PathLike) -> list[Path]:
    """Writes images batch by batch; whatever ends that, what is written stays and is told."""
    try:
        images.write(batches)
    finally:
        images.finish(out)
    images.check_finite()
    return images.files


def _memory_advice(batch: int, dtype: str) -> str:
    """Says which flags to change if memory does not suffice."""
    lower = (["--batch"] if batch > 1 else []) + ["--height", "--width"]
    return f"lower {', '.join(lower)}" + (", or set --dtype=bfloat16" if dtype == "float32" else "")


def _repeated(prompts: list[str], count: int) -> list[str]:
    """Returns the prompt of every image."""
    if len(prompts) * count > MAX_IMAGES:
        raise UserError(
            f"--count={count} images of {counted(len(prompts), 'prompt')} are {len(prompts) * count}: "
            f"expected at most {MAX_IMAGES} in all"
        )
    return [text for text in prompts for _ in range(count)]


def _prompts(prompt: str, prompts: str | os.PathLike | Sequence[str]) -> list[str]:
    is_list = not isinstance(prompts, str | os.PathLike)
    if is_list:
        prompts = checked_prompts(prompts)
    if bool(prompt) == bool(prompts):
        raise UserError("give either --prompt=TEXT or --prompts=FILE")
    if not is_list:
        check_prompt(prompt)
        return [prompt] if prompt else load_prompts(prompts)
    return prompts


def _hint_at_web_ui_syntax(prompts: list[str]) -> None:
    """Says what to write in place of a web UI's ``<lora:NAME:STRENGTH>``, which is read as words here."""
    found = next(filter(None, map(_WEB_UI_LORA.search, prompts)), None)
    if found:
        logging.warning(
            "%s in a prompt is a syntax of web UIs, and read as plain words here: name the LoRA with --lora=FILE and "
            "its strength with --lora-scale",
            excerpt(found[0]),
        )


def _sizes(given: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Parses SDXL's sizes such as ``768x1024`` by the names of their flags; those that are not given are left out.

    Returns:
      (height, width), or (top, left), by what SDXL calls it: ``original``, ``crop`` and ``target``.
    """
    sizes = {}
    for flag, text in given.items():
        if not text:
            continue
        least, example = (0, "TOPxLEFT in pixels, such as 0x0") if flag == "crop" else (1, _SIZE)
        match = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", text)
        pair = tuple(map(int, match.groups())) if match else None
        if pair is None or min(pair) < least:
            raise UserError(f"--{flag}={text}: expected {example}")
        sizes[flag.removesuffix("-size")] = pair
    return sizes


# The command


def _models() -> dict[str, flags.FlagHolder]:
    """Defines what draws."""
    return {
        "model": flags.DEFINE_string("model", toy.NAME, "Draw with this model: folder, hub id, single file, or 'toy'."),
        "revision": flags.DEFINE_string("revision", "", "Use this revision of the hub id."),
        "base": flags.DEFINE_string(
            "base", "", "Take a single file's tokenizers and scheduler from this folder or hub id."
        ),
        "vae": flags.DEFINE_string("vae", "", "Use this autoencoder (folder or hub id) instead of the model's own."),
        "unet": flags.DEFINE_string(
            "unet", "", "Use this UNet (folder, hub id, or OWNER/NAME/FOLDER) instead of the model's own."
        ),
        "lora": flags.DEFINE_string(
            "lora",
            "",
            "Apply this LoRA: a file in our, diffusers' or kohya's format, a run's folder, or OWNER/NAME[/FILE].",
        ),
        "lora_scale": flags.DEFINE_float("lora-scale", 1.0, "Multiply the LoRA by this strength."),
        "dtype": flags.DEFINE_enum(
            "dtype", "float32", ["float32", "bfloat16"], "Compute weights and activations in this dtype."
        ),
    }


def _prompted() -> dict[str, flags.FlagHolder]:
    """Defines what is drawn, and where it is written."""
    return {
        "prompt": flags.DEFINE_string("prompt", "", "Draw this prompt."),
        "prompts": flags.DEFINE_string("prompts", "", "Draw the prompts of this file: .txt, .csv, .json or .jsonl."),
        "count": flags.DEFINE_integer("count", 1, "Draw this number of images per prompt.", **flag_bounds("count")),
        "seed": flags.DEFINE_integer("seed", 0, "Draw the initial latents from this seed.", **flag_bounds("seed")),
        "init_latents": flags.DEFINE_string(
            "init-latents", "", "Read the initial latents from this .npy file, [b c h w] with a row per image."
        ),
        "out": flags.DEFINE_string(
            "out", OUT, "Write the PNGs to this folder; names count on from the highest number in it."
        ),
        "overwrite": flags.DEFINE_bool(
            "overwrite", False, "Begin with 0000.png in any case, and replace PNGs with the same names in --out."
        ),
    }


def _drawing() -> dict[str, flags.FlagHolder]:
    """Defines how images are drawn."""
    return {
        "solver": flags.DEFINE_enum(
            "solver", "ddim", list(SOLVERS), "Sample with DDIM (eta 0), Euler or DPM-Solver++ 2M."
        ),
        "karras": flags.DEFINE_bool("karras", False, "Space noise levels as in Karras et al., with euler and dpm++."),
        "steps": flags.DEFINE_integer("steps", 20, "Take this number of sampling steps.", **flag_bounds("steps")),
        "guidance": flags.DEFINE_float("guidance", 5.0, "Use this classifier-free guidance scale."),
        "batch": flags.DEFINE_integer("batch", 8, "Draw this number of images at a time.", **flag_bounds("batch")),
        "height": flags.DEFINE_integer(
            "height",
            None,
            "Make images this high, in pixels (default: the model's own height).",
            **flag_bounds("height"),
        ),
        "width": flags.DEFINE_integer(
            "width", None, "Make images this wide, in pixels (default: the model's own width).", **flag_bounds("width")
        ),
        "original_size": flags.DEFINE_string(
            "original-size", "", "Set SDXL's original size, HEIGHTxWIDTH (default: the images' size)."
        ),
        "crop": flags.DEFINE_string("crop", "", "Set SDXL's crop, TOPxLEFT (default: 0x0)."),
        "target_size": flags.DEFINE_string(
            "target-size", "", "Set SDXL's target size, HEIGHTxWIDTH (default: the images' size)."
        ),
    }


def run() -> None:
    """Runs the command."""
    named = _models() | _prompted() | _drawing()
    for name in ("guidance", "lora-scale"):
        flags.register_validator(name, math.isfinite, "expected a finite number")

    def main(_) -> None:
        sample(**{name: flag.value for name, flag in named.items()})

    run_command(main)


callable_module(__name__, sample)

if __name__ == "__main__":
    sys.exit(run())
