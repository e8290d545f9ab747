"""Memory that does not suffice: real errors of devices and of the host become one line, and others stay as they are.

What is free again goes back to the system.
"""

import ctypes
import platform
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.core.memory import explaining_memory, out_of_memory, return_unused_memory
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back on demand")
def test_memory_that_is_free_again_goes_back_to_the_system():
    """A piece that is still used, above a hundred MiB of small ones that are not, keeps them in the process."""
    pieces = [bytearray(60_000) for _ in range(2000)]
    last = bytearray(60_000)
    del pieces
    before = resident()
    return_unused_memory()
    assert before - resident() > 50 * 2**20
    assert last[0] == 0


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_other_systems_keep_their_memory(monkeypatch, error):
    """macOS has no such function, and Windows no library without a name."""

    asked = []

    def library(name):
        asked.append(name)
        raise error

    monkeypatch.setattr(ctypes, "CDLL", library)
    return_unused_memory()
    assert asked == [None]  # the program itself, whose C library is not named


def resident():
    """Bytes of this process in memory."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
