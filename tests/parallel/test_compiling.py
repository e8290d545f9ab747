"""Programs for TPUs take the options of their chip, wherever they are compiled."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec

from spo_jax.nn.convolution import convolve
from spo_jax.parallel import compiling
from spo_jax.parallel.compiling import compile_program, compiler_options, device_jit
from spo_jax.parallel.mesh import MeshSettings, make_mesh, over_batch


@pytest.mark.parametrize(
    ("kind", "kib"), [("TPU v5 lite", 65_536), ("TPU v6 lite", 65_536), ("TPU v4", None), ("TPU v5p", None)]
)
def test_operations_may_take_half_of_a_chips_own_memory(kind, kib):
    mesh = AbstractMesh((8,), ("data",), (AxisType.Auto,), abstract_device=AbstractDevice(kind, 1, "tpu"))
    with jax.sharding.use_abstract_mesh(mesh):
        assert compiler_options().get("xla_tpu_scoped_vmem_limit_kib") == kib
        assert compiler_options()["xla_jf_spmd_threshold_for_windowed_einsum_mib"] > 2**15  # more than any weight has


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler (libtpu) is not installed")
def test_weights_that_are_cut_over_chips_are_gathered():
    """Without the option, slices of them are passed around, and each is computed with alone."""
    from benchmarks.topologies import find_topology

    mesh = make_mesh(MeshSettings(data=1, fsdp=8), find_topology("v5e:2x4"))
    images = jax.ShapeDtypeStruct((64, 64, 64, 128), jnp.bfloat16, sharding=over_batch(mesh))
    cut = NamedSharding(mesh, PartitionSpec(None, None, None, "fsdp"))
    kernel = jax.ShapeDtypeStruct((3, 3, 128, 128), jnp.bfloat16, sharding=cut)
    with jax.set_mesh(mesh):
        traced = jax.jit(convolve).trace(images, kernel)
        ours = compile_program(traced).as_text()
        default = traced.lower().compile().as_text()
    assert "all-gather" in ours
    assert "collective-permute" not in ours
    assert "collective-permute" in default


def test_cpus_have_no_options_of_their_own():
    assert compiler_options() == {}
    assert compile_program(jax.jit(lambda x: x + 1).trace(jnp.ones(())))(jnp.ones(())) == 2
    assert device_jit(lambda x, n: x + n, static_argnums=1)(jnp.ones(()), 2) == 3


@pytest.mark.parametrize(
    "run", [lambda f, x: compile_program(jax.jit(f).trace(x)), lambda f, x: device_jit(f)(x)], ids=["traced", "called"]
)
def test_the_compiler_is_given_the_options(run, monkeypatch):
    """That of CPUs does not know them, and says so."""
    monkeypatch.setattr(compiling, "compiler_options", lambda: {"xla_tpu_scoped_vmem_limit_kib": 1024})
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_tpu_scoped_vmem_limit_kib"):
        run(lambda x: x * 5, jnp.ones(()))
