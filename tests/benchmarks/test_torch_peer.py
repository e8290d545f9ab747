"""The peer in PyTorch computes what we compute, so that comparing their speed means something.

float32 on both sides, the same weights, draws and order of pairs. Latents 1e-4 of the largest value after all steps
and scores 2e-3 of about ±10, as in the golden tests; losses 2e-5; gradients 1e-3 of each tensor's largest value.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from benchmarks.contender import write_models
from benchmarks.torch_peer import Draws, Peer
from spo_jax.core.trees import flatten
from spo_jax.methods.spo.pairs import make_pairs, rank, shuffled_order
from spo_jax.methods.spo.resampler import draw, judge, make_plan, rollout
from spo_jax.methods.spo.update import init_state, make_optimiser
from spo_jax.models.base import Guidance, bind_denoise
from spo_jax.models.stable_diffusion.functions import decode
from spo_jax.rewards.common.clip_score import score_images
from spo_jax.weights.rules import module_name


def nchw(x):
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, -3).copy())


def relative_error(ours, theirs):
    """Largest difference over the largest value; ours NHWC where theirs is NCHW."""
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    theirs = np.moveaxis(theirs, -3, -1) if theirs.ndim > 3 else theirs
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def roll(subject, lora, frozen, inputs, draws):
    """What `Networks.collect` does, from given draws and with the scores."""
    networks, settings = subject.networks, subject.settings.spo
    guidance = Guidance(inputs.condition, frozen.unconditional, settings.guidance_scale)
    policy = bind_denoise(networks.pipeline.unet, frozen.unet, lora, guidance, networks.lora_scale)

    def score(latents, t, row):
        images = decode(networks.decoder, frozen.decoder, latents)
        return score_images(networks.spm.clip, frozen.spm, images, t, inputs.text[row])

    trajectory = rollout(policy, settings, networks.schedule, draws)
    scores = judge(score, trajectory, 6)
    pairs = make_pairs(trajectory, rank(scores, 0.0), make_plan(settings))
    return trajectory.children[-1], scores, pairs


@pytest.fixture(scope="module")
def lora(micro):
    """An adapter whose B is not zero, so that policy and reference differ."""
    rng = np.random.default_rng(0)
    noisy = lambda x: jnp.asarray(0.1 * rng.standard_normal(x.shape, np.float32))  # noqa: E731
    return jax.tree.map(noisy, jax.device_get(micro.fresh_state().lora))


@pytest.fixture(scope="module")
def ours(micro, lora, one_device):
    """Draws; final latents, scores and pairs."""
    settings = micro.settings.spo
    with jax.set_mesh(one_device):
        draws = draw(jax.random.key(0), settings, 2, micro.networks.pipeline.latent_shape)
        return draws, jax.jit(lambda *args: roll(micro, *args))(lora, micro.frozen, micro.inputs, draws)


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
    draws = ours[0]
    return peer.sample(Draws(*map(nchw, draws[:3]), torch.tensor(np.asarray(draws.choice)).long()))


def test_latents_scores_and_pairs(ours, theirs):
    final, scores, pairs = ours[1]
    their_pairs, their_scores, their_final = theirs
    assert relative_error(final, their_final) < 1e-4
    np.testing.assert_allclose(scores, their_scores, atol=2e-3)
    assert relative_error(pairs.x_t[:, 0], their_pairs.x_t) < 1e-4
    for member, name in enumerate(("win", "lose")):
        assert relative_error(pairs.x_prev[:, member], getattr(their_pairs, name)) < 1e-4
    np.testing.assert_array_equal(pairs.t, their_pairs.t)


def test_only_clear_pairs_are_kept(peer, ours, theirs):
    """The peer's threshold, at the middle of the scores' gaps."""
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
    """Two training batches in the same order, the second not full: losses, gradients by AdamW's first moments, LoRA.

    AdamW moves a weight by up to a whole step where its gradient is near zero, so weights are compared by a quantile.
    """
    pairs, key = ours[1][2], jax.random.key(1)
    settings = micro.settings.spo
    with jax.set_mesh(one_device):
        state = init_state(lora, make_optimiser(settings))
        state, metrics = jax.jit(micro.networks.update)(state, micro.frozen, micro.inputs, pairs, key)
        order = torch.tensor(np.asarray(shuffled_order(key, pairs.valid))).long()
    losses = peer.train(theirs[0], order)
    assert len(losses) == int(metrics["train_batches"]) == 2
    assert float(metrics["loss"]) == pytest.approx(float(torch.stack(losses).mean()), abs=2e-5)
    moments, weights = flatten(state.opt_state[1][0].mu), flatten(state.lora)
    differences = []
    assert {torch_name(path) for path in weights} == peer.lora.keys()
    for path, parameter in ((path, peer.lora[torch_name(path)]) for path in weights):
        assert relative_error(moments[path].T, peer.optimiser.state[parameter]["exp_avg"]) < 1e-3, path
        differences.append(np.abs(np.asarray(weights[path]).T - parameter.detach().numpy()).ravel())
    assert np.quantile(np.concatenate(differences), 0.99) < 0.05 * settings.learning_rate


def torch_name(path):
    """``down_blocks_0/.../to_q/lora_A`` as the LoRA file names it."""
    *module, half = path.split("/")
    return f"unet.{module_name(module)}.lora.{'down' if half == 'lora_A' else 'up'}.weight"
