"""The contestants, checked against the model: what draws their images, and the recipe that binds images to it."""

import dataclasses
from collections.abc import Sequence
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
from spo_jax.work.evaluate.entries import Entry
from spo_jax.work.evaluate.request import Request
from spo_jax.work.evaluate.result import Contestant
from spo_jax.work.evaluate.store import Recipe

LIBRARIES = ("spo_jax", "jax", "jaxlib", "flax")  # those whose versions change what is drawn
_TEXT_PARTS = ("tokenizer", "tokenizer_2", "scheduler")


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


@dataclasses.dataclass(frozen=True)
class Entrant:
    """A contestant that can be drawn, or whose images are there.

    Attributes:
      entry: what the user named.
      guidance: guidance scale; None if its images were made elsewhere.
      model: what draws its images; None if they were made elsewhere.
      lora: file of its LoRA; None for none.
      recipe: what its images are bound to; None if they were made elsewhere.
    """

    entry: Entry
    guidance: float | None
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
    base = Model(request.model, request.revision, request.base, request.vae)
    opening = _Opening(request, base, digests)
    side = request.protocol.size
    try:
        shape = opening.pipeline.latent_shape_of(side, side)
    except UserError as error:
        raise UserError(str(error).replace("--height", "--size")) from error
    size = (shape[0] * opening.pipeline.downscale, shape[1] * opening.pipeline.downscale)
    check_pixels(f"--batch={request.batch}", request.batch, size)
    entrants = [opening.entrant(entry, size) for entry in request.entries]
    return Lineup(entrants, opening.pipeline.kind, shape, size)


class _Opening:
    """Opens contestants one by one; a model or LoRA that several of them share is opened once.

    Args:
      request: what is evaluated.
      base: the model that is evaluated.
      digests: digests of files.

    Attributes:
      pipeline: the model with shapes in place of its weights.
    """

    def __init__(self, request: Request, base: Model, digests: Digests):
        self._request = request
        self._base = base
        self._digests = digests
        self.pipeline = self._open(base)
        self._read = {base: _files(base, self.pipeline, digests)}
        self._loras: dict[str, Path] = {}

    def _open(self, model: Model) -> Pipeline:
        return model.open(dtype=jnp.dtype(self._request.dtype), abstract=True)

    def entrant(self, entry: Entry, size: tuple[int, int]) -> Entrant:
        """Checks one contestant, whose images have this (height, width)."""
        if entry.kind == "images":
            return Entrant(entry, None)
        try:
            model = self._merged(entry) if entry.kind == "merged" else self._base
            lora = self._lora(entry.source) if entry.kind == "lora" else None
        except UserError as error:
            raise UserError(f"--{entry.kind} {entry.group}: {error}") from error
        guidance = self._request.protocol.guidance_for(self.pipeline.kind, entry.group)
        values = self._read[model] | _recipe(self._request, guidance, size)
        if lora is not None:
            values |= {"lora": self._digests.of_lora(lora), "strength": entry.strength}
        return Entrant(entry, guidance, model, lora, Recipe.of(values))

    def _lora(self, source: str) -> Path:
        if source not in self._loras:
            file = find_lora(source)
            read_lora(file, self.pipeline.params[self.pipeline.TRAINED])
            self._loras[source] = file
        return self._loras[source]

    def _merged(self, entry: Entry) -> Model:
        """Returns the model of a merged contestant: a whole one, or a UNet in the model that is evaluated."""
        if is_unet_alone(entry.source):
            model = self._base._replace(unet=entry.source)
        else:
            model = Model(entry.source, base=self._base.base, vae=self._base.vae)
        if model not in self._read:
            pipeline = self._open(model)
            self._check_alike(pipeline)
            self._read[model] = _files(model, pipeline, self._digests)
        return model

    def _check_alike(self, other: Pipeline) -> None:
        """Refuses a model whose images cannot start from the same noise."""
        ours = self.pipeline
        pairs = (("kind", other.kind, ours.kind), ("latents", other.latent_shape, ours.latent_shape))
        for what, theirs, expected in pairs:
            if theirs != expected:
                raise UserError(
                    f"{other.folder} is another kind of model than {self._request.model} ({what} {theirs}, expected "
                    f"{expected}), and contestants start from the same noise: evaluate it by itself, and give its "
                    "images with --images"
                )


def check_unchanged(entrant: Entrant, pipeline: Pipeline, digests: Digests) -> None:
    """Refuses to draw from files that are others than those to which the images would be bound.

    Hours may lie between the look at a contestant and its turn, in which a run may have written another LoRA.

    Args:
      entrant: a contestant that is about to be drawn.
      pipeline: its model, which has just been read like its LoRA.
      digests: digests of files.

    Raises:
      UserError: a file was replaced.
    """
    found = _files(entrant.model, pipeline, digests)
    if entrant.lora is not None:
        found["lora"] = digests.of_lora(entrant.lora)
    for what, digest in found.items():
        if entrant.recipe.values[what] != digest:
            raise UserError(
                f"contestant {entrant.entry.name}: files of its {what} were replaced since this evaluation began: "
                "start it again, and it is drawn from the new ones; what is finished stays"
            )


def _files(model: Model, pipeline: Pipeline, digests: Digests) -> dict[str, str]:
    """Returns the digests of everything that is read of a model."""
    path = resolve(model.model, model.revision or None)
    parts = family_module(family_of(path), "parts")
    found = {"model": digests.of_model(path)}
    text = getattr(pipeline, "base", None)  # where a single file's tokenizers and scheduler lie
    if text is not None and text != path:
        found["base"] = digests.of_model(text, _TEXT_PARTS)
    if model.vae:
        found["vae"] = digests.of_model(parts.open_vae(model.vae).path)
    if model.unet:
        found["unet"] = digests.of_model(parts.open_unet(model.unet).path)
    return found


def _recipe(request: Request, guidance: float, size: tuple[int, int]) -> dict[str, Any]:
    """Returns everything that decides on a contestant's images besides prompt, noise, model and LoRA."""
    protocol = request.protocol
    versions = library_versions()
    return {
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
