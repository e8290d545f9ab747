"""Names of earlier versions: the message that refuses an old command gives the new name, and old curves are read."""

from pathlib import Path

COMMANDS = {
    "train_spm": "train",
    "embedded.build": "build_toy.build",
    "embedded.gates": "build_toy.gates",
    "embedded.tiny_sdxl": "build_toy.toy_sdxl",
}
CONFIG_FILES = {"tiny": "toy", "tiny_sdxl": "toy_sdxl", "spm_tiny": "spm_toy"}
# Values of the flags and fields below; a value may also be the part before a colon.
VALUES = {"embedded": "toy", "scenes": "toy"}
_WITH_VALUES = {
    "model", "spm", "dataset", "prompts", "spm.model", "spm.tokenizer", "init", "tokenizer", "eval.prompts",
    "eval.reward", "eval.rewards", "spo.reward", "relabel.model", "vae", "base",
}  # fmt: skip
_OPTIMIZER = (
    "learning_rate", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm",
    "gradient_accumulation_steps", "warmup_steps",
)  # fmt: skip
FIELDS = {
    "log.sample_every": "log.eval_every",
    "log.sample_pictures": "eval.grid_images",
    "eval.pictures": "eval.images",
    "eval.reward": "eval.rewards",
    **{f"spo.{name}": f"optimizer.{name}" for name in _OPTIMIZER},
    **{name: f"optimizer.{name}" for name in _OPTIMIZER},
    # Only the settings of preference models had this field at the top.
    "num_steps": "train_steps",
}
# Curves, or groups of them. Those of an earlier run are read by their new names.
CURVES = {"spm_score": "judge_score", "spm_gap": "judge_gap"}


def renamed_curve(name: str) -> str:
    """Returns the present name of a curve such as ``spm_score/t0501``, which may be its name of an earlier version."""
    group, slash, series = name.partition("/")
    return f"{CURVES.get(group, group)}{slash}{series}"


def renamed_value(name: str, value: str) -> str | None:
    """Returns the new form of a value such as ``embedded:train``; None if it was not renamed, or a file has its name.

    Args:
      name: name of the flag or field.
      value: its value.
    """
    head, colon, rest = value.partition(":")
    if name not in _WITH_VALUES or head not in VALUES or Path(value).exists():
        return None
    return f"{VALUES[head]}{colon}{rest}"
