"""Made-up curves for the tests of rules: a line with noise that is always the same."""

import numpy as np

from spo_jax.run.diagnosis.curves import Curves


def line(first, last, count=40, noise=0.0, seed=0):
    """A straight line with normal noise."""
    return np.linspace(first, last, count) + noise * np.random.default_rng(seed).normal(size=count)


def curves_of(settings=None, scores=None, lower=(), before=None, judges=(), **series):
    """Curves whose batches count from 1; in names ``__`` stands for ``/``. ``before`` is row 0, and None is a gap."""
    count = max((len(values) for values in series.values()), default=0)
    rows = [{"step": 0, **before}] if before else []
    for index in range(count):
        row = {"step": index + 1}
        for name, values in series.items():
            if index < len(values) and values[index] is not None:
                value = float(values[index])
                row[name.replace("__", "/")] = value if np.isfinite(value) else None
        rows.append(row)
    return Curves(rows, settings or {}, scores or {}, lower, judges)


def every(interval, values, count=40):
    """Values at every ``interval`` batches, and gaps between them."""
    values = iter(values)
    return [next(values, None) if (index + 1) % interval == 0 else None for index in range(count)]
