"""What is checked of the training of a preference model before jax is imported."""

from spo_jax.core.files import check_writable
from spo_jax.methods.common.checks import check_model
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.rewards.common.preference_files import check_files
from spo_jax.weights import hub


def check(settings: SPMTrainSettings) -> None:
    """Refuses models that are missing or something else, and folders that cannot be written.

    Raises:
      UserError: as the functions that this calls.
    """
    check_model(settings)
    check_files(settings.init, settings.tokenizer, "--config.tokenizer")
    check_relabelling(settings)
    if settings.cache_latents:
        check_writable(settings.cache_latents)


def check_relabelling(settings: SPMTrainSettings) -> None:
    """Refuses a model for new labels that is missing or something else."""
    relabel = settings.relabel
    if relabel.model:
        hub.local(relabel.model)  # the toy has no plain CLIP
        check_files(relabel.model, relabel.tokenizer, "--config.relabel.tokenizer")
    if relabel.folder:
        check_writable(relabel.folder)
