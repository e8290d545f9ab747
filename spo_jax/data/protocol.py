"""Evaluation protocols, which are data: what is drawn for which prompts, and which statistic of the scores is reported.

A number of a paper means something only together with all of this, so a protocol is one small file with a name, which
every table shows. Those of the package are in ``spo_jax/data/protocols``; a user's own is a file of the same form.
``docs/protocols.md`` compares them.
"""

import dataclasses
import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spo_jax.core.config import read_fields, shown
from spo_jax.core.drawing_limits import LIMITS, SOLVERS
from spo_jax.core.errors import UserError
from spo_jax.core.files import local_path, read_json_object
from spo_jax.core.words import counted
from spo_jax.data.prompts import TOY, load_grouped_prompts

FOLDER = Path(__file__).parent / "protocols"
ANY = "*"  # stands for all contestants in `Protocol.guidance_of`
_KINDS = ("sd", "sdxl")
_CHOICES = {"solver": SOLVERS, "seed_rule": ("per_image", "same"), "statistic": ("mean", "median")}
_BOUNDS = {name: LIMITS[name] for name in ("steps", "seed", "guidance", "images_per_prompt", "size")} | {
    "group_size": (0, LIMITS["count"][1]),
    "count": (0, LIMITS["count"][1]),
}
_ONE_LINE = ("about", "source", "prompts")


@dataclasses.dataclass(frozen=True)
class Fetch:
    """Where ``python -m spo_jax.prepare --dataset=prompts --protocol=NAME`` finds the prompts.

    Attributes:
      sources: what ``--source`` takes, by the group that its prompts belong to; the group of a single source is empty.
      split: split of the parquet files whose captions are taken; empty if the sources are lists in files.
      group: field or column in which the lists hold the group of a prompt; empty if they hold none.
    """

    sources: Mapping[str, str]
    split: str = ""
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What an evaluation draws, from which prompts, and what it reports.

    Attributes:
      name: name of its file, without the end.
      about: what the protocol is, in a sentence.
      source: who uses it, and where that is written.
      prompts: the list of prompts: ``toy:held_out``, or the file to which ``fetch`` writes it.
      fetch: where the list comes from; None if it need not be fetched.
      count: number of prompts; 0 if it is not known.
      solver: one of `spo_jax.diffusion.SOLVERS`.
      steps: number of sampling steps.
      guidance: classifier-free guidance scale.
      guidance_of: other scales, by kind of model (``sd``, ``sdxl``) and name of the contestant (``*``: all others).
      images_per_prompt: number of images that are drawn and scored for each prompt.
      seed: the seed of the initial noise.
      seed_rule: ``per_image``, noise of its own for every prompt and image; ``same``, the first image of every prompt
        starts from the same noise, and so do the second ones.
      statistic: what is reported of the scores of all prompts, ``mean`` or ``median``.
      group_size: number of prompts over which scores are averaged before mean and deviation of these averages are
        taken, within each group of prompts; 0 for none.
      size: side of the images in pixels; None is the size that the model was trained for.
      verified: what was read in code or text of the authors.
      unverified: what was not, and what a number of this protocol therefore may differ by.
      notes: what the authors do that this package leaves to the user, and other remarks.
    """

    name: str
    about: str
    source: str
    prompts: str
    fetch: Fetch | None = None
    count: int = 0
    solver: str = "ddim"
    steps: int = 20
    guidance: float = 5.0
    guidance_of: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    images_per_prompt: int = 1
    seed: int = 0
    seed_rule: str = "per_image"
    statistic: str = "mean"
    group_size: int = 0
    size: int | None = None
    verified: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def guidance_for(self, kind: str, contestant: str) -> float:
        """Returns the guidance scale of a contestant.

        Args:
          kind: kind of the model, ``sd`` or ``sdxl``.
          contestant: its name, or that of its group if it is one strength of a LoRA; capital letters do not matter.
        """
        scales = self.guidance_of.get(kind, {})
        return scales.get(contestant.lower(), scales.get(ANY, self.guidance))


def protocol_names() -> list[str]:
    """Lists the names of the package's protocols."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_protocol(name: str | os.PathLike) -> Protocol:
    """Reads a protocol.

    Args:
      name: a name of `protocol_names`, or the path of a JSON file of the same form, which has to have another name.

    Raises:
      UserError: there is no such protocol, or the file has an unknown field, lacks one, or has one of another type or
        out of range.
    """
    names = protocol_names()
    if str(name) in names:
        return _read(FOLDER / f"{name}.json")
    path = local_path(name)
    if path.suffix != ".json" or not path.is_file():
        near = difflib.get_close_matches(str(name), names, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        missing = "there is no such file" if path.suffix == ".json" else f"expected {', '.join(names)}, or a .json file"
        raise UserError(f"--protocol={name}: {missing}{hint}")
    if path.stem in names:
        raise UserError(f"{path} has the name of a protocol of the package: give the file a name of its own")
    return _read(path)


def load_protocol_prompts(protocol: Protocol, override: str = "") -> tuple[list[str], list[str]]:
    """Reads the prompts of a protocol.

    Args:
      protocol: the protocol.
      override: another list, as `spo_jax.data.prompts.load_prompts` takes it; empty for the protocol's own.

    Returns:
      The prompts, and the group of each, which is empty if it has none.

    Raises:
      UserError: the list is not there, and the message says what fetches it; or it cannot be read, or has another
        number of prompts than the protocol.
    """
    source = override or protocol.prompts
    if not override and source not in TOY and not local_path(source).exists():
        named = protocol.name if protocol.name in protocol_names() else f"{protocol.name}.json"
        fetch = f"python -m spo_jax.prepare --dataset=prompts --protocol={named} --data-dir={Path(source).parent}"
        how = f"fetch them with {fetch}, or name" if protocol.fetch else "name"
        raise UserError(f"the prompts of protocol {protocol.name} are not in {source}: {how} a list with --prompts")
    prompts, groups = load_grouped_prompts(source)
    if not override and protocol.count and len(prompts) != protocol.count:
        raise UserError(
            f"{source} has {counted(len(prompts), 'prompt')}, and protocol {protocol.name} has {protocol.count}: fetch "
            f"the whole list, or give this one as --prompts={source}, and the table says so"
        )
    return prompts, groups


# Reading


def _read(path: Path) -> Protocol:
    """Reads and checks a file."""
    raw = read_json_object(path)
    guidance_of, fetch = raw.pop("guidance_of", {}), raw.pop("fetch", None)
    if "name" in raw:
        raise UserError(f"{path}: name is not a field: a protocol has the name of its file")
    values = read_fields(Protocol, raw, lambda key: f"{path}: {key}")
    missing = [name for name in _ONE_LINE if name not in values]
    if missing:
        raise UserError(f"{path}: {', '.join(missing)} is missing")
    protocol = Protocol(
        name=path.stem,
        **values,
        guidance_of=_guidance_of(guidance_of, path),
        fetch=None if fetch is None else _fetch(fetch, path),
    )
    _check(protocol, path)
    return protocol


def _check(protocol: Protocol, path: Path) -> None:
    """Checks the ranges of the fields."""
    for name in _ONE_LINE:
        text = getattr(protocol, name)
        if not text.strip() or "\n" in text:
            raise UserError(f"{path}: {name} = {shown(text)}: expected a line of text")
    for name, choices in _CHOICES.items():
        if getattr(protocol, name) not in choices:
            expected = " or ".join(map(repr, choices))
            raise UserError(f"{path}: {name} = {shown(getattr(protocol, name))}: expected {expected}")
    for name, (least, most) in _BOUNDS.items():
        value = getattr(protocol, name)
        if value is not None and not least <= value <= most:
            raise UserError(f"{path}: {name} = {shown(value)}: expected a number from {least} to {most}")


def _guidance_of(raw: Any, path: Path) -> dict[str, dict[str, float]]:
    where = f"{path}: guidance_of"
    if not isinstance(raw, dict) or not all(isinstance(scales, dict) for scales in raw.values()):
        raise UserError(f'{where} = {shown(raw)}: expected an object such as {{"sd": {{"base": 7.5}}}}')
    least, most = LIMITS["guidance"]
    result: dict[str, dict[str, float]] = {}
    for kind, scales in raw.items():
        if kind not in _KINDS:
            raise UserError(f"{where}.{kind} is not a kind of model: expected {' or '.join(_KINDS)}")
        for contestant, scale in scales.items():
            if not isinstance(scale, int | float) or isinstance(scale, bool) or not least <= scale <= most:
                expected = f"expected a number from {least} to {most}"
                raise UserError(f"{where}.{kind}.{contestant} = {shown(scale)}: {expected}")
        result[kind] = {contestant.lower(): float(scale) for contestant, scale in scales.items()}
    return result


def _fetch(raw: Any, path: Path) -> Fetch:
    where = f"{path}: fetch"
    if not isinstance(raw, dict):
        raise UserError(f"{where} = {shown(raw)}: expected an object with sources")
    sources = raw.get("sources")
    if not isinstance(sources, dict) or not sources or not all(isinstance(text, str) for text in sources.values()):
        expected = 'expected an object of what --source takes, by group, such as {"": "OWNER/NAME/FILE.json"}'
        raise UserError(f"{where}.sources = {shown(sources)}: {expected}")
    others = {key: value for key, value in raw.items() if key != "sources"}
    return Fetch(sources=sources, **read_fields(Fetch, others, lambda key: f"{where}.{key}"))
