"""Guards whose looks are made up: the scores of every batch are given."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from spo_jax.run.guard.guard import Guard, Plan
from spo_jax.run.guard.look import Measured

ABOUT = {"seed": 1, "rewards": "toy"}


def measured(held_out: Any, trained: Any = None, lower: tuple[str, ...] = ()) -> Measured:
    """A look from held-out scores by name, or one score ``quality``, and from what is trained on."""
    scores = held_out if isinstance(held_out, Mapping) else {"quality": held_out}
    own = {} if trained is None else {"judge": np.asarray(trained, np.float64)}
    images = len(next(iter(scores.values())))
    signs = {"saturation": np.full(images, 0.5)}
    return Measured(own, {name: np.asarray(v, np.float64) for name, v in scores.items()}, signs, lower)


def make_guard(
    looks: Mapping[int, Measured] | Callable[[int], Measured], total: int, begin: bool = True, **plan: Any
) -> Guard:
    """Makes the guard of a run of ``total`` batches, which looks at each of them unless ``every`` says otherwise."""
    of = looks if callable(looks) else looks.__getitem__
    images = len(next(iter(of(0).held_out.values())))
    default = {"mode": "stop", "every": 1, "in_a_row": 2, "images": images, "about": ABOUT}
    guard = Guard(Plan(**default | plan), lambda batch, state: of(batch))
    if begin:
        guard.begin(None, total)
    return guard


def hacked(images: int = 25, best: int = 3, seed: int = 0, name: str = "quality") -> Callable[[int], Measured]:
    """Scores of a run whose judge always rises, and whose quality rises until a batch.

    After the best batch it falls by less than the noise, and from the next one on by far more.
    """
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 1, images)
    noise = [rng.normal(0, 0.3, images) for _ in range(200)]

    def of(batch: int) -> Measured:
        fallen = 0.0 if batch <= best else 0.02 if batch == best + 1 else 1.0
        quality = base + 0.3 * min(batch, best) - fallen + noise[batch]
        return measured({name: quality}, base + batch + noise[-batch - 1])

    return of
