"""Nested dicts, flat ones, and rows of trees."""

import numpy as np

from spo_jax.core.rows import take_rows
from spo_jax.core.trees import flatten, unflatten

TREE = {"b": {"y": 1, "x": {"z": 2}}, "a": 3}


def test_flatten_sorts_and_unflatten_undoes_it():
    assert list(flatten(TREE).items()) == [("a", 3), ("b/x/z", 2), ("b/y", 1)]
    assert flatten(TREE, sep=".").keys() == {"a", "b.x.z", "b.y"}
    assert unflatten(flatten(TREE)) == TREE
    assert unflatten(flatten(TREE, sep="."), sep=".") == TREE


def test_rows_are_taken_from_every_array():
    tree = {"a": np.arange(3), "b": (np.arange(6).reshape(3, 2), None)}
    found = take_rows(tree, np.array([2, 0]))
    assert found["a"].tolist() == [2, 0] and found["b"][0].tolist() == [[4, 5], [0, 1]] and found["b"][1] is None
