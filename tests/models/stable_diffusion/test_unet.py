"""The UNet agrees with diffusers' to 1e-4 of the largest value, with float32 on both sides."""

import jax
import jax.numpy as jnp
import pytest

from spo_jax.models.stable_diffusion.unet import UNet2DConditionModel

TOLERANCE = 1e-4

# Odd sides take diffusers' upsample_size path, in which an up block meets skips that are not half as large.
# SD 1.5's structure is that of the toy pipeline, whose images `tests/models/test_sampler.py` compares with diffusers'.
CASES = [
    pytest.param("sd15", 6, 4, marks=pytest.mark.slow),
    ("sd21", 6, 9),
    ("sdxl", 5, 8),
    ("odd ones", 6, 7),
]


@pytest.mark.parametrize(("kind", "height", "width"), CASES)
def test_predictions_are_those_of_diffusers(unets, reference, kind, height, width):
    net = unets(kind)
    inputs = net.inputs(height, width)
    ours = net.apply({"params": net.params}, *inputs)
    assert reference.relative_error(ours, net.predict(*inputs).detach()) < TOLERANCE


def test_the_dtype_is_that_of_the_activations(unets):
    net = unets("sd21")
    half = UNet2DConditionModel(net.ours.config, dtype=jnp.bfloat16)
    out = jax.eval_shape(half.apply, {"params": net.params}, *net.inputs(4, 4))
    assert out.dtype == jnp.bfloat16


@pytest.mark.parametrize(("kind", "given"), [("sd15", 2), ("sdxl", 0), ("sdxl", 1)])
def test_size_conditions_are_given_if_and_only_if_wanted(unets, kind, given):
    net = unets(kind)
    extra = (jnp.zeros((2, 10)), jnp.zeros((2, 6)))[:given]
    with pytest.raises(ValueError, match="pooled text and time ids"):
        jax.eval_shape(net.ours.apply, {"params": net.params}, *net.inputs(4, 4)[:3], *extra)
