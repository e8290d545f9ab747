"""The contestants, checked against the model: what draws their images, and the recipe that binds images to it."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spo_jax.core.errors import UserError
from spo_jax.models import family_module, family_of, is_unet_alone, open_pipeline, resolve
from spo_jax.models.base import Pipeline
from spo_jax.models.drawing import check_pixels
from spo_jax.models.lora import read_lora
from spo_jax.run.versions import library_versions
from spo_jax.weights.lora import find_lora
from spo_jax.work.evaluate.digests import Digests
from spo_jax.work.evaluate.entries import BASE, Entry
from spo_jax.work.evaluate.request import Request
from spo_jax.work.evaluate.result import Contestant
from spo_jax.work.evaluate.store import Recipe

LIBRARIES = ("spo_jax", "jax", "jaxlib", "flax")  # those whose versions change what is drawn


class Model(NamedTuple):
    """A model as `spo_jax.models.open_pipeline` takes it; empty texts stand for none."""

    model: str
    revision: str = ""
    base: str = ""
    vae: str = ""
    unet: str = ""

    def open(self, **options: Any) -> Pipeline:
        """Opens it with further options of `open_pipeline`."""
        parts = {"revision": self.revision or None, "base": self.base, "vae": self.vae, "unet": self.unet}
        return open_pipeline(self.model, **parts, **options)

    def digests(self, digests: Digests) -> dict[str, str]:
        """Returns the digests of everything that is read of it."""
        path = resolve(self.model, self.revision or None)
        parts = family_module(family_of(path), "parts")
        found = {"model": digests.of_model(path)}
        if self.base:  # of which only tokenizers and the scheduler are read
            found["base"] = self.base
        if self.vae:
            found["vae"] = digests.of_model(parts.open_vae(self.vae).path)
        if self.unet:
            found["unet"] = digests.of_model(parts.open_unet(self.unet).path)
        return found


@dataclasses.dataclass(frozen=True)
class Entrant:
    """A contestant that can be drawn, or whose images are there.

    Attributes:
      entry: what the user named.
      guidance: guidance scale.
      model: what draws its images; None if they were made elsewhere.
      lora: file of its LoRA; None for none.
      recipe: what its images are bound to; None if they were made elsewhere.
    """

    entry: Entry
    guidance: float
    model: Model | None = None
    lora: Path | None = None
    recipe: Recipe | None = None

    @property
    def contestant(self) -> Contestant:
        """The contestant as results show it."""
        entry = self.entry
        return Contestant(entry.name, entry.what, entry.group, entry.strength, self.guidance)


@dataclasses.dataclass(frozen=True)
class Lineup:
    """All contestants.

    Attributes:
      entrants: the contestants, the model itself first.
      kind: `Pipeline.kind` of the model.
      latent_shape: shape (h, w, c) of the latents.
      size: (height, width) of the images in pixels.
    """

    entrants: Sequence[Entrant]
    kind: str
    latent_shape: tuple[int, int, int]
    size: tuple[int, int]


def make_lineup(request: Request, digests: Digests) -> Lineup:
    """Opens all models without their weights, and all LoRAs, so that no mistake shows after hours of drawing.

    Raises:
      UserError: the model, or a contestant, cannot be read; a contestant is of another kind than the model; or the
        images' size is none for the model.
    """
    model = Model(request.model, request.revision, request.base, request.vae)
    pipeline = model.open(dtype=jnp.dtype(request.dtype), abstract=True)
    side = request.protocol.size
    shape = pipeline.latent_shape_of(side, side)
    size = (shape[0] * pipeline.downscale, shape[1] * pipeline.downscale)
    check_pixels(f"--batch={request.batch}", request.batch, size)
    make = functools.partial(_entrant, request, pipeline, model, digests, size)
    return Lineup([make(entry) for entry in request.entries], pipeline.kind, shape, size)


def _entrant(
    request: Request, pipeline: Pipeline, base: Model, digests: Digests, size: tuple[int, int], entry: Entry
) -> Entrant:
    """Checks one contestant; ``pipeline`` has the shapes of the model ``base``."""
    if entry.kind == "images":
        return Entrant(entry, 0.0)
    try:
        model, lora = base, None
        if entry.kind == "merged":
            model = _merged(entry, base)
            other = model.open(dtype=pipeline.dtype, abstract=True)
            _check_alike(other, pipeline, request.model)
        elif entry.kind == "lora":
            lora = find_lora(entry.source)
            read_lora(lora, pipeline.params[pipeline.TRAINED])
    except UserError as error:
        if entry.name == BASE:
            raise
        raise UserError(f"--{entry.kind} {entry.group}: {error}") from error
    guidance = request.protocol.guidance_for(pipeline.kind, entry.group)
    values = _recipe(request, model.digests(digests), guidance, size)
    if lora is not None:
        values |= {"lora": digests.of_lora(lora), "strength": entry.strength}
    return Entrant(entry, guidance, model, lora, Recipe.of(values))


def _merged(entry: Entry, base: Model) -> Model:
    """Returns the model of a merged contestant: a whole one, or a UNet in the model that is evaluated."""
    if is_unet_alone(entry.source):
        return base._replace(unet=entry.source)
    return Model(entry.source, base=base.base, vae=base.vae)


def _check_alike(other: Pipeline, pipeline: Pipeline, model: str) -> None:
    """Refuses a model whose images cannot start from the same noise."""
    for name, theirs, ours in (
        ("kind", other.kind, pipeline.kind),
        ("latents", other.latent_shape, pipeline.latent_shape),
    ):
        if theirs != ours:
            raise UserError(
                f"{other.folder} is another kind of model than {model} ({name} {theirs}, expected {ours}): contestants "
                "start from the same noise; evaluate it by itself, and give its images with --images"
            )


def _recipe(request: Request, model: Mapping[str, str], guidance: float, size: tuple[int, int]) -> dict[str, Any]:
    """Returns everything that decides on a contestant's images besides prompt, noise and LoRA."""
    protocol = request.protocol
    versions = library_versions()
    return {
        **model,
        "seed": protocol.seed,
        "seed_rule": protocol.seed_rule,
        "solver": protocol.solver,
        "steps": protocol.steps,
        "guidance": guidance,
        "height": size[0],
        "width": size[1],
        "dtype": request.dtype,
        # Numbers differ between kinds of devices in their last places, and TPUs multiply in bfloat16.
        "platform": jax.default_backend(),
        "versions": {name: versions[name] for name in LIBRARIES},
    }
