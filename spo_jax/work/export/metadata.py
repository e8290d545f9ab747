"""What web UIs and model sites read in the header of a LoRA file in kohya's format.

Two vocabularies are in use: ``ss_*``, which kohya's trainer (sd-scripts) writes, and ``modelspec.*``, Stability AI's
model metadata standard, version 1.0.1 as kohya's trainer writes it. Values are texts. What is not known is left out.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from absl import logging

from spo_jax import toy
from spo_jax.core.errors import UserError
from spo_jax.models import families, family_module
from spo_jax.models.base import Pipeline
from spo_jax.models.lora import names_of
from spo_jax.run.report.images import ImagePair
from spo_jax.weights.lora import BaseVersion
from spo_jax.work.export.licences import licence_of
from spo_jax.work.export.preview import thumbnail
from spo_jax.work.export.source import Base, RunRecord, Source

_PRECISIONS = {"float32": "no", "bfloat16": "bf16"}
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}


def kohya_metadata(
    source: Source, title: str, pairs: Sequence[ImagePair], author: str = "", license: str = ""
) -> dict[str, str]:
    """Returns the metadata of a LoRA file, without the hashes of its tensors.

    Args:
      source: the LoRA.
      title: name of the file, which web UIs show and by which prompts call it.
      pairs: images before and after training; may be empty.
      author: name of its author; empty leaves it out.
      license: its licence; empty takes that of a base model whose licence is known.
    """
    known = base_facts(source.base)
    modules = source.lora.modules()
    widths = {name: lora_a.shape[0] for name, (lora_a, _) in modules.items()}
    version = names_of(widths).base_version(widths, known.get("prediction"))
    values = _trainer_values(source, title, version)
    values |= _spec_values(source, title, version, known, pairs, author, license)
    return {key: str(value) for key, value in values.items() if value not in (None, "")}


def base_facts(base: Base) -> dict[str, Any]:
    """Returns ``size`` (height, width) and ``prediction`` of a base model whose configs are at hand without a network.

    It is empty for others, because a LoRA is exported without its base model.
    """
    try:
        pipeline = _configs_at_hand(base)
    except UserError as error:
        logging.warning("nothing is said about the base model's image size, because it cannot be read: %s", error)
        return {}
    if pipeline is None:
        return {}
    return {"size": pipeline.image_size, "prediction": getattr(pipeline.process(1), "prediction_type", None)}


def _configs_at_hand(base: Base) -> Pipeline | None:
    """Opens a base model without its weights if it is a folder or its configs are known."""
    if base.model == toy.NAME or (base.model and Path(base.model).is_dir()):
        return base.open(abstract=True)
    how = {"dtype": jnp.float32, "remat": False, "mesh": None}
    found = (family_module(family, "pipeline").load_published(base.model, **how) for family in families())
    return next((pipeline for pipeline in found if pipeline is not None), None)


def model_name(model: str) -> str:
    """Returns the name of a base model without the folders of this machine."""
    return Path(model).name if Path(model).exists() else model


def _trainer_values(source: Source, title: str, version: BaseVersion | None) -> dict[str, Any]:
    """Returns kohya's entries; the file itself has alpha = rank."""
    rank = source.lora.rank
    values = {
        "ss_output_name": title,
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": float(rank),
        "ss_sd_model_name": model_name(source.base.model),
    }
    if version:
        values |= {"ss_base_model_version": version.kohya, "ss_v2": version.kohya.startswith("sd_v2")}
    return values | (_run_values(source.record, source.strength) if source.record else {})


def _run_values(record: RunRecord, strength: float) -> dict[str, Any]:
    settings = record.settings
    optimizer = settings.optimizer
    schedule = optimizer.schedule
    if schedule == "constant" and optimizer.warmup_steps:
        schedule = "constant_with_warmup"
    betas = f"betas=({optimizer.adam_beta1}, {optimizer.adam_beta2}), eps={optimizer.adam_epsilon}"
    moments = {key: record.summary[key] for key in ("started", "finished") if key in record.summary}
    comment = f"method {settings.method} of spo_jax, {record.step} batches; trained without trigger words"
    return {
        "ss_learning_rate": optimizer.learning_rate,
        "ss_unet_lr": optimizer.learning_rate,
        "ss_lr_scheduler": schedule,
        "ss_lr_warmup_steps": optimizer.warmup_steps,
        "ss_optimizer": f"AdamW({betas}, weight_decay={optimizer.weight_decay})",
        "ss_max_grad_norm": optimizer.max_grad_norm,
        "ss_gradient_accumulation_steps": optimizer.gradient_accumulation_steps,
        "ss_gradient_checkpointing": settings.remat,
        "ss_mixed_precision": _PRECISIONS[settings.dtype],
        "ss_seed": settings.seed,
        "ss_steps": record.updates(),
        "ss_num_epochs": _epochs(settings),
        "ss_training_comment": comment + (f"; strength {strength:g} is folded in" if strength != 1 else ""),
        **{f"ss_training_{key}_at": datetime.fromisoformat(text).timestamp() for key, text in moments.items()},
    }


def _epochs(settings: Any) -> int | None:
    """Returns the passes over the data of a method that counts them, unless a limit may have ended the run earlier."""
    return None if getattr(settings, "max_batches", 0) else getattr(settings, "num_epochs", None)


def _spec_values(
    source: Source,
    title: str,
    version: BaseVersion | None,
    known: dict[str, Any],
    pairs: Sequence[ImagePair],
    author: str,
    license: str,
) -> dict[str, Any]:
    """Returns the model spec's entries; there are none if the architecture, which it requires, has no name."""
    base = source.base.model
    if version is not None:
        architecture, implementation = version.spec, version.implementation
    elif base == toy.NAME:  # an architecture of our own, whose modules have diffusers' names
        architecture, implementation = f"spo_jax-{toy.NAME}", "diffusers"
    else:
        return {}
    licence = licence_of(base, license)
    record = source.record
    size = known.get("size")
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": implementation,
        "modelspec.title": title,
        "modelspec.resolution": f"{size[1]}x{size[0]}" if size else None,
        "modelspec.description": description(source),
        "modelspec.author": author,
        "modelspec.date": record.summary.get("finished") if record else None,
        "modelspec.license": licence.name if licence else None,
        "modelspec.prediction_type": _PREDICTIONS.get(known.get("prediction")),
        "modelspec.thumbnail": thumbnail(pairs) if pairs else None,
    }


def description(source: Source) -> str:
    """Says in a sentence what a LoRA is."""
    base = f" of {model_name(source.base.model)}" if source.base.model else ""
    if source.record is None:
        return f"A LoRA{base}."
    learned = _LEARNED.get(source.record.settings.method, f"by the method {source.record.settings.method}")
    return f"A LoRA{base}, trained {learned} with spo_jax. It has no trigger words: it works with every prompt."


_LEARNED = {
    "spo": "by step-by-step preference optimisation (SPO) on images that the model drew itself, judged at every step,",
    "diffusion_dpo": "by direct preference optimisation (Diffusion-DPO) on pairs of images of which one was preferred",
    "finetune": "by plain fine-tuning on images with captions",
}
