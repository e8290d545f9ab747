"""The work of `spo_jax.build_toy.people`: draws the images, labels the pairs and prepares them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spo_jax.build_toy.earlier import write_earlier
from spo_jax.build_toy.people_images import Plan, draw_images, make_plan
from spo_jax.core.errors import UserError
from spo_jax.core.files import write_json
from spo_jax.core.progress import stage
from spo_jax.core.statistics import mean_and_error
from spo_jax.core.typing import Float, UInt8
from spo_jax.data.preferences.check import RawPair
from spo_jax.data.preferences.sources.toy import PROMPTS, TIE, as_png
from spo_jax.data.preferences.writer import prepare_split, preparing
from spo_jax.models import open_pipeline
from spo_jax.models.base import Pipeline
from spo_jax.toy import annotators, truth, world
from spo_jax.toy.annotators import Annotators, Labels, Measures
from spo_jax.weights.digest import weights_digest

FIGURES = "figures.json"
Figures = dict[str, dict[str, float | None]]


def make_pairs(out: Path, counts: Mapping[str, int], seed: int, model: str, earlier: str) -> dict[str, Figures]:
    """Does what `spo_jax.build_toy.people.people` does, after its checks.

    Args:
      out: folder to write.
      counts: number of pairs by split.
      seed: seed of everything that is drawn.
      model: the pipeline.
      earlier: folder of the earlier checkpoint; if empty, it is trained.

    Returns:
      How the annotators agree, by split.

    Raises:
      UserError: as `spo_jax.build_toy.people.people`.
    """
    models = _open_models(out / "work", model, earlier)
    bound = {name: _digest(pipeline) for name, pipeline in models.items()}
    plans = {}
    images = {}
    for number, (split, count) in enumerate(counts.items()):
        plans[split] = make_plan(seed, number, count, PROMPTS[split])
        images[split] = draw_images(out / "work" / f"images-{split}.npy", plans[split], models, bound, split)
    # The same people judge both splits. What they see differ is what the training pairs show.
    measured = {}
    labels = {}
    people = None
    for number, split in enumerate(counts):
        with stage(f"judging {split}"):
            first, second = (_measures(plans[split], images[split][:, side]) for side in (0, 1))
            if people is None:
                people = annotators.draw_annotators(
                    (seed, 10), {name: np.concatenate([first[name], second[name]]) for name in first}
                )
            labels[split] = _labels(seed, number, people, plans[split], images[split], first, second)
            figures = annotators.figures((seed, 12, number), people, first, second, *labels[split].values())
        measured[split] = {
            name: dict(zip(("value", "error"), mean_and_error(values), strict=True)) for name, values in figures.items()
        }
    origin = {"dataset": "toy_people", "seed": seed, **bound}
    for kind in ("people", "exact"):
        source = JudgedPairs(origin | {"labels": kind}, plans, images, {s: labels[s][kind] for s in counts})
        with preparing(out / kind):
            for split in counts:
                prepare_split(source, split, out / kind)
    write_json(out / FIGURES, measured)
    return measured


def _open_models(work: Path, model: str, earlier: str) -> dict[str, Pipeline]:
    """Reads both models, of which the earlier one is trained first if there is none."""
    pipeline = open_pipeline(model)
    if pipeline.image_size != (world.SIZE, world.SIZE):
        raise UserError(f"--model={model} draws images of {pipeline.image_size}: expected a pipeline of the toy world")
    if not earlier:
        earlier = str(work / "earlier")
        if not Path(earlier).exists():
            write_earlier(Path(earlier), pipeline)
    before = open_pipeline(earlier)
    if before.latent_shape != pipeline.latent_shape:
        raise UserError(f"--earlier={earlier} has latents of another shape than --model={model}")
    return {"model": pipeline, "earlier": before}


def _digest(pipeline: Pipeline) -> str:
    return weights_digest(pipeline.params)


def _measures(plan: Plan, pixels: UInt8[np.ndarray, "n h w 3"]) -> Measures:
    return annotators.measures(_unit(pixels), plan.prompts)


def _unit(pixels: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n h w 3"]:
    """Returns stored images in [-1, 1]."""
    return pixels.astype(np.float32) / np.float32(127.5) - 1


def _labels(
    seed: int,
    number: int,
    people: Annotators,
    plan: Plan,
    images: UInt8[np.ndarray, "n 2 h w 3"],
    first: Measures,
    second: Measures,
) -> dict[str, Labels]:
    """Returns the labels by people and by the truth."""
    who = annotators.assign((seed, 11, number, 0), people, len(images))
    one, other = (truth.aesthetic(_unit(images[:, side]), plan.prompts) for side in (0, 1))
    return {
        "people": annotators.judge((seed, 11, number, 1), people, who, first, second),
        "exact": annotators.labels_of(one.astype(np.float64) - other, TIE),
    }


class JudgedPairs:
    """A `spo_jax.data.preferences.check.Source` with pairs in memory.

    Args:
      origin: what determines the pairs besides their number.
      plans: the plans by split, for their prompts.
      images: both images of each pair, by split.
      labels: the labels by split.
    """

    def __init__(
        self,
        origin: Mapping[str, Any],
        plans: Mapping[str, Plan],
        images: Mapping[str, UInt8[np.ndarray, "n 2 h w 3"]],
        labels: Mapping[str, Labels],
    ):
        self._origin = dict(origin)
        self._plans = plans
        self._images = images
        self._labels = labels

    def splits(self) -> tuple[str, ...]:
        """Returns the names of the splits."""
        return tuple(self._plans)

    def usual_splits(self) -> tuple[str, ...]:
        """Returns all splits."""
        return self.splits()

    def count(self, split: str) -> int:
        """Returns the number of pairs."""
        return len(self._images[split])

    def made_from(self, split: str) -> dict[str, Any]:
        """Returns seed, models and kind of labels, and the number of pairs."""
        return self._origin | {"pairs": self.count(split)}

    def rows(self, split: str) -> Iterator[RawPair]:
        """Yields the pairs with their images as PNG files."""
        for row, (prompt, pair, labels) in enumerate(
            zip(self._plans[split].prompts, self._images[split], self._labels[split], strict=True)
        ):
            yield RawPair(
                where=f"pair {row}",
                images=(as_png(pair[0]), as_png(pair[1])),
                caption=prompt,
                labels=tuple(labels.tolist()),
            )
