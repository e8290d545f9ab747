"""Lays images out as other benchmarks expect them, with the command of theirs that scores them.

Their judges are detectors and large vision-language models in torch, which do not live here.
"""

import dataclasses
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spo_jax.core.errors import UserError
from spo_jax.core.files import local_path, write_atomic, write_text
from spo_jax.data.prompts import TOY, parse_entries
from spo_jax.work.evaluate.benchmarks import LAYOUTS, Drawn
from spo_jax.work.evaluate.result import Evaluation, ImagePath

COMMANDS = "commands.txt"


@dataclasses.dataclass(frozen=True)
class LaidOut:
    """Images of one contestant, laid out for a benchmark.

    Attributes:
      contestant: its name.
      folder: the folder that the benchmark reads.
      command: the command to run next in a copy of the benchmark's own repository; perhaps several lines of them.
    """

    contestant: str
    folder: Path
    command: str


def read_metadata(source: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads what a prompt file says of each prompt, as GenEval's ``evaluation_metadata.jsonl`` does.

    Args:
      source: the file, as `spo_jax.data.prompts.load_prompts` reads it, or ``toy:held_out``.

    Returns:
      The whole entry of each prompt, in the order of the prompts; empty for files that hold nothing but prompts.

    Raises:
      UserError: the file cannot be read.
    """
    if str(source) in TOY:
        return []
    path = local_path(source)
    try:
        entries = parse_entries(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"cannot read prompts from {path}: {error.strerror or error}") from error
    found = [entry if isinstance(entry, dict) else {} for entry in entries]
    return found if any(found) else []


def check_layout(
    layout: str,
    metadata: Sequence[Mapping[str, Any]],
    prompts: Sequence[str],
    groups: Sequence[str] | None = None,
    images_per_prompt: int | None = None,
) -> None:
    """Checks before anything is drawn that images of these prompts can be laid out so.

    Args:
      layout: its name.
      metadata: what `read_metadata` returns.
      prompts: the prompts.
      groups: the group of each prompt; not checked if None.
      images_per_prompt: number of images of each prompt; not checked if None.

    Raises:
      UserError: there is no such layout, or the prompts are not those of its benchmark.
    """
    if layout not in LAYOUTS:
        raise UserError(f"--layout={layout}: expected {', '.join(LAYOUTS)}")
    drawn = Drawn(prompts, groups if groups is not None else (), metadata, images_per_prompt or 0)
    if problem := LAYOUTS[layout].problem(drawn):
        raise UserError(f"--layout={layout}: {problem}")


def write_layout(evaluation: Evaluation, layout: str, out: Path) -> list[LaidOut]:
    """Writes the images of all contestants to ``OUT/layouts/LAYOUT/CONTESTANT``, as hard links where that is possible.

    Beside them, ``commands.txt`` has the benchmark's command for each.

    Args:
      evaluation: what was drawn.
      layout: one of `LAYOUTS`.
      out: folder of the evaluation.

    Returns:
      What was laid out, by contestant.

    Raises:
      UserError: as `check_layout`, or an image is missing, or something cannot be written.
    """
    images = evaluation.images_per_prompt
    check_layout(layout, evaluation.metadata, evaluation.prompts, evaluation.groups, images)
    drawn = Drawn(evaluation.prompts, evaluation.groups, evaluation.metadata, images)
    chosen = LAYOUTS[layout]
    found = []
    for contestant in evaluation.contestants:
        path = evaluation.images.get(contestant.name)
        if path is None:
            continue
        folder = out / "layouts" / layout / re.sub(r"[^\w.@+-]|^\.+", "_", contestant.name)
        _empty(folder)
        for name, text in chosen.texts(drawn):
            write_text(folder / name, text)
        for name, prompt, image in chosen.files(drawn):
            _place(path, prompt, image, folder / name)
        command = chosen.command.format(folder=shlex.quote(str(folder.resolve())))
        found.append(LaidOut(contestant.name, folder, command))
    commands = "".join(f"{each.command}\n" for each in found)
    write_text(out / "layouts" / layout / COMMANDS, f"# In a copy of {chosen.home}:\n{commands}")
    return found


def _empty(folder: Path) -> None:
    """Removes what an evaluation of more prompts has left in a folder, because the benchmark would score that too."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(
            f"cannot remove {folder}, whose images would be scored too: {error.strerror or error}; remove it"
        ) from error


def left_behind(layouts: Sequence[str], out: Path) -> list[str]:
    """Returns the layouts that an earlier evaluation has left in its folder, and that are not written now."""
    return [name for name in LAYOUTS if name not in layouts and (out / "layouts" / name).is_dir()]


def _place(path: ImagePath, prompt: int, image: int, target: Path) -> None:
    """Puts an image where a benchmark expects it: a link to the file, or a JPEG where the benchmark reads these."""
    source = path(prompt, image)
    if not source.is_file():
        raise UserError(f"cannot lay out {source}: there is no such image; is the evaluation complete?")
    if target.suffix == ".jpg":
        from PIL import Image  # here, because commands check layouts before they import what is large

        with Image.open(source) as opened:
            write_atomic(target, opened.convert("RGB").save)
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, target)
    except OSError:  # another disk, or one without links
        write_atomic(target, lambda temporary: shutil.copyfile(source, temporary))
