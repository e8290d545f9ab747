"""Who takes part in the comparison: a config, what it learns from, and the settings by which it is tuned.

Every contestant is tuned by the same number of trials: three learning rates around that of its config, times three
variants of the settings that say how far a step of its objective may go or, for SPO, from where on it learns.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ml_collections import ConfigDict

from spo_jax import load_config, read_settings
from spo_jax.core.errors import UserError
from spo_jax.run.settings import RunSettings

RANK = 8  # of all adapters, so that one compiled sampler draws with all of them
RATES = (1 / 3, 1.0, 3.0)  # learning rates of the trials, in units of the config's own
Source = Literal["pairs", "judge", "latent judge", "truth"]
Value = int | float | str | bool
Fields = Mapping[str, Value]
Groups = Sequence[tuple[str, Sequence["Contestant"]]]  # contestants by the labels that they learn from

# Nothing is drawn or looked at while a method trains; its checkpoints are measured afterwards, all by one sampler.
_QUIET: Fields = {
    "eval.images": 2,
    "eval.grid_images": 1,
    "eval.batch": 2,
    "eval.guard": "off",
    "eval.rewards": "toy",
    "eval.prompts": "toy:held_out",
    "log.eval_every": 0,
    "log.keep_every": 0,
    "lora.rank": RANK,
    "lora.alpha": 0.0,
}


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A method with its settings.

    Attributes:
      name: its name on the command line and in results.
      title: its name in tables and figures.
      config: name of its config.
      source: what it learns from: labelled pairs, a preference model or a latent reward model that was trained on
        them, or the truth.
      variants: settings that are tried with every learning rate; empty for an ablation, which takes the settings that
        were chosen for SPO.
      fields: fields of the config that differ; ``{judge}`` stands for the judge.
      valid_share: share of its training batches that are expected to be trained on, before a trial has shown it.
    """

    name: str
    title: str
    config: str
    source: Source
    variants: tuple[Fields, ...] = ()
    fields: Fields = dataclasses.field(default_factory=dict)
    valid_share: float = 1.0

    def trials(self) -> list[Fields]:
        """Returns the settings of each trial: the fields that differ from the config."""
        own = load_config(self.config).optimizer.learning_rate
        return [
            {"optimizer.learning_rate": float(f"{own * rate:.3g}"), **variant}
            for rate, variant in itertools.product(RATES, self.variants)
        ]


def _betas(*values: float) -> tuple[Fields, ...]:
    return tuple({"dpo.beta": value} for value in values)


_CLIPS = tuple({"ddpo.clip_range": clip} for clip in (1e-4, 1e-3, 1e-2))
_DIVERTED: tuple[Fields, ...] = (
    {"spo.threshold": 0.1, "spo.divert_start_step": 11},
    {"spo.threshold": 0.3, "spo.divert_start_step": 11},
    {"spo.threshold": 0.1, "spo.divert_start_step": 5},
)
_NOISY: tuple[Fields, ...] = (
    {"spo.threshold": 0.1, "spo.threshold_high": 0.15, "spo.divert_start_step": 11},
    {"spo.threshold": 0.3, "spo.threshold_high": 0.43, "spo.divert_start_step": 11},
    {"spo.threshold": 0.1, "spo.threshold_high": 0.15, "spo.divert_start_step": 5},
)
CONTESTANTS: tuple[Contestant, ...] = (
    Contestant("diffusion_dpo", "Diffusion-DPO", "diffusion_dpo_toy", "pairs", _betas(500.0, 2000.0, 125.0)),
    Contestant("spo", "SPO", "toy", "judge", _DIVERTED, valid_share=0.6),
    Contestant("gradspo", "GradSPO", "gradspo_toy", "judge", _DIVERTED, valid_share=0.6),
    Contestant("ddpo", "DDPO", "ddpo_toy", "judge", _CLIPS),
    Contestant(
        "d3po", "D3PO", "d3po_toy", "judge",
        ({"d3po.eps": 0.1, "d3po.beta": 0.1}, {"d3po.eps": 0.3, "d3po.beta": 0.1}, {"d3po.eps": 0.1, "d3po.beta": 1.0}),
    ),
    Contestant(
        "smpo", "SmPO", "diffusion_dpo_toy", "pairs", _betas(500.0, 2000.0, 125.0),
        {"dpo.objective": "smpo", "dpo.inversion": "renoise", "dpo.reward": "spm:{judge}"},
    ),
    Contestant("mapo", "MaPO", "diffusion_dpo_toy", "pairs", _betas(0.1, 1.0, 10.0), {"dpo.objective": "mapo"}),
    Contestant(
        "lpo", "LPO", "lpo_toy", "latent judge", _NOISY, {"spo.reward": "lrm:{judge}"}, valid_share=0.6
    ),
    Contestant(
        "ddpo_truth", "DDPO by the truth †", "ddpo_toy", "truth", _CLIPS, {"ddpo.reward": "toy"}
    ),
)  # fmt: skip
ON_EXACT = ("diffusion_dpo", "spo", "gradspo")  # what is compared on exact labels too

ABLATIONS: tuple[Contestant, ...] = (
    Contestant("full", "SPO as tuned", "toy", "judge", valid_share=0.6),
    Contestant("no_step", "judge that ignores t", "toy", "judge", fields={"spo.judge_timestep": "zero"}),
    Contestant("best_parent", "best candidate continues", "toy", "judge", fields={"spo.next_parent": "best"}),
    Contestant("no_parent", "separate trajectories", "toy", "judge", fields={"spo.shared_parent": False}),
    Contestant("two", "2 candidates", "toy", "judge", fields={"spo.num_candidates": 2}, valid_share=0.4),
    Contestant("eight", "8 candidates", "toy", "judge", fields={"spo.num_candidates": 8}, valid_share=0.8),
    Contestant("all_pairs", "threshold 0", "toy", "judge", fields={"spo.threshold": 0.0}),
)


def chosen(contestants: Sequence[Contestant], names: Sequence[str]) -> list[Contestant]:
    """Returns the contestants of these names, in their own order; all of them if there are no names.

    Raises:
      UserError: there is no contestant of a name.
    """
    known = [contestant.name for contestant in contestants]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"--only={','.join(names)}: no contestant {unknown[0]!r}; expected some of {', '.join(known)}")
    return [contestant for contestant in contestants if not names or contestant.name in names]


def settings_of(contestant: Contestant, fields: Fields, seed: int, batches: int, about: Fields) -> RunSettings:
    """Returns the settings of a run.

    Args:
      contestant: the contestant.
      fields: fields of its config that a trial has chosen.
      seed: seed of the run.
      batches: its number of batches.
      about: its own fields, with its data or its judge (`source_fields`), its model, and how often it saves.

    Raises:
      UserError: there is no such config or field.
    """
    config = load_config(contestant.config)
    for name, value in {**_QUIET, **fields, **about, "seed": seed}.items():
        _set(config, name, value)
    if "train_steps" in config:
        config.train_steps = batches
    else:  # as many passes over the prompts as the batches need
        config.max_batches = batches
        config.num_epochs = max(config.num_epochs, batches * config.prompts_per_batch)
    return read_settings(config)


def source_fields(contestant: Contestant, pairs: str, judge: str) -> Fields:
    """Returns a contestant's own fields, and those that say where its data or judge are.

    Args:
      contestant: the contestant.
      pairs: folder of the prepared pairs.
      judge: the preference model or latent reward model that was trained on them.
    """
    own = {
        name: value.format(judge=judge) if isinstance(value, str) else value
        for name, value in contestant.fields.items()
    }
    return own | {"pairs": {"data_dir": pairs}, "judge": {"spm.model": judge}}.get(contestant.source, {})


def _set(config: ConfigDict, name: str, value: Any) -> None:
    """Sets a field such as ``spo.beta``.

    Raises:
      UserError: there is no such field.
    """
    *groups, field = name.split(".")
    for group in groups:
        config = config.get(group, ConfigDict())
    if field not in config:
        raise UserError(f"the config has no field {name}")
    config[field] = value
