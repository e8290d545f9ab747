"""Which kernel is chosen on which platform, and that the TPU's kernels, here in Pallas' interpreter, are attention.

The tolerance is 1e-5 of the largest value: both sides are float32, but sum in a different order.
"""

import functools
import importlib.util
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec

from spo_jax.core.errors import UserError
from spo_jax.nn import attention
from spo_jax.nn.flash import flash_attention
from spo_jax.parallel.mesh import platform_in_context

TOLERANCE = 1e-5
MESH = ("data", "fsdp"), (AxisType.Auto,) * 2


@pytest.fixture
def interpreted(monkeypatch):
    """Runs Pallas' kernels on the CPU."""
    monkeypatch.setattr(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))


@pytest.fixture
def tpu_mesh():
    """Puts into context a mesh of 8 v5e chips that this host does not have."""
    names, types = MESH
    mesh = AbstractMesh((8, 1), names, types, abstract_device=AbstractDevice("TPU v5 lite", 1, "tpu"))
    with jax.sharding.use_abstract_mesh(mesh):
        yield mesh


def test_cpus_use_plain_attention():
    for dtype in (jnp.float32, jnp.bfloat16):
        assert attention.attention_implementation(64, dtype, 4096) == "xla"


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "expected"),
    [
        ("8.0", jnp.bfloat16, 40, "cudnn"),
        ("8.0", jnp.float16, 128, "cudnn"),
        ("8.0", jnp.bfloat16, 160, "xla"),  # the lowest level of SD 1.5
        ("9.0", jnp.bfloat16, 160, "cudnn"),
        ("9.0", jnp.bfloat16, 256, "cudnn"),
        ("10.0", jnp.bfloat16, 128, "cudnn"),
        ("10.0", jnp.bfloat16, 160, "xla"),  # a forward pass exists, a backward pass does not
        ("12.0", jnp.bfloat16, 136, "xla"),
        ("7.5", jnp.bfloat16, 64, "xla"),
        ("7.5", jnp.float16, 64, "xla"),
        ("gfx90a", jnp.bfloat16, 64, "xla"),  # ROCm
        ("", jnp.bfloat16, 64, "xla"),
        ("9.0", jnp.bfloat16, 512, "xla"),  # the only head of the autoencoder
        ("9.0", jnp.bfloat16, 44, "xla"),
        ("9.0", jnp.float32, 64, "xla"),
    ],
)
def test_gpus_use_cudnn_where_it_is_supported(monkeypatch, capability, dtype, head_dim, expected):
    device = SimpleNamespace(platform="gpu", compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert attention.attention_implementation(head_dim, dtype, 4096) == expected


@pytest.mark.parametrize("device", [{"platform": "gpu", "compute_capability": "9.0"}, {"platform": "tpu"}])
def test_an_environment_variable_forces_plain_attention(monkeypatch, device):
    """It reaches every network, also those that are traced without a config."""
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(**device)])
    for value, plain in (("plain", True), ("auto", False), ("", False)):
        monkeypatch.setenv(attention.VARIABLE, value)
        assert (attention.attention_implementation(64, jnp.bfloat16, 4096) == "xla") == plain
    monkeypatch.setenv(attention.VARIABLE, "cudnn")
    with pytest.raises(UserError, match="SPO_JAX_ATTENTION = 'cudnn': expected 'auto' or 'plain'"):
        attention.dot_product_attention(*[jnp.zeros((1, 8, 16))] * 3, heads=2)


def test_tpus_use_flash_attention_for_many_queries(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(platform="tpu")])
    fewest = attention.FLASH_TOKENS
    kinds = [attention.attention_implementation(64, jnp.bfloat16, tokens) for tokens in (77, fewest - 1, fewest, 4096)]
    assert kinds == ["xla", "xla", "flash", "flash"]


def test_the_mesh_in_context_decides_and_not_the_host(tpu_mesh):
    """Programs for TPUs can be compiled on hosts without one. Masks are for the plain implementation."""
    assert jax.default_backend() == "cpu"
    assert platform_in_context() == "tpu"
    image, text = jnp.zeros((8, 1024, 16)), jnp.zeros((8, 77, 16))

    def traced(q, k, **masks):
        return str(jax.make_jaxpr(lambda q, k: attention.dot_product_attention(q, k, k, 2, **masks))(q, k))

    assert "pallas_call" in traced(image, image)
    assert "pallas_call" in traced(image, text)
    assert "pallas_call" not in traced(text, text)
    assert "pallas_call" not in traced(image, image, is_causal=True)
    assert "pallas_call" not in traced(image, text, visible=jnp.ones((8, 77), bool))


def plain_attention(q, k, v, heads):
    """XLA's attention on flat heads."""
    split = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v))
    return jax.nn.dot_product_attention(*split).reshape(q.shape)


def both(heads, q, k, v, weights, attend=flash_attention):
    """Output and gradients of the kernels and of plain attention."""

    def run(function, q, k, v, weights):
        out, pull = jax.vjp(functools.partial(function, heads=heads), q, k, v)
        return out, *pull(weights)

    return tuple(jax.jit(functools.partial(run, function))(q, k, v, weights) for function in (attend, plain_attention))


def arrays(reference, rows, queries, keys, features):
    return [reference.normal(seed, rows, n, features) for seed, n in enumerate((queries, keys, keys, queries))]


def divided(**how):
    """The last two axes of what attention divides."""

    def find(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "div":
                yield equation.outvars[0].aval.shape[-2:]
            for inner in jax.core.jaxprs_in_params(equation.params):
                yield from find(inner)

    q, k = jnp.ones((2, 6, 16)), jnp.ones((2, 9, 16))
    return set(find(jax.make_jaxpr(lambda q, k: attention.dot_product_attention(q, k, k, 4, **how))(q, k).jaxpr))


def test_cpus_divide_outputs_and_other_platforms_weights(monkeypatch):
    """Masks are for short texts, and have jax's own attention everywhere."""
    outputs, weights = (6, 4), (6, 9)
    assert divided() == {outputs}
    assert divided(visible=jnp.ones((2, 9), bool)) == {weights}
    monkeypatch.setattr(attention, "platform_in_context", lambda: "tpu")
    assert divided() == {weights}


@pytest.mark.parametrize(("queries", "keys", "heads", "width"), [(256, 256, 4, 14), (9, 77, 2, 8), (3, 5, 1, 16)])
def test_attention_on_cpus_is_attention(reference, queries, keys, heads, width):
    """Output and gradients, where weights are divided by their sum after the sum over the values."""
    results = both(heads, *arrays(reference, 2, queries, keys, heads * width), attention.dot_product_attention)
    for ours, theirs in zip(*results, strict=True):
        assert reference.relative_error(ours, theirs) < TOLERANCE


def test_attention_on_cpus_in_16_bits(reference):
    """As near to float32 as jax's own: weights have the digits of bfloat16, scores and sums those of float32."""
    q, k, v, _ = (3 * x for x in arrays(reference, 2, 64, 64, 32))
    exact = plain_attention(q, k, v, 2)
    short = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    ours = attention.dot_product_attention(*short, 2)
    assert ours.dtype == jnp.bfloat16
    error, usual = (reference.relative_error(x.astype(jnp.float32), exact) for x in (ours, plain_attention(*short, 2)))
    assert error < 1.2 * usual
    assert usual < 0.03


def test_scores_that_would_overflow_on_cpus(reference):
    """Exponentials are of differences to the largest score, which takes no part in the gradients."""
    q, k, v, weights = arrays(reference, 1, 16, 60, 16)
    results = both(2, q, np.concatenate([k[:, :-1], 100 * k[:, -1:]], 1), v, weights, attention.dot_product_attention)
    assert np.isfinite(results[0][0]).all()
    for ours, theirs in zip(*results, strict=True):
        assert reference.relative_error(ours, theirs) < 1e-3


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("queries", "keys", "heads", "width"),
    [
        (1024, 640, 4, 40),  # whole blocks, several of both; a head lies in two registers
        (530, 77, 2, 64),  # padded queries and keys, fewer keys than a block
        (272, 257, 16, 80),  # heads of two groups
        (20, 9, 3, 8),
        (130, 700, 1, 160),  # a head wider than one register
    ],
)
def test_flash_attention_is_attention(reference, queries, keys, heads, width):
    """The sizes are those of SD 1.5 (40, 80, 160), SDXL (64) and CLIP ViT-H (80)."""
    results = both(heads, *arrays(reference, 2, queries, keys, heads * width))
    for ours, theirs in zip(*results, strict=True):
        assert reference.relative_error(ours, theirs) < TOLERANCE


@pytest.mark.usefixtures("interpreted")
def test_scores_that_would_overflow(reference):
    """Exponentials are of differences to the largest score, also where it is in the last block.

    Scores of some hundreds are themselves only known to 1e-4.
    """
    q, k, v, weights = arrays(reference, 1, 16, 600, 16)
    k = np.concatenate([k[:, :-1], 100 * k[:, -1:]], 1)
    results = both(2, q, k, v, weights)
    assert np.isfinite(results[0][0]).all()
    for ours, theirs in zip(*results, strict=True):
        assert reference.relative_error(ours, theirs) < 1e-3


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("rows", [8, 3])
def test_on_a_mesh_every_device_attends_to_its_rows(reference, monkeypatch, rows):
    """Rows that 8 devices cannot share evenly are computed on all; gradients are not summed over these copies."""
    names, types = MESH
    monkeypatch.setattr(attention, "platform_in_context", lambda: "tpu")
    queries = attention.FLASH_TOKENS
    with jax.set_mesh(jax.make_mesh((4, 2), names, axis_types=types)):
        results = both(2, *arrays(reference, rows, queries, 8, 8), attention.dot_product_attention)
        if rows == 8:
            assert results[0][0].sharding.spec[0] == names
    for ours, theirs in zip(*results, strict=True):
        assert reference.relative_error(ours, theirs) < TOLERANCE


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler (libtpu) is not installed")
@pytest.mark.parametrize(("tokens", "heads", "width"), [(4096, 2, 40), (1024, 2, 80), (4096, 1, 512)])
def test_tpus_never_hold_the_score_matrix(tokens, heads, width):
    """Forward and backward on v5e need less memory for all temporaries than one score matrix in 16 bits takes."""
    from benchmarks.topologies import find_topology

    names, types = MESH
    mesh = jax.make_mesh((8, 1), names, axis_types=types, devices=find_topology("v5e:2x4"))
    rows = NamedSharding(mesh, PartitionSpec(names))
    x = jax.ShapeDtypeStruct((8, tokens, heads * width), jnp.bfloat16, sharding=rows)

    def gradients(q, k, v, weights):
        out, pull = jax.vjp(lambda q, k, v: attention.dot_product_attention(q, k, v, heads), q, k, v)
        return out, *pull(weights)

    with jax.set_mesh(mesh):
        memory = jax.jit(gradients).lower(x, x, x, x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < np.prod((heads, tokens, tokens)) * 2
