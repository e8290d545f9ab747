"""Rewards, which score images or latents. A reward is a module that is found by its name or by a dotted path."""

from spo_jax.core.errors import UserError
from spo_jax.core.lookup import find_module
from spo_jax.rewards.base import Context, Reward


def load_reward(spec: str, context: Context) -> Reward:
    """Loads a reward.

    Args:
      spec: ``NAME``, or ``NAME:SOURCE`` to read the weights from another source. The name is that of a module here, or
        a dotted path such as ``my_package.my_reward``.
      context: facts on which the reward may depend.

    Raises:
      UserError: there is no such reward, or it cannot be loaded.
    """
    name, _, source = spec.partition(":")
    module = find_module(__name__, name, f"config field {context.field}")
    if not hasattr(module, "load"):
        raise UserError(
            f"config field {context.field} = {spec!r}: expected a module with a function load(source, context), "
            f"but {module.__name__} has none"
        )
    return module.load(source, context)
