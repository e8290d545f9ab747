"""The rollout against the algorithm written as a plain loop, and its plans."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.diffusion.ddpm import make_ddpm
from spo_jax.diffusion.schedule import ScheduleConfig
from spo_jax.methods.spo.plan import judged_timesteps, make_plan
from spo_jax.methods.spo.resampler import Draws, draw, rollout
from spo_jax.methods.spo.settings import ResamplerSettings

SCHEDULE = ScheduleConfig(
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, set_alpha_to_one=False, steps_offset=1
)
SD15 = ResamplerSettings()
SDXL = ResamplerSettings(num_candidates=2, num_inner_step=3, branch_at_last_step=False)
SHAPE = (2, 3, 1)


def process_of(settings):
    return make_ddpm(SCHEDULE, settings.num_steps)


def numpy_draws(settings, batch):
    """The same as `draw`, without the seconds that it takes to compile for every shape."""
    rng = np.random.default_rng(0)
    k = settings.num_candidates
    records = settings.num_steps - settings.divert_start_step

    def normal(*shape):
        return jnp.asarray(rng.standard_normal((*shape, batch, *SHAPE), np.float32))

    choice = jnp.asarray(rng.integers(0, k, (records - 1, batch), np.int32))
    return Draws(normal(), normal(settings.divert_start_step), normal(records, k), choice)


def denoise(x, t):
    """A smooth function that depends on latents and timestep."""
    return jnp.tanh(x * (0.4 + t / 2000.0))


def loop(settings, process, draws):
    """Section 2 of the algorithm in float64, one prompt and one step at a time; the network runs on parents only."""
    alphas = process.alphas_cumprod.astype(np.float64)
    init, shared, pool_noise, choice = (np.asarray(x, np.float64) for x in draws)
    k = settings.num_candidates
    first = settings.divert_start_step
    last = settings.num_steps - 1

    def step(x, t, noise):
        eps = np.tanh(x * (0.4 + t / 2000.0))
        a, a_prev = alphas[t], alphas[max(t - 1000 // settings.num_steps, 0)]
        x0 = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
        variance = settings.eta**2 * (1 - a_prev) / (1 - a) * (1 - a / a_prev)
        return x0, np.sqrt(a_prev) * x0 + np.sqrt(1 - a_prev - variance) * eps + np.sqrt(variance) * noise

    out = {"parents": [], "children": [], "judged": []}
    for b in range(init.shape[0]):
        x = init[b]
        for i in range(first):
            _, x = step(x, process.timesteps[i], shared[i, b])
        candidates = [x] * k
        parents, children, judged = [], [], []
        for i in range(first, last + 1):
            t = process.timesteps[i]
            record = i - first
            may_branch = i < last or settings.branch_at_last_step
            if record and record % (settings.num_inner_step + 1) == 0 and may_branch:
                judged.append([step(x, t, 0.0)[0] for x in candidates])
                if settings.shared_parent:
                    candidates = [candidates[int(choice[record - 1, b])]] * k
            parents.append(candidates)
            candidates = [step(x, t, pool_noise[record, c, b])[1] for c, x in enumerate(candidates)]
            children.append(candidates)
        for name, value in (("parents", parents), ("children", children), ("judged", [*judged, candidates])):
            out[name].append(value)
    return {name: np.moveaxis(np.asarray(value), 0, 2) for name, value in out.items()}


CASES = {
    "SD 1.5": ResamplerSettings(num_steps=8, divert_start_step=3, num_candidates=3),
    "from the first step": ResamplerSettings(num_steps=4, divert_start_step=0, num_candidates=2),
    "the last step alone": ResamplerSettings(num_steps=4, divert_start_step=3, num_candidates=2),
    "less noise": ResamplerSettings(num_steps=5, divert_start_step=1, num_candidates=2, eta=0.5),
    "SDXL": ResamplerSettings(12, 1.0, 4, 2, num_inner_step=3, branch_at_last_step=False),
    "inner steps that do not come out even": ResamplerSettings(11, 1.0, 3, 3, num_inner_step=1),
    "no branch at the last step": ResamplerSettings(8, 1.0, 3, 2, branch_at_last_step=False),
    "separate trajectories": ResamplerSettings(8, 1.0, 3, 3, shared_parent=False),
    "separate trajectories, judged at every second step": ResamplerSettings(8, 1.0, 2, 2, 1, shared_parent=False),
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_the_scan_equals_a_plain_loop(settings):
    process = process_of(settings)
    plan = make_plan(settings)
    draws = numpy_draws(settings, batch=2)
    found = jax.jit(lambda draws: rollout(denoise, settings, process, draws))(draws)
    expected = loop(settings, process, draws)
    parents = expected["parents"]
    if plan.shares_parent:
        assert (parents == parents[:, :1]).all()
        parents = parents[:, 0]
    np.testing.assert_allclose(found.parents, parents, atol=3e-5)
    np.testing.assert_allclose(found.children, expected["children"], atol=3e-5)
    np.testing.assert_allclose(found.judged, expected["judged"], atol=3e-5)


@pytest.mark.parametrize("settings", [SD15, SDXL], ids=["SD 1.5", "SDXL"])
def test_the_network_is_in_the_program_twice(settings):
    """Once in the scan over the shared steps and once in the scan over the pools, to save compile time and memory."""
    program = jax.make_jaxpr(lambda draws: rollout(denoise, settings, process_of(settings), draws).judged)
    program = program(numpy_draws(settings, batch=1))
    assert len(re.findall(r"\btanh\b", str(program))) == 2


def test_plan_of_sd15():
    """16 judgements of one step each: at steps 5 to 19, and of the finished latents."""
    plan = make_plan(SD15)
    assert plan.branches.all() and plan.shares_parent
    assert plan.segment.tolist() == list(range(16))
    assert plan.judged_at.tolist() == list(range(5, 20))
    assert judged_timesteps(SD15, process_of(SD15).timesteps).tolist() == [*range(701, 0, -50), 0]


def test_plan_of_sdxl():
    """Segments 4-7, 8-11, 12-15, 16-19; the last step never branches."""
    plan = make_plan(SDXL)
    assert not plan.shares_parent
    assert plan.segment.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert plan.judged_at.tolist() == [8, 12, 16]
    assert judged_timesteps(SDXL, process_of(SDXL).timesteps).tolist() == [551, 351, 151, 0]


def test_plan_of_sdxl_without_inner_steps():
    """15 judgements, and the last segment holds two pairs."""
    plan = make_plan(ResamplerSettings(num_candidates=2, branch_at_last_step=False))
    assert plan.segment.tolist() == [*range(15), 14]
    assert plan.judged_at.tolist() == list(range(5, 19))
    assert not plan.shares_parent


def test_plan_of_separate_trajectories():
    """Judged as often as SPO's pools, but a pair has two parents from the second step on."""
    settings = dataclasses.replace(SD15, shared_parent=False)
    plan = make_plan(settings)
    assert not plan.branches.any() and not plan.shares_parent
    assert plan.segment.tolist() == make_plan(SD15).segment.tolist()
    assert plan.judged_at.tolist() == make_plan(SD15).judged_at.tolist()


def test_candidates_have_one_parent_where_they_part():
    assert make_plan(SD15).branched.tolist() == list(range(16))
    assert make_plan(SDXL).branched.tolist() == [0, 4, 8, 12]
    assert make_plan(dataclasses.replace(SD15, shared_parent=False)).branched.tolist() == [0]


def test_draws_come_from_one_key():
    program = jax.jit(lambda seed: draw(jax.random.key(seed), SD15, 3, SHAPE))
    one, again, other = (program(seed) for seed in (0, 0, 1))
    assert jax.tree.map(jnp.shape, one) == ((3, *SHAPE), (4, 3, *SHAPE), (16, 4, 3, *SHAPE), (15, 3))
    for a, b, c in zip(one, again, other, strict=True):
        assert (a == b).all() and not (a == c).all()
    assert np.unique(one.choice).tolist() == [0, 1, 2, 3]
