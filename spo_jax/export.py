"""Writes a run's LoRA for others: ``python -m spo_jax.export --run=runs/tiny --format=kohya --out=spo.safetensors``.

Formats: ``diffusers`` and ``kohya`` (web UIs) LoRA files; the whole model with the LoRA in its weights, as a pipeline
folder (``merged``) or as one checkpoint for the web UIs (``single-file``). ``--run`` is a run's folder (its last
checkpoint), one of its checkpoints, or a LoRA file.
"""

from absl import flags

from spo_jax.core.cli import run_command


def run() -> None:
    """The command."""
    source = flags.DEFINE_string("run", None, "Run folder, checkpoint folder, or LoRA file.")
    forms = ["diffusers", "kohya", "merged", "single-file"]
    form = flags.DEFINE_enum("format", "diffusers", forms, "What to write.")
    out = flags.DEFINE_string("out", None, "File ending in .safetensors, or folder for 'merged'.")
    model = flags.DEFINE_string("model", "", "Base model; taken from the run's settings where it has some.")
    revision = flags.DEFINE_string("revision", "", "Revision of the base model's hub id.")
    base = flags.DEFINE_string("base", "", "Folder or hub id that lends a single file its tokenizers and scheduler.")
    dtype = flags.DEFINE_enum("dtype", "float32", ["float32", "float16"], "Of the numbers in a 'single-file'.")
    overwrite = flags.DEFINE_bool("overwrite", False, "Replace the file, or the pipeline folder, at --out.")
    flags.mark_flags_as_required(["run", "out"])

    def main(_) -> None:
        from spo_jax.exporting import export

        lent = {"base": base.value, "dtype": dtype.value}
        export(source.value, form.value, out.value, model.value, revision.value, overwrite.value, **lent)

    run_command(main)


if __name__ == "__main__":
    run()
