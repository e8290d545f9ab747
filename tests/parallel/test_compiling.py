"""Programs for TPUs take the options of their chip, wherever they are compiled."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from spo_jax.parallel import compiling
from spo_jax.parallel.compiling import compile_program, compiler_options, device_jit


@pytest.mark.parametrize(
    ("kind", "kib"), [("TPU v5 lite", 65_536), ("TPU v6 lite", 65_536), ("TPU v4", None), ("TPU v5p", None)]
)
def test_operations_may_take_half_of_a_chips_own_memory(kind, kib):
    mesh = AbstractMesh((8,), ("data",), (AxisType.Auto,), abstract_device=AbstractDevice(kind, 1, "tpu"))
    with jax.sharding.use_abstract_mesh(mesh):
        assert compiler_options().get("xla_tpu_scoped_vmem_limit_kib") == kib
        assert compiler_options()["xla_jf_spmd_threshold_for_windowed_einsum_mib"] > 2**15  # more than any weight has


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
