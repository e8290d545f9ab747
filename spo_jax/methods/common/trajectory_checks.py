"""What is checked of a run that learns from finished images before jax is imported."""

from spo_jax.methods.common.checks import check_decoder, check_model, check_rewards, reward_options
from spo_jax.methods.common.judged import check_held_out
from spo_jax.methods.common.trajectory_settings import TrajectoryTrainSettings
from spo_jax.rewards import check_reward
from spo_jax.rewards.common.protocol import Context


def check(settings: TrajectoryTrainSettings) -> None:
    """Refuses a model or a reward that is missing or something else.

    Raises:
      UserError: as the functions that this calls.
    """
    check_model(settings)
    check_rewards(settings)
    group = settings.own.GROUP
    for spec in settings.own.reward_names:
        check_reward(spec, Context(options=reward_options(settings, spec), field=f"{group}reward"))
    check_held_out(settings)
    check_decoder(settings.own.decoder, f"{group}decoder")
