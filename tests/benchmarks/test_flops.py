"""The count from the layers against counts by hand, XLA's count, and the published cost of Stable Diffusion 1.5."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from benchmarks import flops
from benchmarks.flops import count, peak_flops, xla_flops
from spo_jax.models.stable_diffusion import presets
from spo_jax.models.stable_diffusion.config import UNetConfig
from spo_jax.models.stable_diffusion.pipeline import unet_shapes
from spo_jax.models.stable_diffusion.unet import UNet2DConditionModel
from spo_jax.nn import clip_config
from spo_jax.nn.clip import CLIPModel
from spo_jax.nn.clip_config import CLIPConfig
from spo_jax.nn.flash import flash_attention
from spo_jax.nn.shapes import clip_shapes, vae_shapes
from spo_jax.nn.tiny_vae import TAESD, AutoencoderTiny, TinyVAEConfig
from spo_jax.nn.vae import AutoencoderKL, VAEConfig
from spo_jax.parallel.mesh import make_mesh

A = jnp.zeros((3, 4))
B = jnp.zeros((4, 5))
PRODUCT = 2 * 3 * 4 * 5  # of A and B


def repeated(times):
    return lambda a, b: jax.lax.scan(lambda x, _: (x, jnp.sum(x @ b)), a, None, length=times)


def until(limit):
    """A loop whose length is not known until it runs."""
    return lambda a, b, n: jax.lax.fori_loop(0, n, lambda _, total: total + jnp.sum(a @ b), 0.0)


def convolution(x, kernel, stride=1, dilation=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((1, 1), (1, 1)), lhs_dilation=(dilation, dilation), dimension_numbers=numbers
    )


def test_products():
    assert count(jnp.matmul, A, B) == PRODUCT

    def batched(a, b):
        return jnp.einsum("bij,bkj->bik", a, b)

    assert count(batched, jnp.zeros((7, 3, 4)), jnp.zeros((7, 5, 4))) == 7 * PRODUCT
    assert count(lambda a: jnp.sin(a) + a, A) == 0


def test_programs_that_are_traced_already():
    traced = jax.jit(repeated(6)).trace(A, B)
    assert count(traced) == count(traced.jaxpr) == 6 * PRODUCT
    assert count(traced, loops_once=True) == PRODUCT
    traced = jax.jit(until(9)).trace(A, B, jnp.int32(9))
    assert count(traced, while_trips=[9]) == 9 * PRODUCT


def test_loops():
    assert count(repeated(6), A, B) == 6 * PRODUCT
    assert count(repeated(6), A, B, loops_once=True) == PRODUCT
    assert count(until(9), A, B, jnp.int32(9), while_trips=[9]) == 9 * PRODUCT
    assert count(until(9), A, B, jnp.int32(9), while_trips=[9], loops_once=True) == PRODUCT

    def loops(a, b, n):
        return jax.lax.fori_loop(0, n, lambda _, c: c + until(9)(a, b, n), 0.0)

    assert count(loops, A, B, jnp.int32(4), while_trips=[4, 9]) == 36 * PRODUCT
    assert count(loops, A, B, jnp.int32(4), while_trips=[4]) == 4 * PRODUCT

    def nested(a, b):
        return jax.lax.map(lambda _: repeated(6)(a, b)[1], jnp.arange(4))

    assert count(nested, A, B) == 24 * PRODUCT


def test_branches_calls_and_recomputation():
    assert count(lambda a, b: jax.lax.cond(a.sum() > 0, lambda: a @ b, lambda: jnp.zeros((3, 5))), A, B) == PRODUCT
    assert count(jax.jit(jnp.matmul), A, B) == PRODUCT

    def loss(b):
        return jnp.sum(jnp.sin(A @ b) @ B.T)

    # Two products forward, and one for the gradient of each, because one input of the first has no gradient.
    assert count(jax.grad(loss), B) == 4 * PRODUCT
    # The first is computed again; the result of the second is not needed.
    assert count(jax.grad(jax.checkpoint(loss)), B) >= 5 * PRODUCT


def test_convolutions():
    x, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))
    assert count(convolution, x, kernel) == 2 * (2 * 8 * 8 * 5) * (3 * 3 * 3)
    assert count(lambda x, k: convolution(x, k, stride=2), x, kernel) == 2 * (2 * 4 * 4 * 5) * (3 * 3 * 3)
    # As many as in the forward pass, because zeros between the inputs are left out.
    gradient = jax.grad(lambda x: jnp.sum(convolution(x, kernel, stride=2) ** 2))
    forward = 2 * (2 * 4 * 4 * 5) * (3 * 3 * 3)
    assert count(gradient, x) == pytest.approx(2 * forward, rel=0.01)


def test_shards_are_counted_for_all_devices():
    mesh = make_mesh(devices=jax.devices()[:4])
    rows = PartitionSpec(("data", "fsdp"))
    a = jnp.zeros((8, 4))
    with jax.set_mesh(mesh):
        cut = jax.shard_map(jnp.matmul, in_specs=(rows, PartitionSpec()), out_specs=rows)
        assert count(cut, a, B) == count(jnp.matmul, a, B)


def test_attention_kernels():
    """Attention is two products of queries, keys and head size, also in the TPU's kernel, which pads heads."""
    b, length, m, n, e = 2, 1024, 500, 3, 40
    q, k = jnp.zeros((b, length, n, e)), jnp.zeros((b, m, n, e))
    plain = count(jax.nn.dot_product_attention, q, k, k)
    assert plain == 2 * 2 * b * n * length * m * e
    flat = [x.reshape(b, -1, n * e) for x in (q, k, k)]
    assert count(functools.partial(flash_attention, heads=n), *flat) == plain
    gradients = jax.grad(lambda *x: flash_attention(*x, heads=n).sum(), argnums=(0, 1, 2))
    assert count(gradients, *flat) == pytest.approx(plain * (1 + 5 / 2))  # five products, of which one is repeated
    for layout, shapes in ((0, (q.shape, k.shape)), (1, ((b, n, length, e), (b, n, m, e)))):
        for name, factor in (("dot_product_attention_fwd_wrapper", 1), ("dot_product_attention_bwd_wrapper", 2)):
            equation = SimpleNamespace(
                primitive=SimpleNamespace(name=name),
                params={"layout": layout},
                invars=[SimpleNamespace(aval=SimpleNamespace(shape=shape)) for shape in shapes],
            )
            assert flops._own_flops(equation, name) == factor * plain


def test_xla_agrees_where_there_is_little_else():
    program = jax.jit(repeated(6)).lower(A, B).compile()
    assert xla_flops(program) == pytest.approx(count(repeated(6), A, B, loops_once=True), rel=0.3)


def shape(*axes):
    return jax.ShapeDtypeStruct(axes, jnp.float32)


def unet():
    module = UNet2DConditionModel(UNetConfig.from_dict(presets.SD15_UNET))

    def apply(params, x, t, states):
        return module.apply({"params": params}, x, t, states)

    return apply, unet_shapes(module), shape(1, 64, 64, 4), shape(1), shape(1, 77, 768)


def decoder(module):
    def apply(params, x):
        return module.apply({"params": params}, x, method="decode")

    return apply, vae_shapes(module), shape(1, 64, 64, 4)


def vision():
    module = CLIPModel(CLIPConfig.from_dict(clip_config.CLIP_H, time_conditioned=True))

    def apply(params, x, t):
        return module.apply({"params": params}, x, t, method="encode_image")

    return apply, clip_shapes(module), shape(1, 224, 224, 3), shape(1)


def upsampling(*levels):
    """TFLOP of 3 x 3 kernels on doubled images (side, channels), less those of 2 x 2 kernels on one more row."""
    return sum(2 * width**2 * (9 * side**2 - 16 * (side // 2 + 1) ** 2) for side, width in levels) / 1e12


@pytest.mark.parametrize(
    ("network", "published", "saved"),
    [
        (unet, 0.803, upsampling((16, 1280), (32, 1280), (64, 640))),
        (
            lambda: decoder(AutoencoderKL(VAEConfig.from_dict(presets.SD15_VAE))),
            2.515,
            upsampling((128, 512), (256, 512), (512, 256)),
        ),
        (
            lambda: decoder(AutoencoderTiny(TinyVAEConfig.from_dict(TAESD))),
            0.141,
            upsampling((128, 64), (256, 64), (512, 64)),
        ),
        (vision, 0.335, 0),
    ],
    ids=["UNet", "VAE decoder", "tiny decoder", "CLIP-H vision"],
)
def test_stable_diffusion(network, published, saved):
    """TFLOP of one evaluation at 512 pixels, less the savings in convolutions of doubled images, from shapes alone."""
    assert count(*network()) / 1e12 == pytest.approx(published - saved, abs=6e-4)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("cpu", None),
    ],
)
def test_peaks(kind, peak):
    assert peak_flops(SimpleNamespace(device_kind=kind)) == peak


def test_counting_computes_nothing():
    huge = jax.ShapeDtypeStruct((10**6, 10**6), np.float32)
    assert count(jnp.matmul, huge, huge) == 2e18
