"""What contestants learn from: the pairs of simulated people, and the judges that were trained on them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from benchmarks.compare_methods import work
from benchmarks.compare_methods.comparison import Labels
from benchmarks.compare_methods.stages import Stages
from benchmarks.compare_methods.training import identity
from spo_jax import load_config, read_settings, toy
from spo_jax.build_toy.clip import train_clip
from spo_jax.build_toy.people import people
from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json_object, write_json
from spo_jax.core.progress import stage
from spo_jax.core.run_files import LRM, SPM, SUMMARY
from spo_jax.core.trees import flatten
from spo_jax.core.words import differences
from spo_jax.data.preferences.format import open_preferences
from spo_jax.models import open_pipeline
from spo_jax.run.resume import Resume
from spo_jax.run.settings import RunSettings
from spo_jax.toy import LATENT_JUDGES, PREFERENCE_MODELS
from spo_jax.train import train
from spo_jax.weights.digest import weights_digest
from spo_jax.weights.store import read_file

CLIP = "clip"  # folder, beside the pairs, of the plain CLIP from which preference models start
TRAIN = "train"  # the split
TRAINED = "train"  # stands for a judge that is trained here
SHIPPED = {"people": "toy_people"}  # names of the package's judges of both kinds, by the labels that they learned from
JUDGE_CONFIG = "spm_toy_people"
LATENT_CONFIG = "lrm_toy"
_PATHS = ("model", "data_dir", "init")  # fields whose content has a digest, wherever it lies


def labels_of(name: str, base: str, data: Path, stages: Stages, judge: str) -> tuple[Labels, dict[str, Any]]:
    """Makes what learning from some labels needs: the pairs, and the preference model trained on them.

    Args:
      name: ``people`` or ``exact``.
      base: the model that is trained.
      data: folder of both sets of pairs, which are made if they are not there, as is the plain CLIP from which a
        preference model starts.
      stages: the finished stages.
      judge: the preference model: a folder or a name; `TRAINED` to train one; empty for the package's own, or one that
        is trained if it has none.

    Returns:
      The labels, and JSON values about the preference model, with the work of its training if that is known.

    Raises:
      UserError: the pairs cannot be made or read, or the preference model cannot be trained.
    """
    pairs = data / name
    if not (pairs / TRAIN).is_dir():
        people(data, model=base)
    facts = {"base": weights_digest(open_pipeline(base).params), "data": open_preferences(pairs, TRAIN).digest}
    shipped = _shipped(name)
    found: dict[str, Any] = {"config": JUDGE_CONFIG, "model": judge or shipped or TRAINED, "work": None}
    model = found["model"]
    if not judge or judge == TRAINED:
        # The shipped model has the size of the CLIP from which it started, and its training is only counted.
        settings = _judge_settings(pairs, base, _clip(data / CLIP) if model == TRAINED else model)
        about = identity(settings, {})
        costs = work.read_costs(stages.made("costs", f"judge-{name}", about, lambda: work.costs_of(settings)))
        found["work"] = work.per_batch(costs, 1.0) * settings.train_steps
    if model == TRAINED:
        model = str(_trained_judge(name, settings, facts | {"init": _digest(settings.init)}, stages))
    return Labels(name, base, str(pairs), model, facts | {"judge": _digest(model)}), found


def with_latent_judge(labels: Labels, stages: Stages) -> tuple[Labels, dict[str, Any]]:
    """Replaces the preference model by a latent reward model: the package's own, or one that is trained here.

    Args:
      labels: what `labels_of` returned.
      stages: the finished stages.

    Returns:
      As `labels_of`.

    Raises:
      UserError: the latent reward model cannot be trained.
    """
    name = labels.name
    config = load_config(LATENT_CONFIG)
    config.data_dir = labels.pairs
    config.model = labels.model
    settings = read_settings(config)
    about = identity(settings, {})
    costs = work.read_costs(stages.made("costs", f"latent-judge-{name}", about, lambda: work.costs_of(settings)))
    shipped = _shipped(name, LATENT_JUDGES)
    facts = {fact: labels.facts[fact] for fact in ("base", "data")}
    model = shipped or str(_trained_judge(f"{name}-latent", settings, facts, stages, LRM))
    found = {
        "config": LATENT_CONFIG,
        "model": shipped or TRAINED,
        "work": work.per_batch(costs, 1.0) * settings.train_steps,
    }
    return labels._replace(judge=model, facts={**labels.facts, "judge": _digest(model, LATENT_JUDGES)}), found


def _clip(folder: Path) -> str:
    """Returns the folder of the plain CLIP, which is trained if it is not there."""
    if not (folder / "model.safetensors").is_file():
        with stage("training the CLIP from which the preference model starts"):
            train_clip(folder)
    return str(folder)


def _judge_settings(pairs: Path, base: str, init: str) -> RunSettings:
    config = load_config(JUDGE_CONFIG)
    config.init = init
    config.data_dir = str(pairs)
    config.model = base
    return read_settings(config)


def _trained_judge(
    name: str, settings: RunSettings, facts: Mapping[str, str], stages: Stages, exported: str = SPM
) -> Path:
    """Trains a judge as a user does, or finds what was trained before by the same settings on the same data.

    Args:
      name: name of the judge among those of the comparison.
      settings: the settings of its training.
      facts: digests of what these name by paths, which say nothing of the content.
      stages: the finished stages.
      exported: folder of the judge in that of its run.

    Raises:
      UserError: what was trained before learned from something else, or by other settings; or as `train`.
    """
    folder = stages.folder / "judges" / name
    fields = identity(settings, {})["settings"]
    about = {"settings": {name: value for name, value in fields.items() if name not in _PATHS}, **facts}
    _check_same(folder, about, is_default=settings.model == toy.NAME)
    if not (folder / SUMMARY).is_file():
        with stage(f"training the judge {name}"):
            train(dataclasses.replace(settings), folder, Resume(if_there=True))
    return folder / exported


def _check_same(folder: Path, about: Mapping[str, Any], is_default: bool) -> None:
    """Keeps beside the folder of a judge what it learns from and how, or compares it with what is kept there.

    Judges of earlier versions have no such file. They count as made by the command's defaults, which is said once.

    Raises:
      UserError: it learned from something else or otherwise.
    """
    kept = folder.with_suffix(".json")
    before = read_json_object(kept) if kept.is_file() else None
    if before is None:
        if (folder / SUMMARY).is_file():
            if not is_default:
                raise UserError(f"{folder} holds a judge, and not what it learned from: move it away to train another")
            logging.warning("%s does not say what it learned from: it is taken for the judge of these labels", folder)
        write_json(kept, about)
        return
    there, here = ({field: str(value) for field, value in flatten(tree).items()} for tree in (before, about))
    found = differences(there, here, ("there", "here"))
    if found:
        raise UserError(f"{folder} holds a judge that learned otherwise: {found}; move it away or choose another --out")


def _shipped(labels: str, judges: Mapping[str, Path] = PREFERENCE_MODELS) -> str:
    """Returns the name of the package's judge that learned from these labels; empty if there is none."""
    name = SHIPPED.get(labels, "")
    return name if name and judges[name].is_dir() else ""


def _digest(judge: str, judges: Mapping[str, Path] = PREFERENCE_MODELS) -> str:
    """Returns a digest of a judge's weights, which may lie in several files."""
    folder = judges.get(judge, Path(judge))
    files = sorted(folder.rglob("*.safetensors"))
    if len(files) == 1:
        return weights_digest(read_file(files[0]))
    return weights_digest({str(file.parent.relative_to(folder)): read_file(file) for file in files})
