"""Draws pictures: ``python -m spo_jax.sample --model=embedded --lora=LORA.safetensors --prompt="a red star"``.

PNGs go to ``--out``, with prompt and settings in their text fields.
"""

from absl import flags

from spo_jax.core.cli import run_command


def run() -> None:
    """The command."""
    flags.DEFINE_string("model", "embedded", "Stable Diffusion folder, hub id, or 'embedded'.")
    flags.DEFINE_string("revision", "", "Revision of the hub id.")
    flags.DEFINE_string("lora", "", "LoRA file: of a run, diffusers' or kohya's.")
    flags.DEFINE_float("lora-scale", 1.0, "Strength of the LoRA.")
    flags.DEFINE_string("prompt", "", "What to draw.")
    flags.DEFINE_string("prompts", "", "Or a file of prompts: .txt, .json, .jsonl.")
    flags.DEFINE_integer("count", 1, "Pictures per prompt.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of the initial latents.")
    flags.DEFINE_integer("steps", 20, "DDIM steps.", lower_bound=1)
    flags.DEFINE_float("guidance", 5.0, "Classifier-free guidance scale.")
    flags.DEFINE_string("init-latents", "", "Initial latents instead of a seed: .npy, [b c h w], a row per picture.")
    flags.DEFINE_integer("batch", 8, "Pictures at a time.", lower_bound=1)
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of weights and activations.")
    flags.DEFINE_string("out", "samples", "Folder for the PNGs.")

    def main(_) -> None:
        from spo_jax.sampling import sample

        values = flags.FLAGS
        names = ("model", "revision", "lora", "lora-scale", "prompt", "prompts", "count", "seed", "steps", "guidance")
        names += ("init-latents", "batch", "dtype", "out")
        sample(**{name.replace("-", "_"): values[name].value for name in names})

    run_command(main)


if __name__ == "__main__":
    run()
