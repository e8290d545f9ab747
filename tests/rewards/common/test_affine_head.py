"""The folded head against the five layers one after the other, to 1e-5: sums of 1,024 float32 products differ more."""

import jax
import numpy as np
import torch

from spo_jax.rewards.common.affine_head import apply_head, fold_head, folded_shapes, head_shapes
from spo_jax.weights import rules


def test_the_folded_head_is_the_five_layers():
    torch.manual_seed(0)
    widths = [12, 1024, 128, 64, 16, 1]
    modules = [torch.nn.Linear(before, after) for before, after in zip(widths[:-1], widths[1:], strict=True)]
    dropout = torch.nn.Dropout
    layers = [modules[0], dropout(), modules[1], dropout(), modules[2], dropout(), modules[3], modules[4]]
    theirs = torch.nn.Sequential(*layers).eval()
    features = torch.randn(7, 12)
    state = {f"layers.{name}": value.numpy() for name, value in theirs.state_dict().items()}

    head = fold_head(rules.to_tree(state, head_shapes(12), "torch"))
    shapes = folded_shapes(12)
    assert {name: x.shape for name, x in head.items()} == {name: x.shape for name, x in shapes.items()}
    assert all(x.dtype == np.float32 for x in head.values())
    expected = theirs.double()(features.double())[:, 0].detach().numpy()
    ours = jax.jit(apply_head)(head, features.numpy())
    assert np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max()
