"""Rewards, which score images or latents. A reward is a module that is found by its name or by a dotted path.

A reward is named by a spec, ``NAME[@VARIANT][:SOURCE]``: ``pickscore``, ``clip_score@hessel``, ``spm@401:toy``,
``aesthetic:FOLDER``, ``my_package.my_reward``. The variant chooses among the ways in which a reward can be computed,
and the source is where its weights are read from.
"""

import dataclasses
import importlib
from types import ModuleType

from spo_jax.core.errors import UserError
from spo_jax.core.lookup import find_module, module_names
from spo_jax.rewards.common.own import check_function, check_reward_object
from spo_jax.rewards.common.protocol import IMAGES, NOISY, Context, Reward


@dataclasses.dataclass(frozen=True)
class Spec:
    """A reward's name, taken apart.

    Attributes:
      name: name of a module here, or a dotted path such as ``my_package.my_reward``.
      variant: one of the module's `VARIANTS`; empty for the default.
      source: where the weights are read from; empty for what the module says.
    """

    name: str
    variant: str = ""
    source: str = ""


def parse_spec(spec: str) -> Spec:
    """Takes ``NAME[@VARIANT][:SOURCE]`` apart; the source may contain colons and at signs itself."""
    head, _, source = spec.strip().partition(":")
    name, _, variant = head.partition("@")
    return Spec(name, variant, source)


def load_reward(spec: str, context: Context) -> Reward:
    """Loads a reward.

    Args:
      spec: ``NAME[@VARIANT][:SOURCE]``; see `parse_spec`.
      context: facts on which the reward may depend; the variant is taken from ``spec``.

    Raises:
      UserError: there is no such reward or variant, or it cannot be loaded.
    """
    module, source, context = _find(spec, context)
    reward = module.load(source, context)
    check_reward_object(reward, f"{module.__name__}.load")
    return reward


def check_reward(spec: str, context: Context, judges: bool = False) -> None:
    """Refuses a reward that cannot be used, before anything is loaded, and before jax is imported for one of ours.

    A reward's module may have a function ``check(source, context)`` that takes no time and uses no network; it is
    called here. It may also have a constant ``ON_HOST``, which says that it cannot judge rollouts, and a constant
    ``READS``, which says what it reads if that is not images (`spo_jax.rewards.base.DeviceReward.READS`).

    Args:
      spec: as in `load_reward`.
      context: facts on which the reward may depend; the model's kind need not be known yet.
      judges: whether the reward has to judge rollouts.

    Raises:
      UserError: there is no such reward or variant, it cannot judge, or its weights are missing.
    """
    module, source, context = _find(spec, context, judges)
    if judges and getattr(module, "ON_HOST", False):
        raise no_judge(spec, context.where)
    # A module of the user's may say what it reads in its class alone.
    reads = getattr(module, "READS", IMAGES if module.__name__.startswith(f"{__name__}.") else "")
    if judges and reads:
        check_reads(spec, reads, context.noisy, context.where)
    elif reads not in ("", IMAGES):
        raise UserError(f"{context.where} = {spec!r}: this reward reads {reads}, but finished images are scored here")
    if hasattr(module, "check"):
        module.check(source, context)


def no_judge(spec: str, where: str) -> UserError:
    """Returns the error about a judge of rollouts that is computed on the host."""
    return UserError(
        f"{where} = {spec!r}: this reward is computed on the host and cannot judge inside a rollout; "
        "expected one that is computed on the devices, such as 'spm'"
    )


def check_reads(spec: str, reads: str, noisy: bool, where: str) -> None:
    """Refuses a judge of clean predictions or images where noisy latents are judged, and the other way round.

    Args:
      spec: its name.
      reads: what it reads; see `spo_jax.rewards.base.DeviceReward.READS`.
      noisy: whether noisy latents are judged.
      where: flag or config field that names it, as messages call it.

    Raises:
      UserError: it would see what it does not read.
    """
    if reads == NOISY and not noisy:
        raise UserError(
            f"{where} = {spec!r}: this reward judges noisy latents, which are shown to spo.reward alone, with "
            "spo.judged = 'noisy' as in configs/lpo_sd15.py: expected that, or a reward that reads images"
        )
    if noisy and reads != NOISY:
        raise UserError(
            f"{where} = {spec!r}: this reward reads {reads}, but with spo.judged = 'noisy' it would see noisy latents: "
            "expected a reward that judges those, such as lrm:FOLDER, or spo.judged = 'clean'"
        )


def check_direction(spec: str, reward: Reward, weight: float, where: str) -> None:
    """Refuses a judge by which images would become worse, because a lower score of it is better.

    Args:
      spec: its name.
      reward: the reward.
      weight: what its score is multiplied with; a rollout prefers images for which the product is high.
      where: flag or config field that names it, as messages call it.

    Raises:
      UserError: the weight is positive, and a lower score is better.
    """
    if weight > 0 and set(reward.meanings) & set(reward.lower_is_better):
        raise UserError(
            f"{where} = {spec!r}: a lower score of this reward is better, and a rollout prefers high ones; "
            f"expected a negative weight, as in 'sum:-1*{spec}'"
        )


def _judges() -> list[str]:
    """Lists our rewards that can judge rollouts."""
    names = module_names(__name__)
    return [name for name in names if not getattr(importlib.import_module(f"{__name__}.{name}"), "ON_HOST", False)]


def _find(spec: str, context: Context, judges: bool = False) -> tuple[ModuleType, str, Context]:
    """Finds a reward's module; also returns its source, and the context with its variant."""
    parsed = parse_spec(spec)
    # A config has fields for the source of a reward, a flag has none.
    ending = ":SOURCE" if context.field.startswith("--") else ""
    expected = [f"{known}{ending}" for known in _judges()] if judges else ()
    module = find_module(__name__, parsed.name, context.where, expected)
    if not hasattr(module, "load"):
        raise UserError(
            f"{context.where} = {spec!r}: expected a module with a function load(source, context), "
            f"but {module.__name__} has none"
        )
    for function in ("load", "check"):
        if hasattr(module, function):
            check_function(getattr(module, function), f"{module.__name__}.{function}", ("source", "context"))
    _check_variant(spec, module, context.where)
    return module, parsed.source, dataclasses.replace(context, variant=parsed.variant)


def _check_variant(spec: str, module: ModuleType, where: str) -> None:
    """Refuses a variant that the reward's module does not list."""
    name = parse_spec(spec).name
    variants = getattr(module, "VARIANTS", ())
    if "@" not in spec.partition(":")[0] or parse_spec(spec).variant in map(str, variants):
        return
    if isinstance(variants, range):
        expected = f"expected {name}@T with a whole number T from {variants[0]} to {variants[-1]}"
    else:
        expected = "expected " + ", ".join([name, *(f"{name}@{variant}" for variant in variants)])
    raise UserError(f"{where} = {spec!r}: {expected if variants else f'the reward {name} has no variants'}")
