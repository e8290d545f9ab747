"""What is checked of a run of Diffusion-DPO before jax is imported."""

from spo_jax.core.files import check_writable
from spo_jax.methods.common.checks import check_model, check_rewards, reward_options
from spo_jax.methods.common.judged import check_held_out
from spo_jax.methods.diffusion_dpo.settings import DPOTrainSettings
from spo_jax.rewards import check_reward
from spo_jax.rewards.common.protocol import Context


def check(settings: DPOTrainSettings) -> None:
    """Refuses a model or a reward that is missing or something else, and a folder that cannot be written.

    Raises:
      UserError: as the functions that this calls.
    """
    check_model(settings)
    check_rewards(settings)
    check_held_out(settings)
    labels = settings.dpo.reward
    if labels:
        check_reward(labels, Context(options=reward_options(settings, labels), field="dpo.reward"))
    for folder in filter(None, (settings.cache_latents, settings.dpo.scores)):
        check_writable(folder)
