"""From a preference model in any form that is read to a folder of safetensors."""

import os
import tempfile
from pathlib import Path

import jax
import numpy as np

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
      model: as `spo_jax.rewards.common.preference_model.load_spm` takes it.
      out: folder that is not there yet.
      tokenizer: folder or hub id, where the model holds none.
      dtype: of the weights, ``float16`` or ``float32``.
      trained_on: ``sd`` or ``sdxl``; empty is what the model tells.

    Raises:
      UserError: the model cannot be read, ``out`` is taken or cannot be written, a weight does not fit float16, or the
        model tells of another kind than ``trained_on``.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} is there already: choose another --out")
    check_writable(out.absolute().parent)
    path = resolve_model(model)
    config, _ = read_config(path)
    told = trained_on_kind(path, config)
    if told and trained_on and told != trained_on:
        raise UserError(f"--trained-on={trained_on}: {path} tells that it was trained on {told!r}")
    folder = tokenizer_folder(path, tokenizer or None, "--tokenizer")
    spm = load_spm(model, tokenizer=folder)
    params = jax.tree.map(np.asarray, spm.params)
    try:
        # Aside first: a folder without its weights would be taken for a model.
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{out.name}.", dir=out.absolute().parent) as aside:
            write_spm(Path(aside) / "spm", spm.clip.config, params, folder, np.dtype(dtype), trained_on or told)
            (Path(aside) / "spm").rename(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    print(f"wrote {out}")
