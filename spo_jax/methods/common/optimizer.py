"""The optimizer that all methods use, and its learning rate."""

import optax

from spo_jax.core.typing import Array
from spo_jax.methods.common.settings import OptimizerSettings


def learning_rate(settings: OptimizerSettings, total: int = 0) -> float | optax.Schedule:
    """Returns the learning rate or, if it changes, a function from the number of finished optimizer steps to it.

    The linear schedule is transformers' ``get_linear_schedule_with_warmup``.

    Args:
      settings: settings of the optimizer.
      total: number of training batches of the whole run; only the linear schedule needs it.
    """
    peak = settings.learning_rate
    warmup = settings.warmup_steps
    if settings.schedule == "linear":
        after = optax.linear_schedule(peak, 0.0, total // settings.gradient_accumulation_steps - warmup)
    elif not warmup:
        return peak
    else:
        after = optax.constant_schedule(peak)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def learning_rate_at(settings: OptimizerSettings, total: int, step: Array) -> Array | float:
    """Returns the learning rate of the optimizer step to which a training batch belongs.

    Args:
      settings: settings of the optimizer.
      total: as in `learning_rate`.
      step: number of the training batch, from 0 on.
    """
    rate = learning_rate(settings, total)
    return rate(step // settings.gradient_accumulation_steps) if callable(rate) else rate


def make_optimizer(settings: OptimizerSettings, total: int = 0) -> optax.GradientTransformation:
    """Makes AdamW or Adafactor with decoupled weight decay, preceded by clipping to a global norm.

    With ``gradient_accumulation_steps`` above 1 the gradients of that number of training batches are averaged first.

    Args:
      settings: settings of the optimizer.
      total: as in `learning_rate`.
    """
    make = {"adamw": _adamw, "adafactor": _adafactor}[settings.name]
    optimizer = optax.chain(
        optax.clip_by_global_norm(settings.max_grad_norm), make(settings, learning_rate(settings, total))
    )
    if settings.gradient_accumulation_steps > 1:
        optimizer = optax.MultiSteps(optimizer, settings.gradient_accumulation_steps).gradient_transformation()
    return optimizer


def _adamw(settings: OptimizerSettings, rate: float | optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        rate,
        b1=settings.adam_beta1,
        b2=settings.adam_beta2,
        eps=settings.adam_epsilon,
        weight_decay=settings.weight_decay,
    )


def _adafactor(settings: OptimizerSettings, rate: float | optax.Schedule) -> optax.GradientTransformation:
    """Makes Adafactor (arXiv 1804.04235) as Diffusion-DPO's code uses transformers': without scaling by parameters.

    The step is the learning rate times u / max(1, RMS(u)), where u is the gradient over the root of the factored mean
    of squared gradients. optax's own ``adafactor`` applies the decay without the learning rate.
    """
    return optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=1, decay_rate=0.8, epsilon=1e-30),
        optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(settings.weight_decay),
        optax.scale_by_learning_rate(rate),
    )
