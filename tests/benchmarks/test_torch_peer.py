"""The peer in PyTorch computes the same as ours, so that their speeds can be compared.

Both sides have float32 and the same weights, draws and order of pairs. Tolerances are 1e-4 of the largest value for
latents after all steps and 2e-3 for scores of about ±10, as in the golden tests; 2e-5 for losses; 1e-3 of each tensor's
largest value for gradients.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from benchmarks.contender import write_models
from benchmarks.subjects import build, read_settings
from benchmarks.torch_peer import Draws, Peer
from spo_jax.core.trees import flatten
from spo_jax.methods.common.state import init_state
from spo_jax.methods.spo.pairs import rank, shuffled_order
from spo_jax.methods.spo.resampler import draw
from spo_jax.methods.spo.thresholds import threshold_at
from spo_jax.parallel.mesh import replicated
from spo_jax.parallel.sharding import place
from spo_jax.weights.rules import module_name
from tests.benchmarks.conftest import MICRO


def nchw(x):
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, -3).copy())


def relative_error(ours, theirs):
    """The largest difference over the largest value, where ours is NHWC and theirs NCHW."""
    ours = np.asarray(ours)
    theirs = theirs.detach().numpy()
    theirs = np.moveaxis(theirs, -3, -1) if theirs.ndim > 3 else theirs
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def everywhere(tree, mesh):
    """The arrays whole on every device, as the compiled programs expect them."""
    return place(tree, replicated(mesh))


@pytest.fixture(scope="module")
def lora(micro):
    """An adapter whose B is not zero, so that policy and reference differ."""
    rng = np.random.default_rng(0)

    def noisy(x):
        return jnp.asarray(0.1 * rng.standard_normal(x.shape, np.float32))

    return jax.tree.map(noisy, micro.run.state_shapes().params)


@pytest.fixture(scope="module")
def ours(micro, lora, one_device):
    """Pairs and metrics of a rollout, and the draws that it was made from."""
    key = jax.random.key(0)
    with jax.set_mesh(one_device):
        collect = micro.traced["collect"].lower().compile()
        adapter, collect_key = everywhere((lora, key), one_device)
        pairs, metrics = collect(adapter, micro.frozen, micro.inputs, collect_key)
        return pairs, metrics, draw(key, micro.settings.spo, 2, micro.spo.pipeline.latent_shape)


@pytest.fixture(scope="module")
def peer(micro, lora, one_device, tmp_path_factory):
    """The peer with the same weights."""
    folder = tmp_path_factory.mktemp("models")
    with jax.set_mesh(one_device):
        write_models(micro, folder, lora)
    return Peer(folder, "cpu")


@pytest.fixture(scope="module")
def theirs(peer, ours):
    """Pairs, scores and final latents from the same draws."""
    draws = ours[2]
    return peer.sample(Draws(*map(nchw, draws[:3]), torch.tensor(np.asarray(draws.choice)).long()))


def test_latents_scores_and_pairs(ours, theirs):
    check_rollout(ours, theirs)


def check_rollout(ours, theirs):
    """With two candidates a pool is a pair, so the pairs hold all latents and the order of all scores."""
    pairs, metrics, _ = ours
    their_pairs, their_scores, their_final = theirs
    np.testing.assert_allclose(metrics["judge_score"], their_scores.mean((1, 2)), atol=2e-3)
    np.testing.assert_allclose(metrics["judge_gap"], (their_scores.amax(1) - their_scores.amin(1)).mean(1), atol=2e-3)
    assert relative_error(pairs.x_t[:, 0], their_pairs.x_t) < 1e-4
    for member, name in enumerate(("win", "lose")):
        assert relative_error(pairs.x_prev[:, member], getattr(their_pairs, name)) < 1e-4
    np.testing.assert_array_equal(pairs.t, their_pairs.t)
    np.testing.assert_array_equal(their_pairs.win[-2:], their_final[their_scores[-1].argmax(0), [0, 1]])


def test_lpo_on_noisy_candidates(lora, one_device, tmp_path):
    """The training is that of SPO. The threshold is that of LPO's table, which has four decimals."""
    with jax.set_mesh(one_device):
        settings = read_settings("micro", MICRO, decoder="none")
        subject = build("micro", settings, "none")
        write_models(subject, tmp_path, lora)
        adapter, key = everywhere((lora, jax.random.key(0)), one_device)
        found = jax.jit(subject.spo.collect)(adapter, subject.frozen, subject.inputs, key)
        draws = draw(key, settings.spo, 2, subject.spo.pipeline.latent_shape)
    peer = Peer(tmp_path, "cpu")
    theirs = peer.sample(Draws(*map(nchw, draws[:3]), torch.tensor(np.asarray(draws.choice)).long()))
    check_rollout((*found, draws), theirs)

    rising = {"threshold_rule": "sigma", "threshold": 0.35, "threshold_high": 0.5}
    peer.spo.__dict__.update(rising)
    peer.timesteps, peer.stride = list(range(951, 0, -50)), 50
    expected = threshold_at(dataclasses.replace(settings.spo, **rising), np.array(peer.timesteps))
    np.testing.assert_allclose([peer._threshold(t) for t in peer.timesteps], expected, atol=2e-5)


def test_only_clear_pairs_are_kept(peer, ours, theirs):
    """The threshold of the peer is set to the middle of the scores' gaps."""
    scores = theirs[1]
    gaps = torch.tanh((scores.amax(1) - scores.amin(1)) / 2)
    threshold = float(gaps.flatten().sort().values[2:4].mean())
    verdict = rank(jnp.asarray(scores.numpy()), threshold)
    peer.spo.threshold = threshold
    pairs = [
        peer._pairs(torch.zeros(2, 1), torch.zeros(2, 2, 1), row, t, torch.zeros(2, 1)) for t, row in enumerate(scores)
    ]
    peer.spo.threshold = 0.0
    kept = np.asarray(verdict.valid).sum(1)
    assert 0 < kept.sum() < 6 and [len(found.t) for found in pairs] == list(kept)


def test_training(micro, lora, ours, peer, theirs, one_device):
    """Two training batches in the same order, of which the second is not full, give the same losses and gradients.

    Gradients are compared by AdamW's first moments. AdamW moves a weight by up to a whole step where its gradient is
    near zero, so weights are compared by a quantile.
    """
    pairs = ours[0]
    key = jax.random.key(1)
    with jax.set_mesh(one_device):
        update = micro.traced["update"].lower().compile()
        state, key = everywhere((init_state(lora, micro.run.optimizer), key), one_device)
        state, metrics = update(state, micro.frozen, micro.inputs, pairs, key)
        order = torch.tensor(np.asarray(shuffled_order(key, pairs.valid))).long()
    losses = peer.train(theirs[0], order)
    assert len(losses) == int(metrics["train_batches"]) == 2
    assert float(metrics["loss"]) == pytest.approx(float(torch.stack(losses).mean()), abs=2e-5)
    moments = flatten(state.opt_state[1][0].mu)
    weights = flatten(state.params)
    differences = []
    assert {torch_name(path) for path in weights} == peer.lora.keys()
    for path, parameter in ((path, peer.lora[torch_name(path)]) for path in weights):
        assert relative_error(moments[path].T, peer.optimizer.state[parameter]["exp_avg"]) < 1e-3, path
        differences.append(np.abs(np.asarray(weights[path]).T - parameter.detach().numpy()).ravel())
    assert np.quantile(np.concatenate(differences), 0.99) < 0.05 * micro.settings.optimizer.learning_rate


def torch_name(path):
    """The name of ``down_blocks_0/.../to_q/lora_A`` in the LoRA file."""
    *module, half = path.split("/")
    return f"unet.{module_name(module)}.lora.{'down' if half == 'lora_A' else 'up'}.weight"
