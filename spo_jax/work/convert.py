"""The work of `spo_jax.convert`: reads a preference model and writes it as safetensors."""

import tempfile
from pathlib import Path

import jax
import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.progress import stage
from spo_jax.rewards.common.preference_files import read_config, resolve_model, tokenizer_folder, trained_on_kind
from spo_jax.rewards.common.preference_model import load_spm, write_spm


def convert_spm(model: str, out: Path, tokenizer: str, dtype: str, trained_on: str) -> None:
    """Writes the model, after `spo_jax.convert.convert_spm` has checked what it can without jax.

    Args:
      model: as in `spo_jax.convert.convert_spm`, like all arguments.

    Raises:
      UserError: as `spo_jax.convert.convert_spm`.
    """
    path = resolve_model(model)
    config, _ = read_config(path)
    known = trained_on_kind(path, config)
    if known and trained_on and known != trained_on:
        raise UserError(f"--trained-on={trained_on}: {path} says that it was trained on {known!r}")
    folder = tokenizer_folder(path, tokenizer or None, "--tokenizer")
    with stage(f"reading {model}"):
        spm = load_spm(model, tokenizer=folder)
        params = jax.tree.map(np.asarray, spm.params)
    try:
        # Write to a temporary folder first, because a folder without its weights would be taken for a model.
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(prefix=f"{out.name}.", dir=out.absolute().parent)
        with stage(f"writing {out}"), beside as aside:
            write_spm(Path(aside) / "spm", spm.clip.config, params, folder, np.dtype(dtype), trained_on or known)
            (Path(aside) / "spm").rename(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
