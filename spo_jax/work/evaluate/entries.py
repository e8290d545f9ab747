"""Who is evaluated: the flags ``--lora``, ``--merged`` and ``--images`` taken apart and checked, without jax."""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from spo_jax.core.errors import UserError
from spo_jax.core.files import local_path
from spo_jax.core.strengths import check_strength
from spo_jax.models import check_model, is_unet_alone
from spo_jax.weights.lora import find_lora

BASE = "base"
Kind = Literal["base", "lora", "merged", "images"]
# Names are those of folders, and of columns of tables. @ stands before the strength of a LoRA.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
# What a caller from Python may give instead of texts NAME=SOURCE.
Sources = Mapping[str, str | os.PathLike] | Sequence[str]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A contestant as the user named it.

    Attributes:
      name: its name.
      kind: ``base``, ``lora``, ``merged``, or ``images`` that were made elsewhere.
      source: the LoRA's, the model's or the images' path or hub id; empty for the model that is evaluated.
      group: the name that a LoRA shares with its other strengths; otherwise its own name.
      strength: strength of a LoRA; None for others.
    """

    name: str
    kind: Kind
    source: str = ""
    group: str = ""
    strength: float | None = None

    @property
    def what(self) -> str:
        """What it is, as a phrase."""
        if self.kind == "base":
            return "the model itself"
        if self.kind == "lora":
            return f"the LoRA {self.source} at {self.strength:g}"
        return f"the model {self.source}" if self.kind == "merged" else f"the images in {self.source}"


def read_entries(
    loras: Sources = (), merged: Sources = (), images: Sources = (), strengths: Sequence[float] = ()
) -> list[Entry]:
    """Returns the contestants, the model itself first and the strengths of a LoRA from small to large.

    Args:
      loras: texts ``NAME=SOURCE[:STRENGTH]``, or sources by name.
      merged: texts ``NAME=SOURCE``, or sources by name.
      images: the same, for folders of images.
      strengths: further strengths of every LoRA, which become contestants ``NAME@STRENGTH``.

    Raises:
      UserError: a text is none of these, a name cannot be that of a folder or is taken, or a strength is none.
    """
    entries = [Entry(BASE, "base", group=BASE)]
    for name, source in _named("--lora", loras):
        entries += _of_lora(name, source, strengths)
    for kind, flag, given in (("merged", "--merged", merged), ("images", "--images", images)):
        entries += [Entry(name, kind, source, name) for name, source in _named(flag, given)]
    if strengths and not loras:
        raise UserError("--strengths goes with --lora=NAME=SOURCE only")
    taken: dict[str, str] = {}
    for entry in entries:
        # Some file systems do not tell capital letters from small ones.
        other = taken.setdefault(entry.name.casefold(), entry.name)
        if sum(entry.name.casefold() == each.name.casefold() for each in entries) > 1:
            why = ", which is the model itself" if entry.name.casefold() == BASE else ""
            raise UserError(f"two contestants have the name {other}{why}: give each a name of its own")
    return entries


def check_sources(entries: Sequence[Entry], model: str, base: str, vae: str) -> None:
    """Refuses LoRAs and models that are not there; of what is on the hub, LoRAs and configs are fetched.

    Args:
      entries: the contestants.
      model: the model that is evaluated, like ``base`` and ``vae`` as `spo_jax.models.check_model` takes it.
      base: where a single file's tokenizers and scheduler come from.
      vae: an autoencoder instead of the models' own.

    Raises:
      UserError: a path does not exist, or is something else; the message names the flag.
    """
    for entry in entries:
        try:
            if entry.kind == "lora":
                find_lora(entry.source)
            elif entry.kind == "merged":
                is_alone = is_unet_alone(entry.source)
                check_model(model if is_alone else entry.source, base, vae, entry.source if is_alone else "")
        except UserError as error:
            raise UserError(f"--{entry.kind} {entry.name}: {error}") from error


def _of_lora(name: str, source: str, strengths: Sequence[float]) -> Iterator[Entry]:
    source, strength = split_strength(source, f"--lora={name}")
    for each in sorted({strength, *strengths}):
        yield Entry(name if each == strength else f"{name}@{each:g}", "lora", source, name, each)


def split_strength(text: str, flag: str) -> tuple[str, float]:
    """Takes ``SOURCE[:STRENGTH]`` apart from its end, because a source may hold colons itself.

    Args:
      text: the text.
      flag: what names it, for messages.

    Raises:
      UserError: the strength is 0 or too large, or what follows the path of an existing LoRA is no number.
    """
    head, colon, tail = text.rpartition(":")
    if not colon or not head or local_path(text).exists():
        return text, 1.0
    try:
        strength = float(tail)
    except ValueError as error:
        if local_path(head).exists():
            raise UserError(f"{flag}={text}: {tail!r} is no strength: expected a number, such as 0.5") from error
        return text, 1.0  # C:\loras\spo.safetensors
    check_strength(strength, f"{flag}: strength")
    return head, strength


def _named(flag: str, given: Sources) -> Iterator[tuple[str, str]]:
    """Yields names and sources."""
    if isinstance(given, str):
        raise UserError(f"{flag}={given}: expected a list of texts NAME=SOURCE")
    pairs = given.items() if isinstance(given, Mapping) else (str(text).partition("=")[::2] for text in given)
    for name, source in pairs:
        shown = f"{flag}={name}={source}"
        if not str(source):
            raise UserError(f"{flag}={name}: expected NAME=SOURCE, such as {flag}=spo=runs/spo")
        if not _NAME.fullmatch(name) or name.endswith("."):
            raise UserError(
                f"{shown}: {name!r} is no name of a contestant: expected up to 64 letters, digits, -, _, + and . only, "
                "because folders get it"
            )
        yield name, os.fspath(source)
