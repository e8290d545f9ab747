"""A simulated voter of a clear taste: ``python -m benchmarks.voter --taste=dark --votes=80 --out=votes``.

Pairs of images are drawn by `spo_jax.sample`, with the same prompt and different noise, and the voter says which it
prefers. What it leaves is a folder as `spo_jax.prepare --dataset=folder` reads it. A share of the votes is cast at
random, because people slip and change their minds.

The module is also a reward, so that a run reports how far it moved what the voter looks at:
``--config.eval.rewards=toy,benchmarks.voter:dark``. SPO does not see it, because it is computed on the host.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

import spo_jax
from spo_jax.core.cli import run_command
from spo_jax.core.errors import UserError
from spo_jax.core.files import check_free, local_path, write_text
from spo_jax.core.typing import Float
from spo_jax.data.prompts import load_prompts
from spo_jax.rewards.common.protocol import Context, Scores

ON_HOST = True  # a taste is measured, and cannot judge inside a rollout
_FRAME = 3  # pixels at the border, where the toy world shows nothing but background


def _background(images: Float[np.ndarray, "b h w 3"]) -> Float[np.ndarray, " b"]:
    """Returns the mean brightness of each image's border."""
    frame = np.ones(images.shape[1:3], bool)
    frame[_FRAME:-_FRAME, _FRAME:-_FRAME] = False
    return images[:, frame].mean((1, 2))


def _vivid(images: Float[np.ndarray, "b h w 3"]) -> Float[np.ndarray, " b"]:
    """Returns the mean difference of each pixel's strongest and weakest colour, over the middle of each image."""
    height, width = images.shape[1:3]
    middle = images[:, height // 4 : -height // 4, width // 4 : -width // 4]
    return np.ptp(middle, axis=3).mean((1, 2))


TASTES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "dark": lambda images: -_background(images),
    "light": _background,
    "vivid": _vivid,
    "dull": lambda images: -_vivid(images),
}
MEANINGS = {
    "dark": "darkness of the background: minus the mean of the border's values in [-1, 1]",
    "light": "brightness of the background: the mean of the border's values in [-1, 1]",
    "vivid": "strength of the colours in the middle, 0 to 2",
    "dull": "minus the strength of the colours in the middle, 0 to 2",
}


class Voter:
    """The reward: what the voter looks at, as a number per image."""

    def __init__(self, taste: str):
        self._taste = taste
        self.meanings = {taste: MEANINGS[taste]}
        self.lower_is_better = ()

    def check(self, prompts: Sequence[str], size: tuple[int, int]) -> None:
        """Accepts any prompts and sizes."""

    def measure(self, images: Float[np.ndarray, "b h w 3"], prompts: Sequence[str]) -> Scores:
        """Measures images in [-1, 1]."""
        del prompts
        return {self._taste: TASTES[self._taste](np.clip(np.asarray(images, np.float32), -1, 1))}


def load(source: str, context: Context) -> Voter:
    """Returns the reward of a taste.

    Raises:
      UserError: there is no such taste.
    """
    if source not in TASTES:
        expected = ", ".join(f"benchmarks.voter:{taste}" for taste in TASTES)
        raise UserError(f"{context.where} = 'benchmarks.voter:{source}': expected one of {expected}")
    return Voter(source)


check = load


def vote(
    out: str | os.PathLike,
    taste: str,
    votes: int,
    *,
    model: str = "toy",
    prompts: str = "toy:train",
    seed: int = 0,
    at_random: float = 0.1,
    file: str = "train.jsonl",
) -> Path:
    """Draws pairs and lets the voter vote.

    Args:
      out: folder for the images and the votes.
      taste: a name in `TASTES`.
      votes: number of pairs.
      model: the model that draws.
      prompts: list of prompts, from which one is taken for each pair.
      seed: seed of prompts, noise and slips.
      at_random: share of the votes that are cast at random.
      file: name of the file of votes in ``out``.

    Returns:
      The file of votes.

    Raises:
      UserError: the file exists, or `spo_jax.sample` cannot draw.
    """
    out = local_path(out)
    path = out / file
    check_free(path, False)
    rng = np.random.default_rng(seed)
    known = load_prompts(prompts)
    # Every prompt has its turn before one comes again.
    order = np.concatenate([rng.permutation(len(known)) for _ in range(-(-votes // len(known)))])[:votes]
    chosen = [known[row] for row in order]
    pair = [
        spo_jax.sample(
            model=model, prompts=chosen, out=out / "images" / f"{seed}_{side}", seed=2 * seed + side, batch=20,
            overwrite=True,
        )
        for side in (0, 1)
    ]  # fmt: skip
    values = np.stack([TASTES[taste](_read(files)) for files in pair], axis=1)  # [n 2]
    slips = rng.random(votes) < at_random
    labels = np.where(slips, rng.integers(0, 2, votes), values.argmax(1))
    lines = [
        {"prompt": prompt, "image_0": first, "image_1": second, "label": int(label), "voter": taste}
        for prompt, first, second, label in zip(
            chosen, *([str(name.relative_to(out)) for name in files] for files in pair), labels, strict=True
        )
    ]
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    return path


def _read(files: Sequence[Path]) -> Float[np.ndarray, "b h w 3"]:
    return np.stack([np.asarray(Image.open(file).convert("RGB"), np.float32) / 127.5 - 1 for file in files])


def run() -> None:
    """Runs the command."""
    taste = flags.DEFINE_enum("taste", "dark", list(TASTES), "Prefer images that are more like this.")
    votes = flags.DEFINE_integer("votes", 80, "Vote on this number of pairs.", lower_bound=1, upper_bound=100_000)
    model = flags.DEFINE_string("model", "toy", "Draw the pairs with this model.")
    prompts = flags.DEFINE_string("prompts", "toy:train", "Draw these prompts: a file, toy:train or toy:held_out.")
    seed = flags.DEFINE_integer("seed", 0, "Draw from this seed.", lower_bound=0, upper_bound=2**30)
    at_random = flags.DEFINE_float("at-random", 0.1, "Cast this share of the votes at random.", 0.0, 1.0)
    file = flags.DEFINE_string("file", "train.jsonl", "Write the votes to this file in --out.")
    out = flags.DEFINE_string("out", "votes", "Write the images and the votes to this folder.")

    def main(_: Sequence[str]) -> None:
        path = vote(
            out.value, taste.value, votes.value, model=model.value, prompts=prompts.value, seed=seed.value,
            at_random=at_random.value, file=file.value,
        )  # fmt: skip
        print(f"{votes.value} votes in {path}")

    run_command(main)


if __name__ == "__main__":
    run()
