"""The smallest subject, built once, and programs compiled without LLVM's optimisations: here speed is not measured."""

import jax
import pytest

from benchmarks.subjects import build, read_settings
from spo_jax.parallel.mesh import make_mesh

# Training batches that do not divide the six pairs of a rollout.
MICRO = ["prompts_per_batch=2", "spo.train_batch_size=4", "lora.rank=2", "lora.alpha=4.0"]


@pytest.fixture(scope="package", autouse=True)
def compiled_quickly():
    """Nearly all the seconds of these tests would be compiling."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="package")
def one_device():
    """A mesh of one device."""
    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="package")
def micro_settings():
    """What ``--set`` gets."""
    return MICRO


@pytest.fixture(scope="package")
def micro(one_device):
    """``--size=micro`` on one device."""
    with jax.set_mesh(one_device):
        return build("micro", read_settings("micro", MICRO))
