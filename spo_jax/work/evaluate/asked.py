"""What the flags of an evaluation ask for, found without jax: a protocol with changes, its prompts, and rewards."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from spo_jax import toy
from spo_jax.core.drawing_limits import SOLVERS, check_limits, checked_prompts
from spo_jax.core.errors import UserError
from spo_jax.data.protocol import Protocol, load_protocol, load_protocol_prompts, protocol_names
from spo_jax.rewards import check_reward
from spo_jax.rewards.common.protocol import Context
from spo_jax.work.evaluate.layouts import check_layout, read_metadata
from spo_jax.work.evaluate.result import CUSTOM

TOY_REWARDS = "toy,spm:toy"


def is_empty(value: Any) -> bool:
    """Whether a flag was not given: a text or a list without anything in it."""
    return isinstance(value, str | Sequence) and len(value) == 0


class Asked(NamedTuple):
    """What is drawn.

    Attributes:
      protocol: the protocol, with the user's changes.
      overridden: names of the fields that they changed.
      prompts: the prompts.
      groups: the group of each prompt.
      metadata: what else their file says of each; empty if nobody needs that.
    """

    protocol: Protocol
    overridden: list[str]
    prompts: list[str]
    groups: list[str]
    metadata: list[dict[str, Any]]


def asked_images(
    name: str | os.PathLike,
    changes: Mapping[str, Any],
    prompts: str | os.PathLike | Sequence[str],
    limit: int | None,
    layouts: Sequence[str],
    model: str,
) -> Asked:
    """Returns what is drawn.

    Args:
      name: as in `asked_protocol`, like ``changes``, ``prompts`` and ``model``.
      limit: number of prompts, from the first one on; None takes all.
      layouts: benchmarks for which the images are laid out.

    Raises:
      UserError: as `asked_protocol` and `asked_prompts`; or a benchmark cannot take these images.
    """
    protocol, overridden = asked_protocol(name, changes, prompts, model)
    texts, groups, metadata = asked_prompts(protocol, prompts, bool(layouts))
    if limit is not None:
        check_limits(limit=limit)
        if limit < len(texts):
            texts, groups, metadata = texts[:limit], groups[:limit], metadata[:limit]
            protocol = dataclasses.replace(protocol, count=limit)
            if protocol.name != CUSTOM:
                overridden.append("count")
    for layout in layouts:
        check_layout(layout, metadata, texts, groups, protocol.images_per_prompt)
    return Asked(protocol, overridden, texts, groups, metadata)


def asked_protocol(
    name: str | os.PathLike,
    changes: Mapping[str, Any],
    prompts: str | os.PathLike | Sequence[str],
    model: str,
) -> tuple[Protocol, list[str]]:
    """Returns the protocol with the user's changes, and the names of the fields that they changed.

    Args:
      name: name or file of a protocol; without one, the toy has its own, and others one that is called ``custom``.
      changes: fields of the protocol that flags change; None for those that are not given.
      prompts: prompts instead of the protocol's; empty for none.
      model: the model that is evaluated.

    Raises:
      UserError: there is no such protocol, a number is out of range, or neither protocol nor prompts are given.
    """
    given = {field: value for field, value in changes.items() if value is not None}
    check_limits(**{field: value for field, value in given.items() if field != "solver"})
    if given.get("solver", SOLVERS[0]) not in SOLVERS:
        raise UserError(f"--solver={given['solver']}: expected {', '.join(SOLVERS)}")
    if not name and is_empty(prompts) and model == toy.NAME:
        name = toy.NAME
    if not name:
        if is_empty(prompts):
            names = ", ".join(protocol_names())
            raise UserError(f"give --protocol=NAME ({names}, or a file of your own), or --prompts=FILE")
        source = os.fspath(prompts) if isinstance(prompts, str | os.PathLike) else f"{len(prompts)} prompts from Python"
        about = "Means over the prompts that the flags name, drawn as they say."
        return Protocol(CUSTOM, about, "the flags of this evaluation", source, **given), []
    protocol = load_protocol(name)
    overridden = [field for field, value in given.items() if getattr(protocol, field) != value]
    if "guidance" in given and protocol.guidance_of:
        given["guidance_of"] = {}
        overridden = list(dict.fromkeys([*overridden, "guidance"]))
    if not is_empty(prompts):
        given["prompts"] = os.fspath(prompts) if isinstance(prompts, str | os.PathLike) else "a list from Python"
        overridden.append("prompts")
    return dataclasses.replace(protocol, **given), overridden


def asked_prompts(
    protocol: Protocol, given: str | os.PathLike | Sequence[str], needs_metadata: bool
) -> tuple[list[str], list[str], list[dict[str, Any]]]:
    """Returns the prompts, the group of each, and what else their file says of each.

    Raises:
      UserError: prompts cannot be read, or are none that can be drawn.
    """
    if not isinstance(given, str | os.PathLike) and not is_empty(given):
        texts = checked_prompts(given)
        return texts, [""] * len(texts), []
    override = os.fspath(given) if isinstance(given, str | os.PathLike) else ""
    texts, groups = load_protocol_prompts(protocol, override)
    return texts, groups, read_metadata(override or protocol.prompts) if needs_metadata else []


def asked_rewards(rewards: str | Sequence[str], model: str) -> list[str]:
    """Returns the names of the rewards, which can be used as far as that shows now.

    Raises:
      UserError: there are none, one is there twice, or one cannot be used.
    """
    parts = rewards.split(",") if isinstance(rewards, str) else list(map(str, rewards))
    specs = [part.strip() for part in parts if part.strip()]
    if not specs:
        if model != toy.NAME:
            raise UserError("--rewards is missing: name what scores the images, such as --rewards=pickscore,aesthetic")
        specs = TOY_REWARDS.split(",")
    twice = sorted({spec for spec in specs if specs.count(spec) > 1})
    if twice:
        raise UserError(f"--rewards={','.join(specs)}: {twice[0]} is there twice")
    for spec in specs:
        check_reward(spec, Context(field="--rewards"))
    return specs
