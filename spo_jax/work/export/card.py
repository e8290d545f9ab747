"""The folder of a LoRA for the hub: its page, both LoRA files, and images."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.files import write_text
from spo_jax.core.images import write_png
from spo_jax.core.progress import stage
from spo_jax.data.contact_sheet import labelled_grid
from spo_jax.models.lora import write_lora
from spo_jax.run.report.images import ImagePair
from spo_jax.weights.kinds import DIFFUSERS_LORA
from spo_jax.work.export.files import write_kohya
from spo_jax.work.export.page import Naming, page
from spo_jax.work.export.source import Source

PAGE = "README.md"
SHEET = "before_after.png"
_SHOWN = 8  # pairs on the sheet, and images in the gallery


def write_card(source: Source, out: Path, naming: Naming) -> list[str]:
    """Writes the folder, completely or, if it is a new one, not at all.

    In a folder that exists, files of the same names are replaced and others are left alone.

    Args:
      source: the LoRA.
      out: the folder.
      naming: how the LoRA is called, whose it is and where it goes.

    Returns:
      The names of the files in the folder, sorted.

    Raises:
      UserError: the folder cannot be written, or what the run says cannot be read.
    """
    temporary = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        folder = temporary / "card"
        folder.mkdir()
        with stage(f"writing {out}"):
            _write(source, folder, naming)
            names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
            _move(folder, out, names)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return names


def _move(folder: Path, out: Path, names: Sequence[str]) -> None:
    if not out.exists():
        os.replace(folder, out)
        return
    # The page comes last: it names the other files.
    for name in sorted(names, key=lambda name: name == PAGE):
        (out / name).parent.mkdir(exist_ok=True)
        os.replace(folder / name, out / name)


def _write(source: Source, folder: Path, naming: Naming) -> None:
    write_lora(folder / DIFFUSERS_LORA, source.lora, "diffusers")
    write_kohya(source, folder / f"{naming.name}.safetensors", naming.author, naming.licence)
    pairs = (source.record.pairs() if source.record else [])[:_SHOWN]
    gallery = {}
    for number, pair in enumerate(pairs):
        file = f"images/{number:02d}.png"
        write_png(folder / file, pair.after)
        gallery[file] = pair.prompt
    if pairs:
        write_png(folder / SHEET, before_after(pairs))
    write_text(folder / PAGE, page(source, naming, gallery, SHEET if pairs else ""))


def before_after(pairs: Sequence[ImagePair]) -> np.ndarray:
    """Lays out pairs of images in two rows, with their prompts above: those of the base model, and those after."""
    rows = [("base model", [pair.before for pair in pairs]), ("with this LoRA", [pair.after for pair in pairs])]
    return labelled_grid(rows, [pair.prompt for pair in pairs])
