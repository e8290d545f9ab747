"""The smallest subject, built once, and programs compiled without LLVM's optimisations, as speed is not tested here."""

import jax
import pytest

from benchmarks.subjects import build, read_settings
from spo_jax.parallel.mesh import make_mesh

# Training batches that do not divide the six pairs of a rollout.
MICRO = ["prompts_per_batch=2", "spo.train_batch_size=4", "lora.rank=2", "lora.alpha=4.0"]


@pytest.fixture(scope="package", autouse=True)
def compiled_quickly():
    """Compiles without most optimisations, because compiling takes nearly all the seconds of these tests."""
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
    """The values of ``--set`` for `micro`."""
    return MICRO


@pytest.fixture(scope="package")
def micro(one_device):
    """The subject of ``--size=micro`` on one device, with its programs traced."""
    with jax.set_mesh(one_device):
        subject = build("micro", read_settings("micro", MICRO))
        assert subject.traced.keys() == {"collect", "update"}
    return subject
