"""Checks of what is exported and where to, which need neither jax nor the network."""

import math
import re
from collections.abc import Iterable, Sequence
from numbers import Real
from pathlib import Path

from spo_jax.core.errors import UserError
from spo_jax.core.files import check_free, check_writable
from spo_jax.core.run_files import CHECKPOINTS, no_such_run, run_of
from spo_jax.models import check_folder
from spo_jax.weights.kinds import AUTOENCODER, CHECKPOINT, CLIP, NETWORK, describe
from spo_jax.weights.lora import LORA_FORMATS

FORMATS = (*LORA_FORMATS, "merged", "single-file")
STRENGTHS_SHEET, STRENGTHS_TABLE = "strengths.png", "strengths.json"
_MAX_SCALE = 100.0  # what is beyond it is a slip
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


def check_scale(scale: float | int, flag: str = "scale") -> None:
    """Raises a `UserError` unless ``scale`` is a strength that does something and is no slip."""
    if not (isinstance(scale, Real) and math.isfinite(scale) and 0 < abs(scale) <= _MAX_SCALE):
        shown = f"{scale:g}" if isinstance(scale, Real) else repr(scale)
        raise UserError(f"--{flag}={shown}: expected a strength other than 0, of at most {_MAX_SCALE:g}")


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


def checked_scales(scales: str | Sequence[float | int]) -> list[float]:
    """Returns the strengths that are compared with 0, in order.

    Args:
      scales: numbers, or a text with numbers between commas.

    Raises:
      UserError: there is none, or one is not a number that makes sense.
    """
    if isinstance(scales, str):
        scales = _numbers(scales)
    elif not isinstance(scales, Iterable):
        raise UserError(f"--scales={scales!r}: expected a list of strengths, such as [0.5, 0.75, 1]")
    wanted = [scale for scale in scales if not (isinstance(scale, Real) and scale == 0)]
    if not wanted:
        raise UserError("--scales: expected strengths other than 0, such as --scales=0.5,0.75,1")
    for scale in wanted:
        check_scale(scale, "scales")
    return sorted(set(map(float, wanted)))


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--scales={text}: expected numbers separated by commas, such as 0.5,0.75,1") from error


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
