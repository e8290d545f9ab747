"""Writes a preference model as safetensors: ``python -m spo_jax.convert --spm=toy --out=exports/spm``.

The model may be anything that ``--config.spm.model`` accepts: a folder, a ``.bin`` or ``.safetensors`` file, a hub id,
or one file of a hub repository. Weights keep the names of the published checkpoints. Torch is not needed, and no pickle
is executed.
"""

import os
import sys

from absl import flags

from spo_jax.core.cli import printing, run_command
from spo_jax.core.errors import UserError
from spo_jax.core.files import check_writable, local_path
from spo_jax.core.progress import stage
from spo_jax.rewards.common.preference_files import check_files


def convert_spm(
    model: str, out: str | os.PathLike, tokenizer: str = "", dtype: str = "float16", trained_on: str = ""
) -> None:
    """Writes ``config.json``, ``model.safetensors`` and the tokenizer of a preference model.

    Args:
      model: the preference model, as `spo_jax.rewards.common.preference_model.load_spm` takes it.
      out: folder to write, which must not exist yet.
      tokenizer: folder or hub id of the tokenizer, if the model holds none.
      dtype: dtype of the weights, ``float16`` or ``float32``.
      trained_on: kind of pipeline whose images the model was trained on, ``sd`` or ``sdxl``; if empty, what the model
        itself says.

    Raises:
      UserError: the model cannot be read, ``out`` exists or cannot be written, a weight does not fit in float16, or the
        model says that it was trained on another kind than ``trained_on``.
    """
    out = local_path(out)
    if out.exists():
        raise UserError(f"{out} exists already: choose another --out")
    check_writable(out.absolute().parent)
    check_files(model, tokenizer, "--tokenizer")
    # Imported here because it takes seconds, and the mistakes above are found in one.
    with stage("importing JAX"):
        from spo_jax.work import convert as work

    work.convert_spm(model, out, tokenizer, dtype, trained_on)
    with printing():
        print(f"wrote {out}")


def run() -> None:
    """Runs the command."""
    spm = flags.DEFINE_string(
        "spm", None, "Convert this preference model: folder, file, hub id, 'toy' or 'toy_people'."
    )
    out = flags.DEFINE_string("out", None, "Write config, weights and tokenizer to this folder.")
    tokenizer = flags.DEFINE_string(
        "tokenizer", "", "Take the tokenizer from this folder or hub id, if --spm has none."
    )
    dtype = flags.DEFINE_enum("dtype", "float16", ["float16", "float32"], "Write the weights in this dtype.")
    kinds = ["", "sd", "sdxl"]
    trained_on = flags.DEFINE_enum(
        "trained-on", "", kinds, "Record this kind of pipeline as the one it judges (default: what --spm says)."
    )
    flags.mark_flags_as_required(["spm", "out"])

    def main(_) -> None:
        convert_spm(spm.value, out.value, tokenizer.value, dtype.value, trained_on.value)

    run_command(main)


if __name__ == "__main__":
    sys.exit(run())
