"""Lays images out as other benchmarks expect them, with the command of theirs that scores them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spo_jax.work.evaluate.result import Evaluation

LAYOUTS = ("geneval", "t2i_compbench", "unigenbench", "hpsv2")


@dataclasses.dataclass(frozen=True)
class LaidOut:
    """Images of one contestant, laid out for a benchmark.

    Attributes:
      contestant: its name.
      folder: the folder that the benchmark reads.
      command: the command of the benchmark's own repository to run next.
    """

    contestant: str
    folder: Path
    command: str


def read_metadata(source: str | Path) -> list[dict[str, Any]]:
    """Reads what a prompt file says of each prompt, as GenEval's ``evaluation_metadata.jsonl`` does.

    Args:
      source: the file, as `spo_jax.data.prompts.load_prompts` reads it, or ``toy:held_out``.

    Returns:
      The whole entry of each prompt, in the order of the prompts; empty for files that hold nothing but prompts.
    """
    raise NotImplementedError


def check_layout(layout: str, metadata: Sequence[Mapping[str, Any]], prompts: Sequence[str]) -> None:
    """Checks before anything is drawn that images of these prompts can be laid out so.

    Raises:
      UserError: there is no such layout, or it needs metadata that the prompts do not have.
    """
    raise NotImplementedError


def write_layout(evaluation: Evaluation, layout: str, out: Path) -> list[LaidOut]:
    """Writes the images of all contestants to ``OUT/layouts/LAYOUT/CONTESTANT``, as hard links where that is possible.

    Args:
      evaluation: what was drawn.
      layout: one of `LAYOUTS`.
      out: folder of the evaluation.

    Raises:
      UserError: as `check_layout`, or an image is missing, or something cannot be written.
    """
    raise NotImplementedError
