"""Rewards, which score images or latents. A reward is a module that is found by its name or by a dotted path."""

import importlib
from types import ModuleType

from spo_jax.core.errors import UserError
from spo_jax.core.lookup import find_module, module_names
from spo_jax.rewards.common.protocol import Context, Reward


def load_reward(spec: str, context: Context) -> Reward:
    """Loads a reward.

    Args:
      spec: ``NAME``, or ``NAME:SOURCE`` to read the weights from another source. The name is that of a module here, or
        a dotted path such as ``my_package.my_reward``.
      context: facts on which the reward may depend.

    Raises:
      UserError: there is no such reward, or it cannot be loaded.
    """
    module, source = _find(spec, context)
    return module.load(source, context)


def check_reward(spec: str, context: Context, judges: bool = False) -> None:
    """Refuses a reward that cannot be used, before anything is loaded, and before jax is imported for one of ours.

    A reward's module may have a function ``check(source, context)`` that takes no time and uses no network; it is
    called here. It may also have a constant ``ON_HOST``, which says that it cannot judge rollouts.

    Args:
      spec: as in `load_reward`.
      context: facts on which the reward may depend; the model's kind need not be known yet.
      judges: whether the reward has to judge rollouts.

    Raises:
      UserError: there is no such reward, it cannot judge, or its weights are missing.
    """
    module, source = _find(spec, context, judges)
    if judges and getattr(module, "ON_HOST", False):
        raise no_judge(spec, context.where)
    if hasattr(module, "check"):
        module.check(source, context)


def no_judge(spec: str, where: str) -> UserError:
    """Returns the error about a judge of rollouts that is computed on the host."""
    return UserError(
        f"{where} = {spec!r}: this reward is computed on the host and cannot judge inside a rollout; "
        "expected one that is computed on the devices, such as 'spm'"
    )


def _judges() -> list[str]:
    """Lists our rewards that can judge rollouts."""
    names = module_names(__name__)
    return [name for name in names if not getattr(importlib.import_module(f"{__name__}.{name}"), "ON_HOST", False)]


def _find(spec: str, context: Context, judges: bool = False) -> tuple[ModuleType, str]:
    name, _, source = spec.partition(":")
    # A config has fields for the source of a reward, a flag has none.
    ending = ":SOURCE" if context.field.startswith("--") else ""
    expected = [f"{known}{ending}" for known in _judges()] if judges else ()
    module = find_module(__name__, name, context.where, expected)
    if not hasattr(module, "load"):
        raise UserError(
            f"{context.where} = {spec!r}: expected a module with a function load(source, context), "
            f"but {module.__name__} has none"
        )
    return module, source
