"""Draws the images that are not there yet, one contestant after the other."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from spo_jax.core.errors import UserError
from spo_jax.core.images import to_uint8
from spo_jax.core.progress import bar, say, stage
from spo_jax.core.signs import image_signs
from spo_jax.core.typing import Float, Params
from spo_jax.core.words import counted, excerpt
from spo_jax.models.drawing import read_adapter, warn_of_cuts
from spo_jax.models.sampler import Sampler, latents_of
from spo_jax.nn.lora import scaled
from spo_jax.run.lock import RunLock
from spo_jax.work.evaluate.digests import Digests
from spo_jax.work.evaluate.lineup import Entrant, Lineup, check_unchanged
from spo_jax.work.evaluate.request import Request
from spo_jax.work.evaluate.store import Store

# Rows of the seed's noise between the first and the second image of a prompt. Prompts are fewer, and rows that depend
# neither on their number nor on that of images let both grow without images being drawn anew.
_STRIDE = 1_000_000

Place = tuple[int, int]  # numbers of the prompt and of its image


def noise_row(place: Place, seed_rule: str) -> int:
    """Returns the row of the seed's noise (`latents_of`) from which an image starts.

    With one image per prompt, prompt i starts from row i, as the images of `spo_jax.sample` do.
    """
    prompt, image = place
    return image * _STRIDE + (prompt if seed_rule == "per_image" else 0)


class Painter:
    """Draws what is missing of an evaluation.

    Args:
      request: what is evaluated.
      lineup: the contestants.
      store: the folder.
      lock: its lock.
      mesh: the devices.
      digests: digests of the files from which contestants are read.
    """

    def __init__(self, request: Request, lineup: Lineup, store: Store, lock: RunLock, mesh: Mesh, digests: Digests):
        self._request = request
        self._lineup = lineup
        self._store = store
        self._lock = lock
        self._mesh = mesh
        self._digests = digests
        self._bar: tqdm | None = None

    def draw(self) -> int:
        """Draws the images; returns how many they were.

        Raises:
          UserError: an image has values that are not finite, or a file cannot be written.
        """
        entrants = [entrant for entrant in self._lineup.entrants if entrant.model is not None]
        missing = {entrant.entry.name: self._missing(entrant) for entrant in entrants}
        total = len(entrants) * len(self._request.places)
        left = sum(map(len, missing.values()))
        self._done, self._total = total - left, total
        if not left:
            return 0
        if self._done:
            say(f"{self._done} of {counted(total, 'image')} are there already")
        waiting = [entrant for entrant in entrants if missing[entrant.entry.name]]
        with contextlib.ExitStack() as self._held:
            # Contestants of one model follow each other, so that it is read once and one is in memory at a time.
            for _, group in itertools.groupby(waiting, lambda entrant: entrant.model):
                self._draw_group(list(group), missing)
        return left

    def _missing(self, entrant: Entrant) -> list[Place]:
        name, recipe = entrant.entry.name, entrant.recipe
        return [place for place in self._request.places if self._store.signs(name, recipe, *place) is None]

    def _draw_group(self, group: Sequence[Entrant], missing: dict[str, list[Place]]) -> None:
        """Draws the images of contestants that share a model."""
        request, protocol = self._request, self._request.protocol
        model = group[0].model
        with stage(f"reading {model.unet or model.model}"):
            pipeline = model.open(dtype=jnp.dtype(request.dtype), mesh=self._mesh)
        if self._bar is None:
            warn_of_cuts(pipeline, request.prompts)
        sampler = Sampler(
            pipeline,
            steps=protocol.steps,
            guidance=protocol.guidance,
            batch=min(request.batch, len(request.places)),
            solver=protocol.solver,
            latent_shape=self._lineup.latent_shape,
        )
        for entrant in group:
            lora = None
            if entrant.lora is not None:
                tree, scale = read_adapter(pipeline, entrant.lora)
                lora = scaled(tree, scale * entrant.entry.strength)  # so that one program serves all strengths
            check_unchanged(entrant, pipeline, self._digests)
            self._draw_entrant(sampler, entrant, lora, missing[entrant.entry.name])

    def _draw_entrant(self, sampler: Sampler, entrant: Entrant, lora: Params | None, places: Sequence[Place]) -> None:
        request = self._request
        name = entrant.entry.name
        changed = self._store.begin_images(name, entrant.recipe)
        if changed:
            say(f"{name} is drawn anew, and its other images stay: {changed}")
        numbers = {place: row for row, place in enumerate(request.places)}
        rows = np.array([numbers[place] for place in places])
        batches = sampler.stream(
            [request.prompts[prompt] for prompt, _ in request.places],
            self._latents,
            lora,
            rows=rows,
            guidance=entrant.guidance,
        )
        start = 0
        # Compressing a large PNG takes a good part of a second: a batch is written while the next one is drawn.
        with ThreadPoolExecutor(1) as writer:
            writing: Future | None = None
            for images in self._shown(batches, name):
                if writing is not None:
                    writing.result()
                writing = writer.submit(self._write, entrant, places[start : start + len(images)], images)
                start += len(images)
            writing.result()

    def _latents(self, rows: np.ndarray) -> Float[np.ndarray, "b h w c"]:
        protocol = self._request.protocol
        places = self._request.places
        noise = np.array([noise_row(places[row], protocol.seed_rule) for row in rows])
        return latents_of(protocol.seed, noise, self._lineup.latent_shape)

    def _shown(self, batches: Iterator[Any], name: str) -> Iterator[Any]:
        """Yields the batches; the bar begins after the first one, whose compilation it would take for the speed."""
        if self._bar is None:
            with stage("compiling, and drawing the first images"):
                first = next(batches)
            self._bar = self._held.enter_context(bar("images", self._total, "image", initial=self._done))
            batches = itertools.chain([first], batches)
        self._bar.set_postfix_str(name, refresh=False)
        yield from batches

    def _write(self, entrant: Entrant, places: Sequence[Place], images: Float[np.ndarray, "b H W 3"]) -> None:
        """Writes a batch; the finite images of one with others are kept."""
        self._lock.check()
        name = entrant.entry.name
        finite = np.isfinite(images).all((1, 2, 3))
        signs = image_signs(images)
        pixels = to_uint8(np.where(finite[:, None, None, None], images, 0))
        for row, place in enumerate(places):
            if finite[row]:
                measured = {sign: float(values[row]) for sign, values in signs.items()}
                self._store.write_image(name, entrant.recipe, *place, pixels[row], measured)
        if not finite.all():
            prompt, image = places[int(np.argmin(finite))]
            raise UserError(
                f"contestant {name}: image {image} of prompt {prompt} ({excerpt(self._request.prompts[prompt])}) has "
                f"values that are not finite, with guidance {entrant.guidance:g}: check the guidance and the LoRA's "
                "strength, and try --dtype=float32"
            )
        self._bar.update(len(images))


def memory_advice(batch: int, dtype: str) -> str:
    """Says which flags to change if memory does not suffice."""
    lower = (["--batch"] if batch > 1 else []) + ["--size"]
    return f"lower {' or '.join(lower)}" + (", or set --dtype=bfloat16" if dtype == "float32" else "")
