"""What blocks that are computed again in the backward pass keep, and what they do not compute a second time.

That gradients are those of blocks that keep everything is tested with a whole UNet (tests/nn/test_lora.py).
"""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import print_saved_residuals
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec

from spo_jax.methods.spo.settings import SPOTrainSettings
from spo_jax.nn import attention
from spo_jax.nn.attention import FLASH_TOKENS
from spo_jax.nn.layers import Attention, BasicTransformerBlock, ResnetBlock
from spo_jax.nn.remat import KEEPS, recomputed


def gradient(block, *inputs):
    """The sum of a block's outputs with its gradient for the first input, as a function; and shapes of its weights."""
    params = jax.eval_shape(block.init, jax.random.key(0), *inputs)

    def loss(x, params):
        return block.apply(params, x, *inputs[1:]).sum()

    return jax.value_and_grad(loss), params


def operations(name, block, *inputs):
    """How often an operation is in the program of `gradient`."""
    found, params = gradient(block, *inputs)
    return jax.jit(found).lower(inputs[0], params).as_text().count(f"stablehlo.{name}")


@pytest.mark.parametrize(("remat", "convolutions"), [(False, 4), (True, 5), ("inputs", 5), ("costly", 4)])
def test_the_first_convolution_is_costly_and_the_last_one_not_needed(remat, convolutions):
    block = recomputed(ResnetBlock, remat)(8, 4, 1e-5)
    assert operations("convolution", block, jnp.zeros((1, 4, 4, 8))) == convolutions


# Eight projections, the first of the feed-forward, and two products in each attention. Of these the scores alone are
# always computed again, and on CPUs both, because the gradient of the division at the end needs what is divided.
@pytest.mark.parametrize(
    ("platform", "remat", "again"),
    [("gpu", False, 0), ("gpu", "inputs", 13), ("gpu", "costly", 13), ("gpu", "products", 2)]
    + [("cpu", False, 0), ("cpu", "inputs", 13), ("cpu", "products", 4)],
)
def test_products_are_not_computed_again_if_they_are_kept(monkeypatch, platform, remat, again):
    monkeypatch.setattr(attention, "platform_in_context", lambda: platform)
    x, context = jnp.zeros((1, 9, 16)), jnp.zeros((1, 7, 12))
    block = recomputed(BasicTransformerBlock, remat)(2)
    plain = operations("dot_general", BasicTransformerBlock(2), x, context)
    assert operations("dot_general", block, x, context) == plain + again


def test_settings_name_what_can_be_kept():
    (field,) = [field for field in dataclasses.fields(SPOTrainSettings) if field.name == "remat_keeps"]
    assert field.metadata["choices"] == KEEPS
    assert not SPOTrainSettings().recomputed and SPOTrainSettings(remat=True).recomputed == "inputs"


@pytest.mark.parametrize(("keys", "kept"), [(FLASH_TOKENS, True), (77, False)])
def test_what_flash_attention_gives_is_kept_if_there_are_many_keys(capsys, keys, kept):
    """Its output and, for every head and query, one number."""
    chip = AbstractDevice("TPU v5 lite", 1, "tpu")
    mesh = AbstractMesh((4, 2), ("data", "fsdp"), (AxisType.Auto,) * 2, abstract_device=chip)
    block = recomputed(Attention, "costly")(2)
    inputs = jnp.zeros((8, FLASH_TOKENS, 16)), jnp.zeros((8, keys, 16))
    with jax.sharding.use_abstract_mesh(mesh):
        params = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(block.init, jax.random.key(0), *inputs)
        )
        print_saved_residuals(lambda x: block.apply(params, x, inputs[1]).sum(), inputs[0])
    found = capsys.readouterr().out
    assert ("f32[8,1024,16] output of shard_map" in found) == ("f32[8,1,2,1024] output of shard_map" in found) == kept


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler (libtpu) is not installed")
@pytest.mark.parametrize(("remat", "kernels"), [(False, 2), ("costly", 2), ("inputs", 3)])
def test_tpus_do_not_attend_twice(remat, kernels):
    """In the compiled program, because a kernel whose results nobody reads is in the traced one."""
    from benchmarks.topologies import find_topology

    mesh = jax.make_mesh((8, 1), ("data", "fsdp"), (AxisType.Auto,) * 2, devices=find_topology("v5e:2x4"))
    rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    x = jax.ShapeDtypeStruct((8, FLASH_TOKENS, 256), jnp.bfloat16, sharding=rows)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        found, params = gradient(recomputed(Attention, remat)(2, dtype=jnp.bfloat16), x)
        text = jax.jit(found).lower(x, params).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == kernels
