"""LoRA against peft on diffusers' UNet, with gradients to 1e-3 per tensor, and what the adapter must not change."""

import functools
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peft import LoraConfig

from spo_jax.core.trees import flatten, unflatten
from spo_jax.models.stable_diffusion.unet import UNet2DConditionModel
from spo_jax.nn import lora as lora_lib
from spo_jax.nn.layers import Attention
from spo_jax.weights.rules import module_name, module_path
from tests.support.precisions import FULL, precisions

RANK = 3
ALPHA = 6.0
SIZE = (6, 4)
# The published targets, and all linear layers of a UNet with linear projections.
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
EVERY = [*ATTENTION, "proj", "net.2", "proj_in", "proj_out", "time_emb_proj", "linear_1", "linear_2"]
CASES = {"sd15": (ATTENTION, lora_lib.ATTENTION_TARGETS), "sdxl": (EVERY, "")}


def _random_adapter(params, pattern):
    """A as peft initialises it, and a B that is not zero; from numpy, because JAX would compile once per shape."""
    normal = np.random.default_rng(0).standard_normal
    flat = {}
    for path, (features_in, features_out) in lora_lib.target_shapes(params, pattern).items():
        flat[f"{path}/lora_A"] = normal((features_in, RANK), np.float32) / RANK
        flat[f"{path}/lora_B"] = 0.3 * normal((RANK, features_out), np.float32)
    return jax.device_put(unflatten(flat))


@pytest.fixture(scope="module")
def adapted(unets, reference):
    """Kind -> network, adapter, inputs, weights of the loss, and a function for the gradients with or without remat."""

    @functools.cache
    def build(kind):
        net = unets(kind)
        inputs = net.inputs(*SIZE)
        weights = reference.normal(5, 2, *SIZE, net.ours.config.out_channels)

        @functools.cache
        def run(remat):
            """The prediction, and the gradients of sum(weights * prediction)."""
            module = UNet2DConditionModel(net.ours.config, remat)

            def loss(adapter):
                variables = {"params": net.params, "lora": lora_lib.scaled(adapter, ALPHA / RANK)}
                out = module.apply(variables, *inputs)
                return jnp.sum(weights * out), out

            gradients, out = reference.jit(jax.grad(loss, has_aux=True))(adapter)
            return out, flatten(gradients)

        adapter = _random_adapter(net.params, CASES[kind][1])
        return SimpleNamespace(**vars(net), adapter=adapter, example=inputs, weights=weights, run=run)

    return build


@pytest.fixture(scope="module")
def peft_results(adapted, reference):
    """Kind -> prediction and gradients of peft's adapter with the same A and B, under our names and in our layouts."""

    def run(kind):
        net = adapted(kind)
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=CASES[kind][0])
        net.theirs.add_adapter(config, "test")
        leaves = {name: p for name, p in net.theirs.named_parameters() if ".lora_" in name}
        flat = flatten(net.adapter)
        try:
            paths = {}
            for name, parameter in leaves.items():
                module, leaf = re.fullmatch(r"(.+)\.(lora_[AB])\.test\.weight", name).groups()
                paths["/".join((*module_path(module), leaf))] = parameter
            assert paths.keys() == flat.keys()
            for path, parameter in paths.items():
                parameter.data = reference.to_torch(flat[path].T)
                parameter.requires_grad_(True)
            out = net.predict(*net.example)
            (reference.to_torch(net.weights) * out).sum().backward()
            return out.detach(), {path: p.grad.numpy().T for path, p in paths.items()}
        finally:
            # This leaves peft's wrappers in place, which behave as the plain layers without an adapter.
            net.theirs.delete_adapters("test")

    return run


@pytest.mark.parametrize(("kind", "remat"), [("sd15", "products"), ("sdxl", False)])
def test_forward_and_gradients_are_pefts(adapted, peft_results, reference, kind, remat):
    out, gradients = adapted(kind).run(remat)
    expected_out, expected = peft_results(kind)
    assert reference.relative_error(out, expected_out) < 1e-4
    assert gradients.keys() == expected.keys()
    errors = {path: reference.relative_error(gradients[path], expected[path]) for path in expected}
    assert max(errors.values()) < 1e-3, max(errors, key=errors.get)


def test_remat_changes_nothing(adapted, reference):
    """Recomputing what a block does not keep gives the same values: nothing is random, and dtypes do not change."""
    net = adapted("sd15")
    out, gradients = net.run(False)
    remat_out, remat_gradients = net.run("products")
    assert reference.relative_error(remat_out, out) < 1e-5
    errors = [reference.relative_error(remat_gradients[path], gradients[path]) for path in gradients]
    # Blocks are fused differently, so sums are split differently.
    assert max(errors) < 1e-4 and np.median(errors) < 3e-5
    # Resnets on the way down, in the middle and on the way up; then transformer blocks.
    blocks = (1 + 1) + 2 + (2 + 2) + (1 + 1 + 2)
    for remat, expected in ((False, 0), (True, blocks)):
        module = UNet2DConditionModel(net.ours.config, remat)
        assert reference.remat_blocks(module.apply, {"params": net.params}, *net.example) == expected


def test_without_the_collection_the_policy_is_the_reference(adapted, reference):
    """No adapter, an empty adapter and an adapter with B = 0 give the same policy."""
    net = adapted("sd15")
    base = net.apply({"params": net.params}, *net.example)
    for adapter in ({}, lora_lib.scaled(net.adapter, 0.0)):
        np.testing.assert_array_equal(net.apply({"params": net.params, "lora": adapter}, *net.example), base)
    # The adapter of these tests gives a different policy.
    assert reference.relative_error(net.run(False)[0], base) > 1e-2


def test_merged_weights_are_the_adapter(adapted, reference):
    net = adapted("sd15")
    merged = lora_lib.merge(net.params, net.adapter, ALPHA / RANK)
    out = net.apply({"params": merged}, *net.example)
    assert reference.relative_error(out, net.run(False)[0]) < 1e-5
    flat = flatten(merged)
    changed = {path.rsplit("/", 1)[0] for path in flatten(net.adapter)}
    for path, leaf in flatten(net.params).items():
        assert np.array_equal(flat[path], leaf) == (path.removesuffix("/kernel") not in changed)


def test_merging_is_the_same_program_in_every_process():
    """Additions come in the order of the names; any other program would not be found in the compilation cache."""
    widths = dict(zip("bdfhacge", range(3, 11), strict=True))
    kernels = {name: {"kernel": jnp.ones((width, width))} for name, width in widths.items()}
    adapter = {n: {"lora_A": jnp.ones((w, 2)), "lora_B": jnp.ones((2, w))} for n, w in widths.items()}
    equations = jax.make_jaxpr(lora_lib.merge, static_argnums=2)(kernels, adapter, 1.0).eqns
    products = [e.outvars[0].aval.shape[0] for e in equations if e.primitive.name == "dot_general"]
    assert products == [widths[name] for name in sorted(widths)]


def test_merge_keeps_the_dtype_and_sums_in_float32():
    """bfloat16 has steps of 2 above 256: slightly more than 257 is 258, unless the update is rounded first."""
    kernel = jnp.full((2, 2), 256.0, jnp.bfloat16)
    adapter = {"to_q": {"lora_A": jnp.ones((2, 1)), "lora_B": jnp.full((1, 2), 1 + 2.0**-9)}}
    merged = lora_lib.merge({"to_q": {"kernel": kernel}}, adapter, 1.0)["to_q"]["kernel"]
    assert merged.dtype == jnp.bfloat16
    np.testing.assert_array_equal(merged.astype(jnp.float32), 258.0)


def test_adapter_is_computed_in_float32():
    """In bfloat16 this A would be (1, -1), and the result 0."""
    module = lora_lib.LoRADense(1, use_bias=False, dtype=jnp.bfloat16)
    lora = {"lora_A": jnp.array([[1 + 2.0**-10], [-1.0]]), "lora_B": jnp.ones((1, 1))}
    variables = {"params": {"kernel": jnp.zeros((2, 1), jnp.bfloat16)}, "lora": lora}
    out = module.apply(variables, jnp.ones((1, 2), jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    assert float(out.squeeze()) == 2.0**-10


def test_the_products_of_an_adapter_are_float32_on_every_device():
    """TPUs and NVIDIA GPUs multiply float32 in fewer bits unless a product asks for more; its gradients do as well."""
    module = lora_lib.LoRADense(6, dtype=jnp.bfloat16)
    params = {"kernel": jnp.zeros((4, 6), jnp.bfloat16), "bias": jnp.zeros(6, jnp.bfloat16)}
    lora = {"lora_A": jnp.ones((4, 2)), "lora_B": jnp.ones((2, 6))}
    x = jnp.ones((3, 4), jnp.bfloat16)

    def total(lora, x):
        return module.apply({"params": params, "lora": lora}, x).astype(jnp.float32).sum()

    found = precisions(jax.grad(total, argnums=(0, 1)), lora, x)
    # The base weights' product and its gradient are those of the network's dtype.
    assert sorted(precision == FULL for _, precision in found) == [False] * 2 + [True] * 6
    merged = precisions(lambda lora: lora_lib.merge({"to_q": params}, {"to_q": lora}, 1.0), lora)
    assert merged == [("dot_general", FULL)]


def test_targets_are_the_attention_projections(unets):
    net = unets("sd15")
    targets = lora_lib.target_shapes(net.params)
    named = {name for name, m in net.theirs.named_modules() if name.endswith(tuple(ATTENTION)) and "attn" in name}
    named = {name.removesuffix(".base_layer") for name in named}
    assert {module_name(path.split("/")) for path in targets} == {name for name in named if ".lora_" not in name}
    assert len(targets) == 8 * (1 + 1 + 2)
    cross = "down_blocks_0/attentions_0/transformer_blocks_0/attn2"
    assert targets[f"{cross}/to_q"] == (8, 8) and targets[f"{cross}/to_k"] == (12, 8)


def test_init_is_pefts_gaussian():
    params = {
        "attn1": {name: {"kernel": jnp.zeros((400, 300))} for name in ("to_q", "to_k")},
        "ff": {"kernel": jnp.zeros((4, 4))},
    }
    adapter = lora_lib.init_lora(jax.random.key(0), params, rank=8)
    a, other = (adapter["attn1"][name]["lora_A"] for name in ("to_q", "to_k"))
    assert a.shape == (400, 8) and a.dtype == jnp.float32
    assert abs(float(a.std()) * 8 - 1) < 0.05 and abs(float(a.mean())) < 0.01
    assert not np.array_equal(a, other)
    assert adapter["attn1"]["to_q"]["lora_B"].shape == (8, 300)
    assert all(not leaf["lora_B"].any() for leaf in adapter["attn1"].values())
    assert adapter.keys() == {"attn1"}


def test_scaled_multiplies_only_b():
    adapter = {"attn1": {"to_q": {"lora_A": jnp.ones((2, 1)), "lora_B": jnp.ones((1, 2))}}}
    flat = flatten(lora_lib.scaled(adapter, 0.5))
    assert flat["attn1/to_q/lora_A"].tolist() == [[1.0], [1.0]]
    assert flat["attn1/to_q/lora_B"].tolist() == [[0.5, 0.5]]


def test_adapter_of_one_module_leaves_the_others_unchanged(reference):
    module = Attention(heads=2)
    x = reference.normal(0, 1, 3, 4)
    params = module.init(jax.random.key(0), x)["params"]
    lora = unflatten({"to_v/lora_A": jnp.ones((4, 1)), "to_v/lora_B": jnp.ones((1, 4))})
    expected = params | {"to_v": {"kernel": params["to_v"]["kernel"] + 1.0}}
    out = module.apply({"params": params, "lora": lora}, x)
    assert reference.relative_error(out, module.apply({"params": expected}, x)) < 1e-5
