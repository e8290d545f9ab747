"""Checks of what is exported and where to, which need neither jax nor the network."""

import re
from pathlib import Path

from spo_jax.core.errors import UserError
from spo_jax.core.files import check_free, check_writable
from spo_jax.core.run_files import CHECKPOINTS, no_such_run, run_of
from spo_jax.models import check_folder
from spo_jax.weights.kinds import AUTOENCODER, CHECKPOINT, CLIP, NETWORK, describe
from spo_jax.weights.lora import LORA_FORMATS

FORMATS = (*LORA_FORMATS, "merged", "single-file")
STRENGTHS_SHEET, STRENGTHS_TABLE = "strengths.png", "strengths.json"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


def check_source(source: Path) -> None:
    """Raises a `UserError` if there is neither a run nor a LoRA at ``source``, as far as that shows without jax."""
    if source.is_file():
        what = describe(source)
        if what in (CHECKPOINT, CLIP, AUTOENCODER, NETWORK):
            raise UserError(f"--run={source} is {what}: expected a run, one of its checkpoints, or a LoRA file")
        return
    run, _ = run_of(source)
    if not run.exists():
        raise UserError(no_such_run(run))
    if not (run / CHECKPOINTS).is_dir():
        what = f", this is {describe(source)}" if source.is_dir() else ""
        expected = "expected a folder with checkpoints/, one of its checkpoints, or a LoRA file"
        raise UserError(f"--run={source}: no run here{what} ({expected})")


def check_out(out: Path, form: str, overwrite: bool) -> None:
    """Raises a `UserError` if ``out`` cannot be written, before the minutes that reading a model may take."""
    check_writable(out.parent)
    if form == "merged":
        if out.suffix == ".safetensors":
            raise UserError(f"--out={out}: 'merged' is a folder; --format=single-file writes one file")
        check_folder(out, overwrite)
        return
    if out.suffix != ".safetensors":
        kind = "checkpoint" if form == "single-file" else "LoRA file"
        raise UserError(f"--out={out}: the name of a {kind} has to end in .safetensors, or nothing will read it")
    check_free(out, overwrite)
    if form == "kohya":
        check_free(out.with_name(f"{out.stem}.preview.png"), overwrite)


def check_card_folder(out: Path, overwrite: bool) -> None:
    """Raises a `UserError` if a card must not or cannot be written to a folder; an empty one is free."""
    check_writable(out)
    check_free(out, overwrite or (out.is_dir() and not any(out.iterdir())))


def check_comparison_folder(out: Path, overwrite: bool) -> None:
    """Raises a `UserError` if the files of a comparison of strengths must not or cannot be written to a folder."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file: --scales writes a folder")
    check_writable(out)
    for name in (STRENGTHS_SHEET, STRENGTHS_TABLE):
        check_free(out / name, overwrite)


def checked_name(name: str, otherwise: str) -> str:
    """Returns the name of a LoRA, by which prompts of the web UIs call it.

    Args:
      name: the name that the user gave; empty for none.
      otherwise: the name of the folder or the repository, from which one is made.

    Raises:
      UserError: a prompt cannot hold the given name.
    """
    if name and not _NAME.fullmatch(name):
        raise UserError(
            f"--name={name}: expected letters, digits, -, _ and . only, because prompts call the LoRA by it"
        )
    return name or re.sub(r"[^A-Za-z0-9_.-]+", "-", otherwise).strip("-._") or "lora"
