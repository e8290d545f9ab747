"""What is checked of a run of SPO before jax is imported."""

from spo_jax.methods.common.checks import check_decoder, check_model, check_rewards, reward_options
from spo_jax.methods.common.judged import check_held_out
from spo_jax.methods.spo.settings import SPOTrainSettings
from spo_jax.rewards import check_reward
from spo_jax.rewards.common.protocol import Context


def check(settings: SPOTrainSettings) -> None:
    """Refuses a model, a judge or another reward that is missing or something else.

    Raises:
      UserError: as the functions that this calls.
    """
    check_model(settings)
    check_rewards(settings, spo=settings.spo.reward)
    if second := settings.spo.second_reward:
        context = Context(options=reward_options(settings, second), field="spo.second_reward")
        check_reward(second, context, judges=True)
    check_held_out(settings)
    check_decoder(settings.spo.decoder, "spo.decoder")
