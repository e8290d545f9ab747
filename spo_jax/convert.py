"""Writes a preference model as safetensors: ``python -m spo_jax.convert --spm=published.bin --out=exports/spm``.

The model may be anything that ``--config.spm.model`` accepts: a folder, a ``.bin`` or ``.safetensors`` file, a hub id,
or one file of a hub repository. Weights keep the names of the published checkpoints. Torch is not needed, and no pickle
is executed.
"""

import os
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from absl import flags

from spo_jax.core.cli import run_command
from spo_jax.core.errors import UserError
from spo_jax.core.files import check_writable
from spo_jax.rewards.common.preference_model import (
    load_spm,
    read_config,
    resolve_model,
    tokenizer_folder,
    trained_on_kind,
    write_spm,
)


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
    # Check the arguments, and read the model.
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} exists already: choose another --out")
    check_writable(out.absolute().parent)
    path = resolve_model(model)
    config, _ = read_config(path)
    known = trained_on_kind(path, config)
    if known and trained_on and known != trained_on:
        raise UserError(f"--trained-on={trained_on}: {path} says that it was trained on {known!r}")
    folder = tokenizer_folder(path, tokenizer or None, "--tokenizer")
    spm = load_spm(model, tokenizer=folder)
    params = jax.tree.map(np.asarray, spm.params)
    try:
        # Write to a temporary folder first, because a folder without its weights would be taken for a model.
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{out.name}.", dir=out.absolute().parent) as aside:
            write_spm(Path(aside) / "spm", spm.clip.config, params, folder, np.dtype(dtype), trained_on or known)
            (Path(aside) / "spm").rename(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    print(f"wrote {out}")


def run() -> None:
    """Runs the command."""
    spm = flags.DEFINE_string("spm", None, "Convert this preference model: folder, file, hub id, or 'toy'.")
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
