"""What kind of model something is, and whether this machine can train it."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from spo_jax import toy
from spo_jax.core.config_flag import load_config, shipped_configs
from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json_object
from spo_jax.core.progress import stage
from spo_jax.core.words import counted, listed, size
from spo_jax.methods import read_settings
from spo_jax.methods.spo.memory import Sizes
from spo_jax.methods.spo.settings import SPOTrainSettings
from spo_jax.models import INDEX, families, family_module, family_of, open_pipeline
from spo_jax.parallel.mesh import check_divides, make_mesh
from spo_jax.rewards.common.preference_files import read_config, trained_on_kind
from spo_jax.run.diagnosis.rule import Finding
from spo_jax.weights import hub, kinds
from spo_jax.work.doctor.machine import device_memory, host_memory
from spo_jax.work.doctor.memory import Need, compiled, estimated, sizes_of
from spo_jax.work.doctor.section import Section
from spo_jax.work.doctor.weights_file import SUFFIXES, weights_files, weights_of

_NO_PIPELINE = (kinds.LORA, kinds.LOHA, kinds.LOKR, kinds.AUTOENCODER, kinds.NETWORK, kinds.CLIP)
# What is no text-to-image model, by a word in its description, and what it is good for.
_USES = {
    "the folder of a run": "--run reads its curves; spo_jax.sample takes it as --lora, spo_jax.export as --run.",
    "LoRA": "spo_jax.sample takes it as --lora, spo_jax.export as --run.",
    "utoencoder": "It is a part of a model: --config.vae takes its folder.",
    "preference model": "SPO takes it as its judge, --config.spm.model; spo_jax.evaluate_spm measures it.",
    "latent reward": "LPO takes it as its judge, --config.spo.reward=lrm:FOLDER; spo_jax.evaluate_spm measures it.",
    "CLIP": "A preference model starts from it, --config.init of method spm.",
    "diffusers": "It is a part of a model: name the folder that holds all parts.",
}
_UNSUPPORTED = ", which is not supported yet"


def examine_model(model: str, revision: str, config: str, compile_it: bool, base: str = "") -> Section:
    """Says what a model is and, if it is a text-to-image model, which trainings of it fit the devices here.

    Args:
      model: folder, file, hub id or ``toy``.
      revision: revision of the hub id.
      config: the training that it should fit; empty for all shipped ones of its kind.
      compile_it: whether to compile that training instead of estimating its memory.
      base: folder or hub id that lends a single file its tokenizers and scheduler.

    Raises:
      UserError: there is no such model, or it is damaged; or the config is none of SPO.
    """
    path = toy.ASSETS / "pipeline" if model == toy.NAME else hub.local(model)
    facts: dict[str, str] = {}
    if path is not None:
        weights = weights_of(weights_files(path))
        facts = {"where": str(path), **weights.facts()}
        what = _other_than_a_pipeline(path)
        if what:
            data = {"what": what, **weights._asdict()}
            return Section("model", f"{model} is {what}", facts, [_use_of(what)], data)
    with stage(f"reading the configs of {model}"):
        pipeline = open_pipeline(model, revision=revision or None, base=base, abstract=True)
    count = sum(leaf.size for leaf in jax.tree.leaves(pipeline.params))
    trained = sum(leaf.size for leaf in jax.tree.leaves(pipeline.params[pipeline.TRAINED]))
    facts |= {"parameters": f"{count / 1e6:,.1f} million, of which {trained / 1e6:,.1f} in its {pipeline.TRAINED}"}
    facts |= {"image size": "{} x {} pixels".format(*pipeline.image_size)}
    facts |= pipeline.facts() if hasattr(pipeline, "facts") else {}
    form = "on the hub" if path is None else "one file" if path.is_file() else "a folder"
    findings, needs = _trainings(
        {"model": model, "revision": revision, "base": base}, pipeline.kind, config, compile_it
    )
    numbers = weights._asdict() if path is not None else {}
    numbers |= {"kind": pipeline.kind, "parameters": count, "trained_parameters": trained}
    data = {**numbers, "image_size": pipeline.image_size, "trainings": needs}
    return Section("model", f"{model} is a text-to-image model, {form}", facts, findings, data)


def _use_of(what: str) -> Finding:
    """Says what is done with something that is none of our text-to-image models."""
    if what.endswith(_UNSUPPORTED):
        known = listed([name for family in families() for name in family_module(family, "sources").CLASSES])
        return Finding("problem", f"Models of Stable Diffusion 1.x and 2.x and of SDXL are supported: {known}.")
    return Finding(
        "note", next((text for word, text in _USES.items() if word in what), "It is no text-to-image model.")
    )


def _other_than_a_pipeline(path: Path) -> str:
    """Describes what is no text-to-image model; empty if it is one.

    Raises:
      UserError: it is no model at all.
    """
    what = kinds.describe(path)
    if path.is_file():  # families look inside when they open one
        if path.suffix not in SUFFIXES:
            raise UserError(f"--model={path} is {what}: expected a model, whose file ends in {', '.join(SUFFIXES)}")
        return what if what in _NO_PIPELINE else ""
    try:
        family_of(path)
    except UserError:
        return _judges(path) or _unsupported(path) or what
    return ""


def _unsupported(path: Path) -> str:
    """Describes a pipeline of diffusers that is of none of our families; empty for everything else."""
    if not (path / INDEX).is_file():
        return ""
    return f"a pipeline of class {read_json_object(path / INDEX).get('_class_name')}{_UNSUPPORTED}"


def _judges(path: Path) -> str:
    """Describes a preference model by the kind of model that it judges; empty for everything else."""
    try:
        config, _ = read_config(path)
    except UserError:
        return ""
    names = {"sd": "Stable Diffusion 1.x and 2.x", "sdxl": "SDXL"}
    trained_on = names.get(trained_on_kind(path, config))
    return f"a preference model for {trained_on}" if trained_on else ""


# Whether training fits


def _trainings(
    names: Mapping[str, str], kind: str, config: str, compile_it: bool
) -> tuple[list[Finding], list[Mapping[str, Any]]]:
    """Says of each config whether it fits; also returns its numbers."""
    memory, of = _memory()
    findings, numbers = [], []
    sizes: dict[Any, Sizes] = {}  # by the judges
    for name, shipped in _configs(names["model"], kind, config).items():
        settings = dataclasses.replace(shipped, **names)
        judges = (settings.spm, *settings.spo.reward_names)
        try:
            mesh = make_mesh(settings.mesh, jax.local_devices())
            for field, count in settings.batch_sizes().items():
                check_divides(field, count, mesh)
            if compile_it:
                with stage(f"compiling {name}"):
                    need = compiled(settings)
            else:
                sizes[judges] = sizes.get(judges) or sizes_of(settings)
                need = estimated(settings, sizes[judges], mesh.size, mesh.devices.flat[0].platform)
        except UserError as error:
            findings.append(Finding("note", f"{error}.", rule=name))
            continue
        findings.append(_finding(name, need, memory, of, compile_it))
        numbers.append({"config": name, **need._asdict(), "memory": memory, "fits": need.fits(memory)})
    if numbers and not compile_it:
        text = (
            "These are estimates by a formula that follows the compilers for TPUs (docs/machines.md). --compile asks "
            "the compiler of the devices here."
        )
        findings.append(Finding("note", text))
    return findings, numbers


def _configs(model: str, kind: str, config: str) -> dict[str, SPOTrainSettings]:
    """Returns the settings of the config that is named, or of all shipped ones for models of this kind.

    Raises:
      UserError: the config that is named is of another method.
    """
    found = {name: read_settings(load_config(name)) for name in ([config] if config else shipped_configs())}
    if config and not isinstance(found[config], SPOTrainSettings):
        raise UserError(f"--config={config}: expected one of method 'spo', found {found[config].method!r}")
    if config:
        return found
    of_spo = {name: settings for name, settings in found.items() if isinstance(settings, SPOTrainSettings)}
    # What other commands make first, a model or a judge, is not there to be looked at.
    made = ("runs/", "build/")
    there = {n: s for n, s in of_spo.items() if not s.model.startswith(made) and not s.spm.model.startswith(made)}
    if model == toy.NAME:
        return {name: settings for name, settings in there.items() if settings.model == toy.NAME}
    kind_of = functools.cache(lambda name: open_pipeline(name, abstract=True).kind)
    return {n: s for n, s in there.items() if s.model != toy.NAME and kind_of(s.model) == kind}


def _memory() -> tuple[int, str]:
    """Returns the bytes of one device, and its name."""
    device = jax.local_devices()[0]
    total, _ = device_memory(device)
    devices = jax.local_device_count()
    several = f", one of {counted(devices, 'device')} that share the batch" if devices > 1 else ""
    return (total, f"{device.device_kind}{several}") if total else (host_memory()[0], "the host's memory")


def _finding(name: str, need: Need, memory: int, of: str, is_exact: bool) -> Finding:
    ends = dict.fromkeys((size(need.least), size(need.most)))
    takes = ("" if is_exact else "about ") + " to ".join(ends)
    text = f"takes {takes} of {size(memory)} ({of})"
    fits = need.fits(memory)
    if fits:
        return Finding("good", f"fits: {text}.", rule=name)
    lower = "Lower spo.train_chunk and spo.decode_chunk (the same numbers but for rounding), then prompts_per_batch."
    if fits is None:
        return Finding("note", f"may fit: {text}.", f"--compile --config={name} says so. {lower}", rule=name)
    return Finding("problem" if is_exact else "note", f"does not fit: {text}.", lower, rule=name)
