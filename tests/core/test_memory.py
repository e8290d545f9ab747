"""Memory that does not suffice: real errors of devices and of the host become one line, and others stay as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.core.memory import explaining_memory, out_of_memory
from spo_jax.core.progress import stage


def on_device():
    jax.block_until_ready(jnp.zeros(2**44, jnp.float32))


def in_a_program():
    """The cumulative sum is needed as a whole, so that XLA cannot compute it piece by piece."""
    program = jax.jit(lambda x: jnp.cumsum(jnp.broadcast_to(x, 2**43))[:2])
    jax.block_until_ready(program(jnp.ones(())))


def on_the_host():
    np.zeros(2**50)


@pytest.mark.parametrize(
    ("need", "where", "amount"),
    [
        (on_device, "a device", r" \(64 TiB more were asked for\)"),
        (in_a_program, "a device", r" \([\d.]+ [GT]iB more were asked for\)"),
        (on_the_host, "this machine", r" \(8 PiB more were asked for\)"),
    ],
)
def test_too_little_memory_is_one_line(need, where, amount):
    message = rf"^out of memory on {where} while compiling update{amount}: lower the chunk$"
    with (
        pytest.raises(UserError, match=message),
        explaining_memory(lambda: "lower the chunk"),
        stage("compiling update"),
    ):
        need()


def test_the_numbers_of_a_compiler_are_shown():
    """As the compiler for TPUs words it."""
    error = RuntimeError(
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.05G of "
        "15.75G hbm. Exceeded hbm capacity by 4.30G."
    )
    assert out_of_memory(error, "lower it") == "out of memory on a device (20.05G needed, 15.75G there): lower it"


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="out of memory, says the user"), explaining_memory(lambda: ""):
        raise RuntimeError("out of memory, says the user")
    with pytest.raises(jax.errors.JaxRuntimeError), explaining_memory(lambda: ""):
        jax.block_until_ready(jax.jit(lambda x: jax.pure_callback(lambda x: 1 / 0, x, x))(jnp.ones(())))
