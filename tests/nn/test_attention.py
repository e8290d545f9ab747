"""Which kernel is chosen on which platform, and that the TPU's kernel, here in Pallas' interpreter, is attention.

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


def test_tpus_use_flash_attention_for_long_sequences(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(platform="tpu")])
    kinds = [attention.attention_implementation(64, jnp.bfloat16, tokens) for tokens in (77, 1023, 1024, 4096)]
    assert kinds == ["xla", "xla", "flash", "flash"]


def test_the_mesh_in_context_decides_and_not_the_host(tpu_mesh):
    """Programs for TPUs can be compiled on hosts without one."""
    assert jax.default_backend() == "cpu"
    assert platform_in_context() == "tpu"
    q = jnp.zeros((8, 1024, 16))
    text = jnp.zeros((8, 77, 16))

    def traced(k):
        return str(jax.make_jaxpr(lambda q, k: attention.dot_product_attention(q, k, k, 2))(q, k))

    assert "pallas_call" in traced(q)
    assert "pallas_call" not in traced(text)


def both(attend, plain, q, k, v, weights):
    """Output and gradients of two implementations of attention."""

    def run(function, q, k, v, weights):
        out, pull = jax.vjp(function, q, k, v)
        return out, *pull(weights)

    return tuple(jax.jit(functools.partial(run, function))(q, k, v, weights) for function in (attend, plain))


def arrays(reference, rows, queries, keys, heads, width):
    shapes = ((rows, tokens, heads, width) for tokens in (queries, keys, keys, queries))
    return [reference.normal(seed, *shape) for seed, shape in enumerate(shapes)]


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("queries", "keys", "width", "is_causal"),
    [
        (1024, 1024, 40, False),  # whole blocks
        (1100, 1100, 8, False),  # padded queries and keys
        (600, 77, 64, False),  # fewer keys than a block
        (130, 700, 160, False),  # a head wider than one register
        (600, 600, 8, True),
    ],
)
def test_flash_attention_is_attention(reference, queries, keys, width, is_causal):
    """The kernel's layout or our code pads the head sizes 40, 80 and 160 of SD 1.5 and 64 of SDXL."""
    attend = functools.partial(attention.flash_attention, is_causal=is_causal)
    plain = functools.partial(jax.nn.dot_product_attention, is_causal=is_causal)
    for ours, theirs in zip(*both(attend, plain, *arrays(reference, 2, queries, keys, 1, width)), strict=True):
        assert reference.relative_error(ours, theirs) < TOLERANCE


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("rows", [8, 3])
def test_on_a_mesh_every_device_attends_to_its_rows(reference, rows):
    """Rows that 8 devices cannot share evenly are computed on all; gradients are not summed over these copies."""
    names, types = MESH
    with jax.set_mesh(jax.make_mesh((4, 2), names, axis_types=types)):
        results = both(
            attention.flash_attention, jax.nn.dot_product_attention, *arrays(reference, rows, 128, 128, 1, 8)
        )
        if rows == 8:
            assert results[0][0].sharding.spec[0] == names
    for ours, theirs in zip(*results, strict=True):
        assert reference.relative_error(ours, theirs) < TOLERANCE


@pytest.mark.usefixtures("interpreted")
def test_dot_product_attention_is_the_same_on_all_platforms(monkeypatch, reference):
    """Flat heads are split for the kernel and joined again."""
    q, k, v = (reference.normal(seed, 1, 1024, 16) for seed in range(3))
    plain = attention.dot_product_attention(q, k, v, 2)
    monkeypatch.setattr(attention, "platform_in_context", lambda: "tpu")
    assert reference.relative_error(attention.dot_product_attention(q, k, v, 2), plain) < TOLERANCE


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
