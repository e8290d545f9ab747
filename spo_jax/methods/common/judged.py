"""Whether a score is that of the very judge that a LoRA is trained to please."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spo_jax import rewards
from spo_jax.core.errors import UserError
from spo_jax.methods.common.checks import reward_options
from spo_jax.methods.common.settings import AdapterSettings
from spo_jax.rewards import parse_spec
from spo_jax.rewards.common.protocol import Context
from spo_jax.rewards.sum import read_terms


def is_judge(spec: str, settings: AdapterSettings) -> bool:
    """Says whether a reward is one that judged while a run trained, alone or as a term of a sum.

    A method names its judge in a group's field ``reward``, as SPO does in ``spo.reward``.

    Args:
      spec: name of the reward, as `spo_jax.rewards.load_reward` takes it.
      settings: settings of the run.
    """
    terms = [term for judge in _judges(settings) for term in _terms(judge)]
    return any(_same(_resolved(spec, settings), _resolved(term, settings)) for term in terms)


def learns_from(spec: str, settings: AdapterSettings) -> bool:
    """Says whether a run learns from a reward: it is a judge, or a sum that has one among its terms.

    Args:
      spec: as in `is_judge`.
      settings: settings of the run.
    """
    return any(is_judge(term, settings) for term in _terms(spec))


def check_held_out(settings: AdapterSettings) -> None:
    """Refuses a reward of the guard from which the run learns, because it rises whatever becomes of the images.

    Raises:
      UserError: the guard is on, and one of its rewards is the judge or a term of it.
    """
    for spec in settings.eval.guard_names if settings.eval.guard != "off" else ():
        if learns_from(spec, settings):
            raise UserError(
                f"config field eval.guard_rewards names {spec!r}, by which the run is judged: expected rewards from "
                "which it does not learn, or eval.guard = 'off'"
            )


def judges(settings: AdapterSettings) -> list[tuple[str, str]]:
    """Returns name and source of each judge of a run; the source is empty for a judge without weights."""
    return [_named(spec, settings) for spec in _judges(settings)]


def _judges(settings: AdapterSettings) -> list[str]:
    groups = [getattr(settings, field.name) for field in dataclasses.fields(settings)]
    return [name for group in groups if isinstance(getattr(group, "reward", None), str) for name in _named_by(group)]


def _named_by(group: Any) -> Sequence[str]:
    """Returns the rewards that a group's field ``reward`` names: several in groups that say so; none if it is empty."""
    return getattr(group, "reward_names", (group.reward,) if group.reward else ())


def _terms(spec: str) -> list[str]:
    """Returns a judge and, if it is a sum, what it is the sum of."""
    parsed = parse_spec(spec)
    return [spec, *(term for _, term in read_terms(parsed.source, Context()))] if parsed.name == "sum" else [spec]


def _named(spec: str, settings: AdapterSettings) -> tuple[str, str]:
    parsed = parse_spec(spec)  # another variant is the same judge
    name = parsed.name.removeprefix(f"{rewards.__name__}.")  # ours may be named by their dotted paths as well
    return name, parsed.source or str(reward_options(settings, spec).get("model", ""))


def _same(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Compares two judges; without a source one is the published reward, of which a source may be a copy."""
    return one[0] == other[0] and (one[1] == other[1] or not (one[1] and other[1]))


def _resolved(spec: str, settings: AdapterSettings) -> tuple[str, str]:
    """Returns a reward's module and the place of its weights, which its group of the settings names by default."""
    name, source = _named(spec, settings)
    return name, str(Path(source).resolve()) if source and Path(source).exists() else source
