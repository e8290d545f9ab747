"""Blocks of the networks against those of diffusers: attention, sinusoids, resampling, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention as TorchAttention
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D

from spo_jax.nn import layers

TOLERANCE = 1e-5  # Relative to the largest value; single layers lose less precision than whole networks.


@pytest.mark.parametrize("upcast", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
def test_attention_matches_diffusers(reference, upcast, use_bias):
    torch.manual_seed(0)
    theirs = TorchAttention(12, 10, heads=3, dim_head=4, bias=use_bias, upcast_attention=upcast, upcast_softmax=upcast)
    theirs = reference.randomised(theirs)
    theirs.set_processor(AttnProcessor())  # the explicit implementation, which respects upcast_attention
    ours = layers.Attention(heads=3, use_bias=use_bias, upcast=upcast)
    x = 3 * reference.normal(0, 2, 5, 12)
    context = 3 * reference.normal(1, 2, 7, 10)
    params = reference.tree(theirs, jax.eval_shape(ours.init, jax.random.key(0), x, context)["params"])
    expected = theirs(reference.to_torch(x), reference.to_torch(context))
    assert reference.relative_error(ours.apply({"params": params}, x, context), expected) < TOLERANCE


@pytest.mark.parametrize("upcast", [False, True])
def test_upcast_attention_is_in_float32(monkeypatch, reference, upcast):
    """SD 2.1 in 16 bits: queries, keys and values are float32 inside the attention, and nothing outside it is."""
    attend = layers.dot_product_attention
    dtypes = []

    def spy(q, k, v, heads):
        dtypes.extend((q.dtype, k.dtype, v.dtype))
        return attend(q, k, v, heads)

    monkeypatch.setattr(layers, "dot_product_attention", spy)
    attention = layers.Attention(heads=2, upcast=upcast, dtype=jnp.bfloat16)
    out, _ = attention.init_with_output(jax.random.key(0), reference.normal(0, 1, 3, 8).astype(jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    assert dtypes == [jnp.float32 if upcast else jnp.bfloat16] * 3


@pytest.mark.filterwarnings("ignore::FutureWarning")  # diffusers warns about itself
@pytest.mark.parametrize("use_linear_projection", [False, True])
def test_transformer_matches_diffusers_on_faint_input(reference, use_linear_projection):
    """Variances are near the epsilons of the norms, which are in no config: 1e-6 outside the blocks, 1e-5 inside."""
    torch.manual_seed(0)
    theirs = Transformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=8,
        num_layers=2,
        norm_num_groups=4,
        cross_attention_dim=6,
        use_linear_projection=use_linear_projection,
    )
    theirs = reference.randomised(theirs)
    for parameter in theirs.proj_in.parameters():
        parameter.data *= 1e-3
    ours = layers.SpatialTransformer(heads=2, layers=2, groups=4, use_linear_projection=use_linear_projection)
    x = 1e-3 * reference.normal(0, 2, 3, 4, 8)
    context = reference.normal(1, 2, 5, 6)
    params = reference.tree(theirs, jax.eval_shape(ours.init, jax.random.key(0), x, context)["params"])
    expected = reference.nhwc(theirs(reference.nchw(x), reference.to_torch(context)).sample)
    out = reference.jit(ours.apply)({"params": params}, x, context)
    assert reference.relative_error(out, expected) < TOLERANCE


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [0, 1])
def test_sinusoidal_embedding_matches_diffusers(reference, flip, shift):
    t = jnp.array([0, 1, 998, 999])
    expected = get_timestep_embedding(reference.to_torch(t), 12, flip_sin_to_cos=flip, downscale_freq_shift=shift)
    assert reference.relative_error(layers.sinusoidal_embedding(t, 12, flip, shift), expected) < TOLERANCE


def test_neighbouring_timesteps_differ_in_bfloat16_networks():
    """bfloat16 cannot tell 999 from 998, so the sinusoid has to be computed in float32."""
    near, far = layers.sinusoidal_embedding(jnp.array([998, 999]), 320)
    assert near.dtype == jnp.float32
    assert float(jnp.abs(near - far).max()) > 0.5


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("size", [None, (10, 12), (9, 12), (10, 11), (9, 11)])
def test_upsample_matches_diffusers(monkeypatch, reference, size, platform):
    """On TPUs the doubled image is convolved, elsewhere only one that is a row or a column short."""
    monkeypatch.setattr(layers, "platform_in_context", lambda: platform)
    torch.manual_seed(0)
    theirs = reference.randomised(Upsample2D(3, use_conv=True, out_channels=4))
    x = reference.normal(0, 2, 5, 6, 3)
    ours = layers.Upsample(4)
    params = reference.tree(theirs, jax.eval_shape(ours.init, jax.random.key(0), x)["params"])
    expected = reference.nhwc(theirs(reference.nchw(x), size))
    assert reference.relative_error(ours.apply({"params": params}, x, size), expected) < TOLERANCE
    program = str(jax.make_jaxpr(lambda x: ours.apply({"params": params}, x, size))(x))
    assert ("f32[2,2,3,16]" in program) == (platform == "cpu" and size in (None, (10, 12)))


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize(("height", "width"), [(6, 8), (5, 7)])
def test_downsample_matches_diffusers(reference, asymmetric, height, width):
    torch.manual_seed(0)
    padding = 0 if asymmetric else 1  # In diffusers a padding of 0 means "below and right only".
    theirs = reference.randomised(Downsample2D(3, use_conv=True, out_channels=4, padding=padding, name="op"))
    x = reference.normal(0, 2, height, width, 3)
    ours = layers.Downsample(4, asymmetric=asymmetric)
    params = reference.tree(theirs, jax.eval_shape(ours.init, jax.random.key(0), x)["params"])
    expected = reference.nhwc(theirs(reference.nchw(x)))
    assert reference.relative_error(ours.apply({"params": params}, x), expected) < TOLERANCE


def normed(x, platform):
    """The group norm of bfloat16 or float32 input, and in float64, both as float64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "platform_in_context", lambda: platform)
        norm = layers.GroupNorm(2, 1e-6, x.dtype)
        ours = jax.jit(norm.apply)(norm.init(jax.random.key(0), x), x)
    exact = np.asarray(x.astype(jnp.float32), np.float64).reshape(*x.shape[:3], 2, -1)
    centred = exact - exact.mean((1, 2, 4), keepdims=True)
    exact = centred / np.sqrt((centred**2).mean((1, 2, 4), keepdims=True) + 1e-6)
    return np.asarray(ours.astype(jnp.float32), np.float64), exact.reshape(x.shape)


def noise(scale=1.0, shape=(1, 64, 64, 8)):
    return scale * np.random.default_rng(0).normal(size=shape)


def spiked(x, value):
    x[:, 5, 5, 3] = value
    return x


@pytest.mark.parametrize(
    "x",
    [
        *(noise() + mean for mean in (0, 16, 64, 256)),
        noise(1e4),
        noise(1e-4),
        spiked(noise(), 3e4),
        noise(1e-2) + np.tile([100.0, -100.0], 4),
        spiked(np.zeros((1, 64, 64, 8)), 1e-3),
        np.full((1, 64, 64, 8), 3.3),
    ],
    ids=["normal", "16 off", "64 off", "256 off", "large", "small", "spike", "channels apart", "faint", "constant"],
)
def test_sums_in_one_pass_lose_no_digits_of_bfloat16(x):
    """Against float64, both ways are off by the rounding of the result: half a unit in the last of its 8 digits."""
    x = jnp.asarray(x, jnp.bfloat16)
    for platform in ("tpu", "cpu"):
        ours, exact = normed(x, platform)
        assert np.abs(ours - exact).max() <= 2.0**-8 * max(np.abs(exact).max(), 1e-3)


@pytest.mark.parametrize("mean", [1.0, 1000.0])
def test_sums_in_one_pass_exaggerate_nothing(mean):
    """A single pixel that differs by a last digit has a variance that one pass cannot see: it is damped."""
    x = jnp.asarray(spiked(np.full((1, 64, 64, 8), mean), mean * (1 + 2.0**-7)), jnp.bfloat16)
    ours, exact = normed(x, "tpu")
    assert 0 < np.abs(ours).max() < np.abs(exact).max()
    assert np.abs(ours - exact).max() > 0.1 * np.abs(exact).max()  # two passes, as elsewhere, do see it
    ours, exact = normed(x, "cpu")
    np.testing.assert_allclose(ours, exact, atol=2.0**-8 * np.abs(exact).max())


def test_float32_keeps_two_passes():
    x = jnp.asarray(noise() + 1000, jnp.float32)
    (on_tpu, exact), (elsewhere, _) = normed(x, "tpu"), normed(x, "cpu")
    np.testing.assert_array_equal(on_tpu, elsewhere)
    np.testing.assert_allclose(on_tpu, exact, atol=1e-3)


@pytest.mark.parametrize("adapted", [False, True])
def test_a_feed_forward_in_halves_is_the_whole(monkeypatch, adapted):
    """TPUs compute hidden values and gates by two products with halves of the weights, and of the adapter's."""
    ours = layers.FeedForward()
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    variables = {"params": ours.init(jax.random.key(1), x)["params"]}
    variables["params"]["net_0"]["proj"]["bias"] = jax.random.normal(jax.random.key(2), (64,))
    if adapted:
        a, b = jax.random.normal(jax.random.key(3), (8, 2)), jax.random.normal(jax.random.key(4), (2, 64))
        variables["lora"] = {"net_0": {"proj": {"lora_A": a, "lora_B": b}}}
    whole = ours.apply(variables, x)
    monkeypatch.setattr(layers, "platform_in_context", lambda: "tpu")
    assert str(jax.make_jaxpr(ours.apply)(variables, x)).count("f32[8,32]") == 2
    np.testing.assert_allclose(ours.apply(variables, x), whole, rtol=1e-5, atol=1e-5 * float(jnp.abs(whole).max()))
