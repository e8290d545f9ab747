"""Winner, loser and validity of pools (b): integers and booleans, so they are equal."""

import re

import jax.numpy as jnp
import numpy as np

from spo_jax.methods.spo.pairs import rank


def test_ranking(golden):
    b = golden.arrays("b_compare.npz")
    cases = sorted(key for key in b if key.endswith("/valid"))
    assert cases
    for case in cases:
        pool, threshold = re.fullmatch(r"(.*)/th([\d.]+)/valid", case).groups()
        verdict = rank(jnp.asarray(b[f"{pool}/scores"])[None], float(threshold))
        np.testing.assert_array_equal(jnp.stack([verdict.win[0], verdict.lose[0]]), b[f"{pool}/th{threshold}/indices"])
        np.testing.assert_array_equal(verdict.valid[0], b[case])
