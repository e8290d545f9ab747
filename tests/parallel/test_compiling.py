"""Programs for TPUs take the options of their chip, wherever they are compiled."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from spo_jax.parallel.compiling import compile_program, compiler_options


@pytest.mark.parametrize(
    ("kind", "kib"), [("TPU v5 lite", 65_536), ("TPU v6 lite", 65_536), ("TPU v4", None), ("TPU v5p", None)]
)
def test_operations_may_take_half_of_a_chips_own_memory(kind, kib):
    mesh = AbstractMesh((8,), ("data",), (AxisType.Auto,), abstract_device=AbstractDevice(kind, 1, "tpu"))
    with jax.sharding.use_abstract_mesh(mesh):
        assert compiler_options() == ({"xla_tpu_scoped_vmem_limit_kib": kib} if kib else {})


def test_cpus_have_no_options_of_their_own():
    assert compiler_options() == {}
    assert compile_program(jax.jit(lambda x: x + 1).trace(jnp.ones(())))(jnp.ones(())) == 2
