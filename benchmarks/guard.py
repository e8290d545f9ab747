"""How often the guard gives a false alarm, and how soon it sees a true one: ``python -m benchmarks.guard``.

Runs are made up, and their guard is the real one. In all of them the judge's score rises at every look, so every alarm
is about the judge; whether there is one depends on the held-out scores alone. For false alarms these only wander,
independently for each image, in one of the ways of `NOISES`. For true ones they fall by a share of a standard deviation
(of the change of one image) at every look after the best.
"""

from collections.abc import Iterator

import numpy as np
from absl import flags, logging

from spo_jax.core.cli import run_command
from spo_jax.core.typing import Float, Int
from spo_jax.run.guard.guard import Guard, Plan
from spo_jax.run.guard.look import Measured

NOISES = {
    "fresh": "every look has noise of its own",
    "slow": "noise that is correlated, by 0.8, with that of the look before",
    "walk": "every look adds noise to the one before",
    "heavy": "as walk, with steps of Student's t of 2.5 degrees of freedom, which has outliers",
}
_BEST = 5  # look after which the held-out scores of a hacked run fall


def longest_rows(noise: str, images: int, looks: int, runs: int, seed: int = 0) -> Int[np.ndarray, " runs"]:
    """Returns the most worse looks in a row of each of many runs to which nothing happens.

    Args:
      noise: one of `NOISES`.
      images: images of a look.
      looks: looks of a run.
      runs: number of runs.
      seed: seed of the noise.
    """
    rng = np.random.default_rng(seed)
    return np.asarray([max(_worse(_wander(noise, rng, images), images, looks)) for _ in range(runs)])


def delays(fall: float, images: int, looks: int, in_a_row: int, runs: int, seed: int = 0) -> list[int]:
    """Returns the numbers of looks between the best one and the alarm, of those of many hacked runs that have one.

    Args:
      fall: how far the held-out score falls at each look after the fifth, which is the best, in standard deviations of
        the change of one image.
      images: images of a look.
      looks: looks of a run.
      in_a_row: worse looks in a row that are an alarm.
      runs: number of runs.
      seed: seed of the noise.
    """
    rng = np.random.default_rng(seed)
    rows = [_worse(_fall(fall, rng, images), images, looks) for _ in range(runs)]
    return [row.index(in_a_row) - _BEST for row in rows if in_a_row in row]


def _worse(scores: Iterator[Float[np.ndarray, " n"]], images: int, looks: int) -> list[int]:
    """Returns the number of worse looks in a row at every look of a run, that before training included."""

    def measure(look: int, _: None) -> Measured:
        return Measured({"judge": np.full(images, float(look))}, {"quality": next(scores)}, {})

    guard = Guard(Plan("warn", 1, looks + 1, images, {}), measure)
    guard.begin(None, looks)
    for look in range(1, looks + 1):
        guard.look(look, None)
    return [look.worse for look in guard.looks]


def _wander(noise: str, rng: np.random.Generator, images: int) -> Iterator[Float[np.ndarray, " n"]]:
    values = rng.normal(size=images)
    while True:
        yield values
        if noise == "fresh":
            values = rng.normal(size=images)
        elif noise == "slow":
            values = 0.8 * values + 0.6 * rng.normal(size=images)
        else:
            values = values + (rng.normal(size=images) if noise == "walk" else rng.standard_t(2.5, size=images))


def _fall(fall: float, rng: np.random.Generator, images: int) -> Iterator[Float[np.ndarray, " n"]]:
    """Scores that rise up to the best look and fall after it, with noise of which a difference has deviation 1."""
    look = 0
    while True:
        yield rng.normal(0, np.sqrt(0.5), images) - fall * abs(look - _BEST)
        look += 1


def main(_) -> None:
    """Prints both tables as Markdown."""
    runs, images = flags.FLAGS.runs, flags.FLAGS.images
    logging.set_verbosity(logging.ERROR)
    lengths, rows = (5, 20, 100), (1, 2, 3)
    print(f"False alarms in per cent of {runs} runs, {images} images a look:\n")
    print("| held-out scores | " + " | ".join(f"{looks} looks, {k} in a row" for looks in lengths for k in rows) + " |")
    print("|---" * (len(lengths) * len(rows) + 1) + "|")
    for noise in NOISES:
        longest = [longest_rows(noise, images, looks, runs) for looks in lengths]
        print(f"| {noise} | " + " | ".join(f"{100 * (of >= k).mean():.1f}" for of in longest for k in rows) + " |")
    print(f"\nTrue alarms in {runs} runs of 20 looks, 2 in a row:\n")
    print("| fall at each look | found | looks after the best, mean |\n|---|---|---|")
    for fall in (0.05, 0.1, 0.2, 0.4):
        found = delays(fall, images, 20, 2, runs)
        print(f"| {fall} | {len(found) / runs:.0%} | {np.mean(found) if found else float('nan'):.1f} |")


if __name__ == "__main__":
    flags.DEFINE_integer("runs", 1000, "Simulate this number of runs of each kind.")
    flags.DEFINE_integer("images", 25, "Look at this number of images.")
    run_command(main)
