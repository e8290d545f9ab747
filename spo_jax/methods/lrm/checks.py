"""What is checked of the training of a latent reward model before jax is imported."""

from spo_jax.core.errors import UserError
from spo_jax.core.files import check_writable
from spo_jax.methods.common.checks import check_model
from spo_jax.methods.lrm.settings import LRMTrainSettings
from spo_jax.models import kind_and_channels
from spo_jax.rewards.common.lrm_files import check_source, check_trainable
from spo_jax.rewards.common.protocol import Context
from spo_jax.weights import hub
from spo_jax.weights.kinds import describe


def check(settings: LRMTrainSettings) -> None:
    """Refuses models that are missing or something else, and folders that cannot be written.

    Raises:
      UserError: as the functions that this calls; or the CLIP is something else.
    """
    check_model(settings)
    kind, channels = kind_and_channels(settings.model)
    check_trainable(kind)
    if settings.init:
        check_source(settings.init, Context(kind, field="init", channels=channels))
    if settings.clip:
        path = hub.local(settings.clip)
        if path is not None and not (path / "config.json").is_file():
            raise UserError(
                f"config field clip = {settings.clip!r} is {describe(path)}: expected the folder of a CLIP, with "
                "config.json"
            )
    if settings.cache_latents:
        check_writable(settings.cache_latents)
