"""The optimizer step of preference models: its update, where its state lies, and the rows of its curves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.trees import flatten
from spo_jax.methods.common.preference.update import apply_step, flat_row, optimizer_of, state_shardings
from spo_jax.methods.common.settings import OptimizerSettings
from spo_jax.methods.common.state import init_state
from spo_jax.methods.spm.inputs import draw
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.parallel.mesh import MeshSettings, make_mesh


def test_a_step_is_adamw_after_a_clip():
    """The second step, at the full rate: the gradients' signs, and the decay of every weight, biases included."""
    optimizer = OptimizerSettings(
        learning_rate=0.1, schedule="linear", warmup_steps=1, weight_decay=0.5, adam_beta1=0.0, adam_beta2=0.0
    )
    settings = SPMTrainSettings(train_steps=2, optimizer=optimizer)
    params = {"logit_scale": jnp.zeros(()), "dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.full(2, 4.0)}}
    gradient = jax.tree.map(lambda x: 30.0 * jnp.ones_like(x), params)
    state = init_state(params, optimizer_of(settings))
    state, first = apply_step(state, gradient, settings)
    assert (float(first["learning_rate"]), int(state.step)) == (0.0, 1)
    np.testing.assert_array_equal(state.params["dense"]["kernel"], 1)
    state, second = apply_step(state, gradient, settings)
    assert float(second["learning_rate"]) == pytest.approx(0.1)
    assert float(second["grad_norm"]) == pytest.approx(30 * 7**0.5)  # before the clip
    np.testing.assert_allclose(state.params["dense"]["kernel"], 1 - 0.1 * (1 + 0.5), rtol=1e-6)
    np.testing.assert_allclose(state.params["dense"]["bias"], 4 - 0.1 * (1 + 2), rtol=1e-6)


def test_moments_lie_where_their_weights_do():
    mesh = make_mesh(MeshSettings(data=1, fsdp=8))
    params = {"dense": {"kernel": jnp.zeros((3, 16)), "bias": jnp.zeros(16)}, "logit_scale": jnp.zeros(())}
    state = init_state(params, optimizer_of(SPMTrainSettings()))
    found = state_shardings(state, mesh)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    moments = found.opt_state[1][0]
    for tree in (found.params, moments.mu, moments.nu):
        cut_axes = {path: tuple(sharding.spec) for path, sharding in flatten(tree).items()}
        assert cut_axes == {"dense/kernel": (None, "fsdp"), "dense/bias": (), "logit_scale": ()}


def test_draws_depend_only_on_the_key():
    one, other, third = (draw(jax.random.key(k), 6, (2, 2, 3), 1000, 1.0, True, True) for k in (0, 0, 1))
    for a, b, c in zip(one, other, third, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (np.asarray(a) != np.asarray(c)).any()
    assert (np.asarray(one.posterior[:, 0]) != np.asarray(one.posterior[:, 1])).all()  # two images, two draws


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_timesteps_are_uniform_to_the_power(power):
    """Of 20,000 draws, every tenth of the range gets its share of floor(1000 u^power), to five standard deviations."""
    t = np.asarray(draw(jax.random.key(0), 20_000, (1, 1, 1), 1000, power, False, False).t)
    assert t.min() >= 0 and t.max() <= 999
    shares = np.histogram(t, bins=10, range=(0, 1000))[0] / len(t)
    wanted = np.diff((np.arange(11) / 10) ** (1 / power))
    assert (np.abs(shares - wanted) < 5 * np.sqrt(wanted / len(t))).all()


def test_a_row_leaves_out_accuracies_without_a_decided_pair():
    metrics = {
        "loss": np.float32(0.5),
        "right": np.array([1, 0, 0, 1.5, 0], np.float32),
        "decided": np.array([2, 0, 0, 3, 0], np.float32),
    }
    row = flat_row(metrics, 1000)
    assert row == {"loss": 0.5, "accuracy": 0.5, "accuracy_at/t000-199": 0.5, "accuracy_at/t600-799": 0.5}
    assert "accuracy" not in flat_row({**metrics, "decided": np.zeros(5), "right": np.zeros(5)}, 1000)
