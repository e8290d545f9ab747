"""The score of a latent reward model (LRM): a diffusion model's own first half, which judges noisy latents.

It is the judge of Latent Preference Optimization (arXiv 2502.01051), which is SPO with ``spo.judged = "noisy"``:
nothing is decoded, and no prediction of a clean image is made to be judged. ``lrm:FOLDER`` reads a folder in the
published layout, ``lrm:OWNER/NAME/FOLDER`` a folder of a repository on the hub, and ``lrm:toy_people`` the toy's. The
published models are for SD 1.5 and SDXL. The tokenizer is transformers 4's with ftfy, as the authors'.

The score is exp(logit_scale) · cos(latents, prompt). The published code guides the features of the middle block by
those of the empty prompt; the variants are its other ways to compute them from the same weights.
"""

from spo_jax.core.errors import UserError
from spo_jax.rewards.common.lrm_files import check_fits, check_source, local_folder, open_source, published_config
from spo_jax.rewards.common.protocol import NOISY, Context, Reward

READS = NOISY
VARIANTS = {
    "unguided": "without guidance, at half the cost",
    "all_scales": "with guidance of the down blocks too",
}
_OPTIONS = {"": {}, "unguided": {"guidance_scale": 1.0}, "all_scales": {"guides_all": True}}


def load(source: str, context: Context) -> Reward:
    """Loads the model.

    Args:
      source: folder, hub id, or ``OWNER/NAME/FOLDER`` on the hub.
      context: where and how to load it, and what it has to judge.

    Raises:
      UserError: no model is named, it cannot be read, or it judges other latents than those of ``context``.
    """
    # These import jax, which `check` does without.
    from spo_jax.rewards.common.latent_weights import abstract_model, read_model
    from spo_jax.rewards.common.lrm_reward import LatentReward

    _check_named(source, context)
    options = _OPTIONS[context.variant]
    if context.abstract and local_folder(source) is None:
        folder, config = None, published_config(source, context.kind or "sd")
        check_fits(config, context)
    else:
        folder, config = open_source(source, context)
    if context.abstract:
        read = abstract_model(config, context.dtype, context.mesh, folder, **options)
    else:
        read = read_model(folder, config, context.dtype, context.mesh, **options)
    return LatentReward(read, source, context.variant)


def check(source: str, context: Context) -> None:
    """Refuses a model that is missing or something else, as far as that shows without jax and the network."""
    _check_named(source, context)
    check_source(source, context)


def _check_named(source: str, context: Context) -> None:
    if not source:
        raise UserError(f"{context.where} = 'lrm': name the latent reward model, as in lrm:FOLDER_OR_ID")
