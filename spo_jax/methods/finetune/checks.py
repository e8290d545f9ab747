"""What is checked of a run of plain fine-tuning before jax is imported."""

from spo_jax.methods.common.checks import check_model, check_rewards
from spo_jax.methods.finetune.settings import FinetuneSettings


def check(settings: FinetuneSettings) -> None:
    """Refuses a model or a reward that is missing or something else.

    Raises:
      UserError: as the functions that this calls.
    """
    check_model(settings)
    check_rewards(settings)
