"""The optimiser step's arithmetic: learning rate, chunks, where the state lies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.trees import flatten
from spo_jax.methods.spm.inputs import draw
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.methods.spm.update import (
    apply_gradients,
    chunk_size,
    cut,
    flat_row,
    init_state,
    joined,
    learning_rate,
    make_optimiser,
    state_shardings,
)
from spo_jax.parallel.mesh import MeshSettings, make_mesh, over_batch


def test_the_learning_rate_rises_and_falls_linearly():
    """transformers' get_linear_schedule_with_warmup, hand-computed."""
    rate = learning_rate(SPMTrainSettings(num_steps=10, warmup_steps=4, learning_rate=8.0))
    wanted = [0, 2, 4, 6, 8, 8 * 5 / 6, 8 * 4 / 6, 4, 8 * 2 / 6, 8 / 6, 0]
    np.testing.assert_allclose([rate(step) for step in range(11)], wanted, rtol=1e-6)  # float32


def test_without_warm_up_it_only_falls():
    rate = learning_rate(SPMTrainSettings(num_steps=4, warmup_steps=0, learning_rate=8.0))
    np.testing.assert_allclose([rate(step) for step in range(5)], [8, 6, 4, 2, 0], rtol=1e-6)


def test_a_step_is_adamw_after_a_clip():
    """The second step, at the full rate: the gradients' signs, and the decay of every weight, biases too."""
    settings = SPMTrainSettings(
        num_steps=2, warmup_steps=1, learning_rate=0.1, weight_decay=0.5, max_grad_norm=1.0, adam_epsilon=1e-8,
        adam_beta1=0.0, adam_beta2=0.0,
    )  # fmt: skip
    params = {"logit_scale": jnp.zeros(()), "dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.full(2, 4.0)}}
    gradient = jax.tree.map(lambda x: 30.0 * jnp.ones_like(x), params)
    state = init_state(params, make_optimiser(settings))
    state, first = apply_gradients(state, gradient, settings)
    assert (float(first["learning_rate"]), int(state.step)) == (0.0, 1)
    np.testing.assert_array_equal(state.params["dense"]["kernel"], 1)
    state, second = apply_gradients(state, gradient, settings)
    assert float(second["learning_rate"]) == pytest.approx(0.1)
    assert float(second["grad_norm"]) == pytest.approx(30 * 7**0.5)  # before the clip
    np.testing.assert_allclose(state.params["dense"]["kernel"], 1 - 0.1 * (1 + 0.5), rtol=1e-6)
    np.testing.assert_allclose(state.params["dense"]["bias"], 4 - 0.1 * (1 + 2), rtol=1e-6)


@pytest.mark.parametrize(
    ("batch", "most", "devices", "wanted"),
    [(64, 16, 4, 64), (64, 5, 4, 16), (64, 100, 1, 64), (7, 3, 1, 1), (12, 5, 2, 6), (8, 1, 8, 8)],
)
def test_chunks_cut_a_batch_evenly(batch, most, devices, wanted):
    size = chunk_size(batch, most, devices)
    assert size == wanted and batch % size == 0 and size % devices == 0 and size <= most * devices


def test_cut_moves_no_row_to_another_device_and_joined_puts_them_back():
    mesh = make_mesh(MeshSettings(data=4, fsdp=2))
    with jax.set_mesh(mesh):
        rows = jax.device_put(np.arange(32).reshape(32, 1), over_batch(mesh))
        parts = jax.jit(lambda x: cut(x, 16))(rows)
        assert parts.shape == (2, 16, 1)
        home = {int(row): shard.device for shard in rows.addressable_shards for row in np.ravel(shard.data)}
        for shard in parts.addressable_shards:
            assert {home[int(row)] for row in np.ravel(shard.data)} == {shard.device}
        np.testing.assert_array_equal(jax.jit(joined)(parts), rows)


def test_moments_lie_where_their_weights_do():
    mesh = make_mesh(MeshSettings(data=1, fsdp=8))
    params = {"dense": {"kernel": jnp.zeros((3, 16)), "bias": jnp.zeros(16)}, "logit_scale": jnp.zeros(())}
    state = init_state(params, make_optimiser(SPMTrainSettings()))
    found = state_shardings(state, mesh)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    moments = found.opt_state[1][0]
    for tree in (found.params, moments.mu, moments.nu):
        cut_axes = {path: tuple(sharding.spec) for path, sharding in flatten(tree).items()}
        assert cut_axes == {"dense/kernel": (None, "fsdp"), "dense/bias": (), "logit_scale": ()}


def test_draws_follow_the_key_and_nothing_else():
    one, other, third = (draw(jax.random.key(k), 6, (2, 2, 3), 1000, 1.0, True, True) for k in (0, 0, 1))
    for a, b, c in zip(one, other, third, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (np.asarray(a) != np.asarray(c)).any()
    assert (np.asarray(one.posterior[:, 0]) != np.asarray(one.posterior[:, 1])).all()  # two pictures, two draws


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_timesteps_are_uniform_to_the_power(power):
    """Of 20,000: every tenth of the range holds what floor(1000 u^power) gives it, to five standard deviations."""
    t = np.asarray(draw(jax.random.key(0), 20_000, (1, 1, 1), 1000, power, False, False).t)
    assert t.min() >= 0 and t.max() <= 999
    shares = np.histogram(t, bins=10, range=(0, 1000))[0] / len(t)
    wanted = np.diff((np.arange(11) / 10) ** (1 / power))
    assert (np.abs(shares - wanted) < 5 * np.sqrt(wanted / len(t))).all()


def test_a_row_leaves_out_what_no_pair_says():
    metrics = {
        "loss": np.float32(0.5),
        "right": np.array([1, 0, 0, 1.5, 0], np.float32),
        "decided": np.array([2, 0, 0, 3, 0], np.float32),
    }
    row = flat_row(metrics, 1000)
    assert row == {"loss": 0.5, "accuracy": 0.5, "accuracy_at/t000-199": 0.5, "accuracy_at/t600-799": 0.5}
    assert "accuracy" not in flat_row({**metrics, "decided": np.zeros(5), "right": np.zeros(5)}, 1000)
