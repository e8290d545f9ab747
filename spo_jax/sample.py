"""Draws pictures: ``python -m spo_jax.sample --model=embedded --lora=LORA.safetensors --prompt="a red star"``.

PNGs go to ``--out``, with prompt and settings in their text fields.
"""

import math

from absl import flags

from spo_jax.core.cli import run_command


def run() -> None:
    """The command."""
    flags.DEFINE_string("model", "embedded", "Stable Diffusion or SDXL: folder, hub id, single file, or 'embedded'.")
    flags.DEFINE_string("revision", "", "Revision of the hub id.")
    flags.DEFINE_string("base", "", "Folder or hub id that lends a single file its tokenizers and scheduler.")
    flags.DEFINE_string("vae", "", "Folder or hub id of an autoencoder instead of the model's own.")
    flags.DEFINE_string("lora", "", "LoRA file: of a run, diffusers' or kohya's.")
    flags.DEFINE_float("lora-scale", 1.0, "Strength of the LoRA.")
    flags.DEFINE_string("prompt", "", "What to draw.")
    flags.DEFINE_string("prompts", "", "Or a file of prompts: .txt, .json, .jsonl.")
    flags.DEFINE_integer("count", 1, "Pictures per prompt.", lower_bound=1)
    # Keys are made of 32 bits: a larger seed would be another one's.
    flags.DEFINE_integer("seed", 0, "Seed of the initial latents.", lower_bound=0, upper_bound=2**32 - 1)
    flags.DEFINE_enum("solver", "ddim", ["ddim", "euler", "dpm++"], "DDIM (eta 0), Euler, or DPM-Solver++ 2M.")
    flags.DEFINE_bool("karras", False, "Karras' noise levels, for euler and dpm++.")
    flags.DEFINE_integer("steps", 20, "Sampling steps.", lower_bound=1)
    flags.DEFINE_float("guidance", 5.0, "Classifier-free guidance scale.")
    flags.DEFINE_integer("height", None, "Of the pictures in pixels; the model's own by default.", lower_bound=1)
    flags.DEFINE_integer("width", None, "The same.", lower_bound=1)
    flags.DEFINE_string("original-size", "", "SDXL's size condition, HEIGHTxWIDTH; the pictures' size by default.")
    flags.DEFINE_string("crop", "", "SDXL's crop condition, TOPxLEFT; 0x0 by default.")
    flags.DEFINE_string("target-size", "", "SDXL's target size condition, HEIGHTxWIDTH; as --original-size.")
    flags.DEFINE_string("init-latents", "", "Initial latents instead of a seed: .npy, [b c h w], a row per picture.")
    flags.DEFINE_integer("batch", 8, "Pictures at a time.", lower_bound=1)
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of weights and activations.")
    flags.DEFINE_string("out", "samples", "Folder for the PNGs.")
    flags.DEFINE_bool("overwrite", False, "Replace PNGs of the same names in --out.")
    for name in ("guidance", "lora-scale"):
        flags.register_validator(name, math.isfinite, "expected a finite number")

    def main(_) -> None:
        from spo_jax.sampling import sample

        values = flags.FLAGS
        names = ("model", "revision", "base", "vae", "lora", "lora-scale", "prompt", "prompts", "count", "seed")
        names += ("solver", "karras", "steps", "guidance", "height", "width", "original-size", "crop", "target-size")
        names += ("init-latents", "batch", "dtype", "out", "overwrite")
        sample(**{name.replace("-", "_"): values[name].value for name in names})

    run_command(main)


if __name__ == "__main__":
    run()
