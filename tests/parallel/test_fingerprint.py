"""Fingerprints of weights tell other weights, shapes and dtypes apart, also in large arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.parallel import agreement
from spo_jax.parallel.fingerprint import fingerprints
from spo_jax.parallel.mesh import make_mesh
from spo_jax.parallel.sharding import place_weights

WEIGHTS = {"a": {"kernel": np.arange(400_000, dtype=np.float32).reshape(1000, 400)}, "b": np.float32(3)}


def test_equal_weights_have_equal_fingerprints_wherever_they_lie():
    assert fingerprints(WEIGHTS) == fingerprints(jax.tree.map(jnp.asarray, WEIGHTS))
    assert fingerprints(WEIGHTS)["a/kernel"].startswith("float32[1000,400] with digest ")


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x * np.float32(1.0001),
        lambda x: x.reshape(400, 1000),
        lambda x: x.astype(np.float64),
        lambda x: np.concatenate([x[:-100], x[-100:] + 1]),
        lambda x: np.concatenate([x[:500], x[500:501] + 1, x[501:]]),
    ],
)
def test_other_weights_have_other_fingerprints(change):
    other = {**WEIGHTS, "a": {"kernel": change(WEIGHTS["a"]["kernel"])}}
    before, after = fingerprints(WEIGHTS), fingerprints(other)
    assert [name for name in before if before[name] != after[name]] == ["a/kernel"]


def test_weights_that_another_process_has_read_differently_are_refused(monkeypatch):
    """The other process is played: it has read a "b" of another value."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    other = fingerprints(WEIGHTS | {"b": np.float32(4)})

    def gathered(value):
        theirs = {f"unet: {path}": text for path, text in other.items()}
        return [value, theirs if isinstance(value, dict) else "another digest"]

    monkeypatch.setattr(agreement, "gathered", gathered)
    b = r"float32\[\] with digest \w+"
    with pytest.raises(UserError, match=f"not equal: unet: b is {b} in process 0 and {b} in process 1$"):
        place_weights(WEIGHTS, make_mesh(), title="unet")
