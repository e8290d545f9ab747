"""Checks of the models and rewards that settings name, without jax, weights or the network."""

import dataclasses
from typing import Any

from spo_jax import models
from spo_jax.core.errors import UserError
from spo_jax.methods.common.settings import ModelSettings
from spo_jax.rewards import check_reward, parse_spec
from spo_jax.rewards.common.protocol import Context
from spo_jax.weights import hub
from spo_jax.weights.kinds import describe


def check_model(settings: ModelSettings) -> None:
    """Refuses a text-to-image model that cannot be opened; see `spo_jax.models.check_model`."""
    models.check_model(settings.model, settings.base, settings.vae)


def check_decoder(decoder: str, field: str) -> None:
    """Refuses a distilled decoder that is something else.

    Args:
      decoder: as `spo_jax.models.decoder.open_decoder` takes it.
      field: config field that names it, for messages.

    Raises:
      UserError: the path does not exist, or is not a decoder.
    """
    path = hub.local(decoder) if decoder != "vae" else None
    if path is not None and not (path / "config.json").is_file():
        raise UserError(
            f"config field {field} = {decoder!r} is {describe(path)}: expected 'vae', or the folder of an "
            "AutoencoderTiny, with config.json"
        )


def check_rewards(settings: Any, **judges: str) -> None:
    """Refuses rewards that cannot be used, before anything is loaded.

    Args:
      settings: the method's settings.
      **judges: rewards besides those of the evaluation, by the group whose field ``reward`` names them.

    Raises:
      UserError: as `spo_jax.rewards.check_reward`.
    """
    named = [("eval.rewards", spec, False) for spec in settings.eval.reward_names]
    named += [(f"{group}.reward", spec, True) for group, spec in judges.items()]
    if settings.eval.guard != "off":
        named += [("eval.guard_rewards", spec, False) for spec in settings.eval.guard_names]
    for field, spec, judging in named:
        context = Context(options=reward_options(settings, spec), field=field)
        if judging:
            kind, channels = models.kind_and_channels(settings.model)
            noisy = getattr(getattr(settings, field.partition(".")[0]), "judged", "clean") == "noisy"
            context = dataclasses.replace(context, kind=kind, channels=channels, noisy=noisy)
        check_reward(spec, context, judging)


def reward_options(settings: Any, spec: str) -> dict[str, Any]:
    """Returns the options of a reward.

    Args:
      settings: the method's settings.
      spec: name of the reward in the settings, ``NAME[@VARIANT][:SOURCE]``.

    Returns:
      The fields of the group that is named after the reward; empty if there is no such group.
    """
    group = getattr(settings, parse_spec(spec).name, None)
    return vars(group) if group is not None and hasattr(group, "__dataclass_fields__") else {}
