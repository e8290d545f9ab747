"""How often the guard gives a false alarm, and how soon it sees a true one: ``python -m benchmarks.guard``.

Runs are made up, and their guard is the real one. In all of them the judge's score rises at every look, so the held-out
scores alone decide. For false alarms these only wander, independently for each image, in one of the ways of `NOISES`.
For true ones they fall by a share of a standard deviation (of the change of one image) at every look after the best.
"""

import functools
from collections.abc import Iterator

import numpy as np
from absl import flags

from spo_jax.core.cli import run_command
from spo_jax.core.typing import Float
from spo_jax.run.guard.guard import Guard, Plan
from spo_jax.run.guard.look import Measured

NOISES = {
    "fresh": "every look has noise of its own",
    "slow": "noise that is correlated, by 0.8, with that of the look before",
    "walk": "every look adds noise to the one before",
    "heavy": "as walk, with steps of Student's t of 2.5 degrees of freedom, which has outliers",
}


def false_alarms(noise: str, images: int, looks: int, in_a_row: int, runs: int, seed: int = 0) -> float:
    """Returns the share of runs with an alarm although nothing happens.

    Args:
      noise: one of `NOISES`.
      images: images of a look.
      looks: looks of a run.
      in_a_row: worse looks in a row that are an alarm.
      runs: number of runs.
      seed: seed of the noise.
    """
    rng = np.random.default_rng(seed)
    return float(
        np.mean([_alarm(_wander(noise, rng, images), images, looks, in_a_row) is not None for _ in range(runs)])
    )


def delay(fall: float, images: int, looks: int, in_a_row: int, runs: int, seed: int = 0) -> tuple[float, float]:
    """Returns the share of runs that are stopped, and the mean number of looks between their best and the alarm.

    Args:
      fall: how far the held-out score falls at each look, in standard deviations of the change of one image; the best
        look is the fifth.
      images: as in `false_alarms`, and so are the others.
    """
    rng = np.random.default_rng(seed)
    found = [_alarm(_fall(fall, rng, images), images, looks, in_a_row) for _ in range(runs)]
    stopped = [look - _BEST for look in found if look is not None]
    return len(stopped) / runs, float(np.mean(stopped)) if stopped else float("nan")


_BEST = 5  # look after which the held-out scores fall


def _alarm(scores: Iterator[Float[np.ndarray, " n"]], images: int, looks: int, in_a_row: int) -> int | None:
    """Returns the look at which the guard would stop a run."""

    def measure(look: int, _: None) -> Measured:
        return Measured({"judge": np.full(images, float(look))}, {"quality": next(scores)}, {})

    guard = Guard(Plan("stop", 1, in_a_row, images, {}), measure)
    guard.begin(None, looks)
    for look in range(1, looks + 1):
        guard.look(look, None)
        if guard.ends:
            return look
    return None


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
    runs = flags.FLAGS.runs
    alarm = functools.partial(false_alarms, images=flags.FLAGS.images, runs=runs)
    columns = [(looks, in_a_row) for looks in (5, 20, 100) for in_a_row in (1, 2, 3)]
    print(f"False alarms in {runs} runs, {flags.FLAGS.images} images a look, in per cent:\n")
    print("| held-out scores | " + " | ".join(f"{looks} looks, {k} in a row" for looks, k in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for noise in NOISES:
        rates = [alarm(noise, looks=looks, in_a_row=in_a_row) for looks, in_a_row in columns]
        print(f"| {noise} | " + " | ".join(f"{100 * rate:.1f}" for rate in rates) + " |", flush=True)
    print(f"\nTrue alarms, 20 looks of which the fifth is the best, 2 in a row, {runs // 5} runs:\n")
    print("| fall at each look | stopped | looks after the best |\n|---|---|---|")
    for fall in (0.05, 0.1, 0.2, 0.4):
        share, after = delay(fall, flags.FLAGS.images, looks=20, in_a_row=2, runs=runs // 5)
        print(f"| {fall} | {share:.0%} | {after:.1f} |", flush=True)


if __name__ == "__main__":
    flags.DEFINE_integer("runs", 2000, "Simulate this number of runs for every cell.")
    flags.DEFINE_integer("images", 25, "Look at this number of images.")
    run_command(main)
