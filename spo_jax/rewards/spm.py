"""The score of a step-aware preference model (SPM), which is a CLIP with the diffusion timestep as an input.

``spm`` scores finished images at timestep 0, and clean predictions in rollouts at the timestep from which they were
made. ``spm@401`` scores everything at timestep 401, which shows what the model wants of predictions that early. The
score is exp(logit_scale) · cos(image, text).
"""

from spo_jax.core.errors import UserError
from spo_jax.rewards.common.preference_files import check_files, local_model, tokenizer_of
from spo_jax.rewards.common.protocol import Context, Reward

VARIANTS = range(1000)  # the timesteps of Stable Diffusion's training schedule, on which the SPM was trained


def load(source: str, context: Context) -> Reward:
    """Loads the preference model.

    Args:
      source: folder, file, hub id, one file of a hub repository, or ``toy``; if empty, the fields ``model`` and
        ``tokenizer`` of ``context.options``. The authors' files get their tokenizer from the hub.
      context: where and how to load it.

    Raises:
      UserError: no preference model is named, it cannot be read, or was trained on another kind of model.
    """
    from spo_jax.rewards.common.preference_model import load_spm  # imports jax, which `check` does without
    from spo_jax.rewards.common.spm_reward import SPMReward

    name = _name(source, context)
    tokenizer = tokenizer_of(source) if source else context.options.get("tokenizer", "")
    model = load_spm(
        name,
        tokenizer=tokenizer or None,
        dtype=context.dtype,
        mesh=context.mesh,
        judges=context.kind,
        abstract=context.abstract,
        flags=(context.flag, "") if source else ("--config.spm.model", "--config.spm.tokenizer"),
    )
    return SPMReward(model, name, int(context.variant) if context.variant else None)


def check(source: str, context: Context) -> None:
    """Refuses a preference model that is missing or something else, as far as that shows without the network."""
    tokenizer = tokenizer_of(source) if source else context.options.get("tokenizer", "")
    name = _name(source, context)
    if not source:
        _check_named(name)
    check_files(name, tokenizer, "" if source else "--config.spm.tokenizer")


def _check_named(name: str) -> None:
    """Refuses the model of a field, which the user may never have seen, by a message that names the field."""
    try:
        local_model(name)
    except UserError as error:
        raise UserError(
            f"--config.spm.model={name}: {error}; if a file of configs/ names it, the first lines there have the "
            "command that makes it"
        ) from error


def _name(source: str, context: Context) -> str:
    name = source or context.options.get("model", "")
    if not name:
        raise UserError(f"{context.where} = 'spm': name the preference model, as in spm:FOLDER_OR_ID")
    return name
