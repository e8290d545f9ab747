"""The rollout against the algorithm written as a plain loop, its plans, and the judging of what it leaves."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.diffusion.schedule import ScheduleConfig
from spo_jax.diffusion.ddpm import make_ddpm
from spo_jax.methods.spo.resampler import (
    Draws,
    ResamplerConfig,
    Trajectory,
    draw,
    judge,
    judged_timesteps,
    make_plan,
    rollout,
)

PROCESS = ScheduleConfig(
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, set_alpha_to_one=False, steps_offset=1
)
SD15 = ResamplerConfig()
SDXL = ResamplerConfig(num_candidates=2, num_inner_step=3, branch_at_last_step=False)
SHAPE = (2, 3, 1)


def schedule_of(config):
    return make_ddpm(PROCESS, config.num_steps)


def numpy_draws(config, batch):
    """As `draw`, without the seconds that compiling it takes for every shape."""
    rng, k, records = np.random.default_rng(0), config.num_candidates, config.num_steps - config.divert_start_step
    normal = lambda *shape: jnp.asarray(rng.standard_normal((*shape, batch, *SHAPE), np.float32))  # noqa: E731
    choice = jnp.asarray(rng.integers(0, k, (records - 1, batch), np.int32))
    return Draws(normal(), normal(config.divert_start_step), normal(records, k), choice)


def denoise(x, t):
    """Any smooth function that depends on latents and timestep."""
    return jnp.tanh(x * (0.4 + t / 2000.0))


def loop(config, schedule, draws):
    """Section 2 of the algorithm in float64, one prompt and one step after the other; the UNet runs on parents only."""
    alphas = schedule.alphas_cumprod.astype(np.float64)
    init, shared, pool_noise, choice = (np.asarray(x, np.float64) for x in draws)
    k, first, last = config.num_candidates, config.divert_start_step, config.num_steps - 1

    def step(x, t, noise):
        eps = np.tanh(x * (0.4 + t / 2000.0))
        a, a_prev = alphas[t], alphas[max(t - 1000 // config.num_steps, 0)]
        x0 = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
        variance = config.eta**2 * (1 - a_prev) / (1 - a) * (1 - a / a_prev)
        return x0, np.sqrt(a_prev) * x0 + np.sqrt(1 - a_prev - variance) * eps + np.sqrt(variance) * noise

    out = {"parents": [], "children": [], "judged": []}
    for b in range(init.shape[0]):
        x = init[b]
        for i in range(first):
            _, x = step(x, schedule.timesteps[i], shared[i, b])
        candidates, parents, children, judged = [x] * k, [], [], []
        for i in range(first, last + 1):
            t, record = schedule.timesteps[i], i - first
            may_branch = i < last or config.branch_at_last_step
            if record and record % (config.num_inner_step + 1) == 0 and may_branch:
                judged.append([step(x, t, 0.0)[0] for x in candidates])
                candidates = [candidates[int(choice[record - 1, b])]] * k
            parents.append(candidates)
            candidates = [step(x, t, pool_noise[record, c, b])[1] for c, x in enumerate(candidates)]
            children.append(candidates)
        for name, value in (("parents", parents), ("children", children), ("judged", [*judged, candidates])):
            out[name].append(value)
    return {name: np.moveaxis(np.asarray(value), 0, 2) for name, value in out.items()}


CASES = {
    "SD 1.5": ResamplerConfig(num_steps=8, divert_start_step=3, num_candidates=3),
    "from the first step": ResamplerConfig(num_steps=4, divert_start_step=0, num_candidates=2),
    "the last step alone": ResamplerConfig(num_steps=4, divert_start_step=3, num_candidates=2),
    "less noise": ResamplerConfig(num_steps=5, divert_start_step=1, num_candidates=2, eta=0.5),
    "SDXL": ResamplerConfig(12, 1.0, 4, 2, num_inner_step=3, branch_at_last_step=False),
    "inner steps that do not come out even": ResamplerConfig(11, 1.0, 3, 3, num_inner_step=1),
    "no branch at the last step": ResamplerConfig(8, 1.0, 3, 2, branch_at_last_step=False),
}


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_the_scan_equals_a_plain_loop(config):
    schedule, plan = schedule_of(config), make_plan(config)
    draws = numpy_draws(config, batch=2)
    found = jax.jit(lambda draws: rollout(denoise, config, schedule, draws))(draws)
    expected = loop(config, schedule, draws)
    parents = expected["parents"]
    if plan.shares_parent:
        assert (parents == parents[:, :1]).all()
        parents = parents[:, 0]
    np.testing.assert_allclose(found.parents, parents, atol=3e-5)
    np.testing.assert_allclose(found.children, expected["children"], atol=3e-5)
    np.testing.assert_allclose(found.judged, expected["judged"], atol=3e-5)


@pytest.mark.parametrize("config", [SD15, SDXL], ids=["SD 1.5", "SDXL"])
def test_the_network_is_in_the_program_twice(config):
    """Once in the scan over the shared steps, once in the one over the pools: compiling time and memory."""
    program = jax.make_jaxpr(lambda draws: rollout(denoise, config, schedule_of(config), draws).judged)
    program = program(numpy_draws(config, batch=1))
    assert len(re.findall(r"\btanh\b", str(program))) == 2


def test_plan_of_sd15():
    """16 judgements of one step each: at steps 5 to 19, and of the finished latents."""
    plan = make_plan(SD15)
    assert plan.branches.all() and plan.shares_parent
    assert plan.segment.tolist() == list(range(16))
    assert plan.judged_at.tolist() == list(range(5, 20))
    assert judged_timesteps(SD15, schedule_of(SD15)).tolist() == [*range(701, 0, -50), 0]


def test_plan_of_sdxl():
    """Segments 4-7, 8-11, 12-15, 16-19; the last step never branches."""
    plan = make_plan(SDXL)
    assert not plan.shares_parent
    assert plan.segment.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert plan.judged_at.tolist() == [8, 12, 16]
    assert judged_timesteps(SDXL, schedule_of(SDXL)).tolist() == [551, 351, 151, 0]


def test_plan_of_sdxl_without_inner_steps():
    """15 judgements, and the last segment holds two pairs."""
    plan = make_plan(ResamplerConfig(num_candidates=2, branch_at_last_step=False))
    assert plan.segment.tolist() == [*range(15), 14]
    assert plan.judged_at.tolist() == list(range(5, 19))
    assert not plan.shares_parent


def test_draws_come_from_one_key():
    program = jax.jit(lambda seed: draw(jax.random.key(seed), SD15, 3, SHAPE))
    one, again, other = (program(seed) for seed in (0, 0, 1))
    assert jax.tree.map(jnp.shape, one) == ((3, *SHAPE), (4, 3, *SHAPE), (16, 4, 3, *SHAPE), (15, 3))
    for a, b, c in zip(one, again, other, strict=True):
        assert (a == b).all() and not (a == c).all()
    assert np.unique(one.choice).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("chunk", [1, 4, 7, 12, 100])
def test_judging_does_not_depend_on_the_chunk(chunk):
    """3 judgements of 2 candidates of 2 prompts; each is told its own timestep and prompt."""
    judged = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2, 2, *SHAPE), np.float32))
    told = np.array([501, 251, 0], np.int32)
    trajectory = Trajectory(jnp.zeros((3, 2, *SHAPE)), judged, told, judged, told)
    sizes = []

    def score(latents, t, row):
        sizes.append(len(latents))
        return latents.sum((1, 2, 3)) + 10.0 * t + 100_000.0 * row

    expected = judged.sum((3, 4, 5)) + 10.0 * told.reshape(3, 1, 1) + jnp.array([[[0.0, 100_000.0]]])
    found = judge(score, trajectory, chunk)
    assert set(sizes) == {min(chunk, 12)}
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_steps": 0}, "spo.num_steps = 0: expected at least 1"),
        ({"eta": 0.0}, "spo.eta = 0.0: expected more than 0: a deterministic step has no likelihood"),
        ({"divert_start_step": 20}, "spo.divert_start_step = 20: expected 0 to 19"),
        ({"divert_start_step": -1}, "spo.divert_start_step = -1"),
        ({"divert_start_step": 19, "branch_at_last_step": False}, "spo.divert_start_step = 19: expected 0 to 18"),
        ({"num_candidates": 1}, "spo.num_candidates = 1: expected at least 2"),
        ({"num_inner_step": -1}, "spo.num_inner_step = -1: expected 0 or more"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(UserError, match=message):
        ResamplerConfig(**fields)
