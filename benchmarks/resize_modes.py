"""Measures how far the resizes of HPSv2's preprocessing differ: ``python -m benchmarks.resize_modes``.

The original resizes tensors, and whether with antialiasing depends on the torchvision that is installed. The rewards
``hpsv2`` and ``hpsv21`` have both modes and Pillow's by name. Measured are

- pixels: differences in the network's input at 224 pixels, in grey levels of 255, on photographs of installed packages
  (scikit-image has most of them) and on dead leaves, of 512, 768 and 1024 pixels;
- scores of HPS v2.1's network at its true size, CLIP ViT-H/14, with random weights: 100 · cos of one prompt;
- scores of a network that has learned to judge: the preference model of the toy at t = 0, on scenes of the toy that
  are drawn as many times larger than its input as images of 512, 768 and 1024 pixels are than 224.

Score differences stand beside the deviation of the score over images, because a random network's scores have no scale.
The published weights are needed to say how far the modes differ in points of HPS v2.1; with them, `spo_jax.evaluate`
scores a folder of images in all modes: ``--rewards hpsv21@antialias,hpsv21@no_antialias,hpsv21@pil``.
"""

import datetime
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from benchmarks.common import RESULTS, device_info
from benchmarks.natural_images import dead_leaves, photographs
from spo_jax.core.cli import run_command
from spo_jax.core.files import check_writable, write_json, write_text
from spo_jax.core.typing import Array, Float, Params, UInt8
from spo_jax.nn.clip import CLIPModel
from spo_jax.parallel.mesh import MeshSettings, make_mesh
from spo_jax.rewards.common.clip_score import CLIP_MEAN, CLIP_STD, unit_norm
from spo_jax.rewards.common.hps import PIXELS
from spo_jax.rewards.common.hps_files import PUBLISHED_SIZES
from spo_jax.rewards.common.preference_model import load_spm
from spo_jax.run.versions import versions
from spo_jax.toy import world

SIZES = (512, 768, 1024)
SIDE = 224  # of CLIP ViT-H/14
PAIRS = (("antialias", "no_antialias"), ("antialias", "pil"))
_SCENES = 256  # of the toy, for each size


def prepare(images: Sequence[UInt8[np.ndarray, "h w 3"]], side: int) -> dict[str, Float[np.ndarray, "b side side 3"]]:
    """Computes the network's input of images of one size in every mode."""
    return {
        mode: np.concatenate([_prepare(pixels, image[None].astype(np.float32) / 127.5 - 1, side) for image in images])
        for mode, pixels in PIXELS.items()
    }


@functools.partial(jax.jit, static_argnums=(0, 2))
def _prepare(pixels: Callable[..., Array], images: Array, side: int) -> Array:
    return pixels(images, side)


# Pixels


def compare_pixels(pixels: Mapping[str, Float[np.ndarray, "b s s 3"]]) -> dict[str, Any]:
    """Compares modes in grey levels of 255; also returns the share of values that are not clipped beyond [0, 1]."""
    levels = {mode: 255 * (x * np.array(CLIP_STD) + np.array(CLIP_MEAN)) for mode, x in pixels.items()}
    rows = {}
    for first, second in PAIRS:
        gap = np.abs(levels[first] - levels[second])
        rows[f"{first} and {second}"] = {
            "mean": float(gap.mean()),
            "percentile_99": float(np.percentile(gap, 99)),
            "largest": float(gap.max()),
        }
    outside = {mode: float(((x < -0.01) | (x > 255.01)).mean()) for mode, x in levels.items()}
    return {"images": len(levels["pil"]), "differences": rows, "share_out_of_range": outside}


# Scores


def compare_scores(scores: Mapping[str, Float[np.ndarray, "d b"]]) -> dict[str, Any]:
    """Compares the scores of images in d directions: mean and root mean square of the difference, and the deviation.

    The deviation is that of the first mode's score over images.
    """
    rows = {}
    for first, second in PAIRS:
        gap = scores[second] - scores[first]
        rows[f"{first} and {second}"] = {"mean": float(gap.mean()), "rms": float(np.sqrt(np.square(gap).mean()))}
    deviation = float(np.sqrt(scores["antialias"].var(axis=1, ddof=1).mean()))
    return {"images": scores["antialias"].shape[1], "differences": rows, "deviation": deviation}


class RandomHPS:
    """The vision tower of HPS v2.1 at its true size, with random weights, and random directions instead of prompts."""

    def __init__(self, seed: int = 0, directions: int = 256):
        self._rng = np.random.default_rng(seed)
        self._clip = CLIPModel(PUBLISHED_SIZES)
        pixels = jnp.zeros((1, SIDE, SIDE, 3))
        init = functools.partial(self._clip.init, method="encode_image")
        shapes = jax.eval_shape(init, jax.random.key(0), pixels)["params"]
        self._params = jax.tree_util.tree_map_with_path(self._fill, shapes)
        directions = self._rng.standard_normal((directions, PUBLISHED_SIZES.projection_dim))
        self._directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)

    def _fill(self, path: Any, leaf: jax.ShapeDtypeStruct) -> Array:
        """Draws weights that keep the variance of what they multiply; biases are 0, norms 1, embeddings of 0.02."""
        name = path[-1].key
        if name in ("bias", "scale"):
            return jnp.full(leaf.shape, float(name == "scale"))
        deviation = np.prod(leaf.shape[:-1]) ** -0.5 if name == "kernel" else 0.02
        return jnp.asarray(self._rng.standard_normal(leaf.shape, np.float32) * np.float32(deviation))

    def __call__(self, pixels: Float[np.ndarray, "b s s 3"]) -> Float[np.ndarray, "d b"]:
        """Returns 100 · cos of each direction and image."""
        features = np.concatenate([self._features(self._params, image[None]) for image in tqdm(pixels, leave=False)])
        return 100 * self._directions @ features.T

    @functools.cached_property
    def _features(self) -> Callable[..., Array]:
        def features(params: Params, pixels: Array) -> Array:
            return unit_norm(self._clip.apply({"params": params}, pixels, method="encode_image"))

        return jax.jit(features)


def toy_scores(size: int) -> dict[str, Float[np.ndarray, "1 b"]]:
    """Scores scenes of the toy, drawn larger than the toy's judge sees them, in every mode.

    Only places and sizes of shapes grow: edges are as sharp and grains as fine as pixels allow, as in any image.

    Args:
      size: side of images of which as much is left at 224 pixels as of these scenes at the judge's 32.
    """
    model = load_spm("toy")
    side = model.clip.config.vision.image_size
    large = round(side * size / SIDE)
    rng = np.random.default_rng(0)
    prompts = [world.PROMPTS[index] for index in rng.integers(len(world.PROMPTS), size=_SCENES)]
    factors = world.sample_factors(rng, _SCENES)
    for name in ("shift_x", "shift_y", "scale"):
        factors[name] = factors[name] * np.float32(large / world.SIZE)
    with mock.patch.object(world, "SIZE", large):
        images = world.render(rng, prompts, factors)
    text = unit_norm(model.clip.apply({"params": model.params}, model.tokenizer(prompts), method="encode_text"))
    scores = {}
    for mode, pixels in prepare(np.round(images * 127.5 + 127.5).astype(np.uint8), side).items():
        t = jnp.zeros(_SCENES, jnp.int32)
        image = unit_norm(model.clip.apply({"params": model.params}, jnp.asarray(pixels), t, method="encode_image"))
        scale = model.clip.apply({"params": model.params}, method="scale")
        scores[mode] = np.asarray(scale * (image * text).sum(-1))[None]
    return scores


# The results


def measure(leaves: int, scored: int) -> dict[str, Any]:
    """Measures everything.

    Args:
      leaves: number of images of dead leaves of each size.
      scored: number of images of each kind and size that the network of true size scores; 0 leaves it out.
    """
    network = RandomHPS() if scored else None
    found: dict[str, Any] = {"pixels": [], "scores": []}
    for size in SIZES:
        rng = np.random.default_rng(size)
        kinds = {
            "photographs": photographs(size),
            "dead leaves": {f"leaves {number}": dead_leaves(rng, size) for number in range(leaves)},
        }
        for kind, images in kinds.items():
            if not images:
                continue
            pixels = prepare(list(images.values()), SIDE)
            found["pixels"].append({"kind": kind, "size": size, "names": list(images)} | compare_pixels(pixels))
            if network and min(scored, len(images)) > 1:
                scores = {mode: network(x[:scored]) for mode, x in pixels.items()}
                row = {"network": "CLIP ViT-H/14, random weights", "kind": kind, "size": size}
                found["scores"].append(row | compare_scores(scores))
        row = {"network": "the toy's preference model", "kind": "scenes", "size": size}
        found["scores"].append(row | compare_scores(toy_scores(size)))
    return found


def as_markdown(found: Mapping[str, Any]) -> str:
    """Returns the tables of a results file."""
    lines = [
        "# How far the resizes of HPSv2's preprocessing differ",
        "",
        "Written by `python -m benchmarks.resize_modes`, whose first lines say what is measured.",
        "",
        "## Pixels of the network's input, in grey levels of 255",
        "",
        "| images | size | number | modes | mean difference | 99th percentile | largest |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["pixels"]:
        for modes, gap in row["differences"].items():
            numbers = f"{gap['mean']:.2f} | {gap['percentile_99']:.1f} | {gap['largest']:.0f}"
            lines.append(f"| {row['kind']} | {row['size']} | {row['images']} | {modes} | {numbers} |")
    lines += [
        "",
        "## Scores",
        "",
        "The difference is the second mode minus the first; the last column is its root mean square over the deviation",
        "of the score over images.",
        "",
        "| network | images | size | number | modes | mean difference | root mean square | over the deviation |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["scores"]:
        for modes, gap in row["differences"].items():
            numbers = f"{gap['mean']:.4f} | {gap['rms']:.4f} | {gap['rms'] / row['deviation']:.1%}"
            what = f"{row['network']} | {row['kind']} | {row['size']} | {row['images']}"
            lines.append(f"| {what} | {modes} | {numbers} |")
    return "\n".join([*lines, "", _LIMITS])


_LIMITS = """\
## What this does not show

No published weights were read. So nothing here says how many points of HPS v2.1 lie between the modes, nor whether they
are why the README of HPSv2 gives 30.63 for SDXL where others measure 28.71 on the same images. For that, the older
mode, without antialiasing, would have to score higher. The toy's judge, which looks at shapes of a toy world, scores it
lower, and a random network has learned nothing, so neither tells the direction of HPS v2.1. What they show is that the
modes differ the more, the larger images are and the more fine detail they have, from little beside the differences
between images to half of them, and that antialiasing and Pillow are nearly the same. Photographs of 768 and 1024 pixels
are few, because none is enlarged, and deviations over two or three images are rough.
"""


def main() -> None:
    """Runs the script."""
    leaves = flags.DEFINE_integer("leaves", 3, "Draw this number of images of dead leaves of each size.", lower_bound=1)
    scored = flags.DEFINE_integer(
        "scored", 3, "Score this number of images of each kind and size with CLIP ViT-H/14; 0: none.", lower_bound=0
    )
    out = flags.DEFINE_string("out", RESULTS, "Write the results to this folder.")

    def run(_: Sequence[str]) -> None:
        check_writable(out.value)
        with jax.set_mesh(make_mesh(MeshSettings())):
            about = {
                "benchmark": "resize_modes",
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "device": device_info(),
                "versions": versions(jax.sharding.get_mesh()),
            }
        found = about | {"results": measure(leaves.value, scored.value)}
        text = as_markdown(found["results"])
        write_json(Path(out.value) / "resize_modes.json", found)
        write_text(Path(out.value) / "resize_modes.md", text)
        print(text)

    run_command(run)


if __name__ == "__main__":
    main()
