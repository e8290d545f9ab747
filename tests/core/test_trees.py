"""Nested dicts and flat ones."""

from spo_jax.core.trees import flatten, unflatten

TREE = {"b": {"y": 1, "x": {"z": 2}}, "a": 3}


def test_flatten_sorts_and_unflatten_undoes_it():
    assert list(flatten(TREE).items()) == [("a", 3), ("b/x/z", 2), ("b/y", 1)]
    assert flatten(TREE, sep=".").keys() == {"a", "b.x.z", "b.y"}
    assert unflatten(flatten(TREE)) == TREE
    assert unflatten(flatten(TREE, sep="."), sep=".") == TREE
