"""A run of SPO: its batches and rows, with programs that only record what they were given."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.methods.base import Data, Run
from spo_jax.methods.common.judge import Judge
from spo_jax.methods.common.order import batch_rows
from spo_jax.methods.common.policy import Pairs
from spo_jax.methods.common.prompts import PromptData, read_data
from spo_jax.methods.common.state import TrainState
from spo_jax.methods.spo import method
from spo_jax.methods.spo.method import CHARTS, SPORun
from spo_jax.methods.spo.plan import judged_timesteps
from spo_jax.methods.spo.programs import SPO
from spo_jax.models.base import Decoder
from spo_jax.models.lora import read_lora
from spo_jax.parallel.mesh import MeshSettings, make_mesh
from spo_jax.rewards.common.spm_reward import SPMReward
from tests.support.networks import small_pipeline, small_spm

PROMPTS = ["a red star", "a blue moon", "a green disc", "a yellow square", "a red ring"]


@pytest.fixture(scope="module")
def spo(toy_settings):
    """The method on the smallest networks, on one device."""
    mesh = make_mesh(MeshSettings(data=1))
    evaluation = dataclasses.replace(toy_settings.eval, rewards="spm")
    with jax.set_mesh(mesh):
        pipeline = small_pipeline(mesh)
        judge = Judge(SPMReward(small_spm(mesh)), Decoder(pipeline.params["vae"], pipeline.decode))
        yield SPO(dataclasses.replace(toy_settings, eval=evaluation), pipeline, judge, mesh)


@pytest.fixture(scope="module")
def run(spo):
    """A run of six batches of two prompts."""
    settings = dataclasses.replace(spo.settings, max_batches=6)
    return SPORun(dataclasses.replace(spo, settings=settings), PromptData(PROMPTS, PROMPTS[:2]))


@pytest.fixture(scope="module")
def fresh(run):
    """The state before the first batch."""
    return run.init_state(jax.random.key(0))


class Recorder(dict):
    """Programs that record prompts and keys; the adapter counts the updates."""

    trains = True

    def __init__(self, run, bad=None, first_error=0.0):
        super().__init__(collect=self.collect, update=self.update)
        self.features = run.spo.features(PROMPTS).judge
        self.bad = bad or {}
        self.first_error = first_error
        self.seen = []

    def collect(self, lora, frozen, inputs, key):
        count = float(lora["a"][0])
        prompts = [int(np.abs(self.features - row).sum(1).argmin()) for row in np.asarray(inputs.judge)]
        self.seen.append((prompts, jax.random.key_data(key).tolist()))
        pairs = Pairs(*jnp.zeros((4, 12)), valid=jnp.arange(12) < 6)
        valid = jnp.int32(self.bad.get(("valid_pairs", count), 6))
        scores = jnp.arange(3.0) + 1  # one for each judgement
        return pairs, {"valid_pairs": valid, "valid_share": jnp.float32(0.5), "judge_score": scores}

    def update(self, state, frozen, inputs, pairs, key):
        self.seen[-1] += (jax.random.key_data(key).tolist(),)
        metrics = {"loss": jnp.float32(0.7), "grad_norm": jnp.float32(1.0), "train_batches": jnp.int32(2)}
        metrics["first_ratio_error"] = jnp.float32(self.first_error)
        params = jax.tree.map(lambda x: x + 1, state.params)
        return state._replace(params=params, step=state.step + 2 * self.trains), metrics


def steps(run, recorder, first, last, state=None):
    """Batches ``first`` to ``last``: (state, rows)."""
    state = state or TrainState({"a": jnp.zeros(1)}, (), jnp.zeros((), jnp.int32))
    batches = run.batches(first)
    rows = []
    for number in range(first, last):
        state, row = run.step(recorder, batches, number, state, jax.random.key(0))
        rows.append(row)
    return state, rows


def test_it_is_what_the_trainer_expects(run, toy_settings):
    assert isinstance(run, Run)
    data = read_data(toy_settings)
    assert isinstance(data, Data) and data.digests == data.prompts and len(data.prompts) == 46


def test_a_batch_takes_the_prompts_of_its_number(run):
    recorder = Recorder(run)
    assert run.total == 6
    steps(run, recorder, 0, 6)
    seed = run.settings.seed
    expected = [batch_rows(seed, len(PROMPTS), 2, number).tolist() for number in range(6)]
    assert [prompts for prompts, *_ in recorder.seen] == expected


def test_a_step_needs_no_more_than_its_arguments(run):
    other = SPORun(run.spo, PromptData(PROMPTS, PROMPTS[:2]))
    state = TrainState({"a": jnp.zeros(1)}, (), jnp.zeros((), jnp.int32))
    _, row = other.step(Recorder(run), iter([next(run.batches(0))]), 0, state, jax.random.key(0))
    assert row["valid_pairs"] == 6


def test_the_batches_end_with_the_run(run):
    assert len(list(run.batches(4))) == 2


def test_a_run_in_two_parts_sees_the_same_prompts_and_keys(run):
    whole, parts = Recorder(run), Recorder(run)
    steps(run, whole, 0, 6)
    state, _ = steps(run, parts, 0, 2)
    steps(run, parts, 2, 6, state)
    assert whole.seen == parts.seen
    keys = list(itertools.chain(*([str(collect), str(update)] for _, collect, update in whole.seen)))
    assert len(set(keys)) == 12  # no key is used twice


def test_a_row_names_every_judgement_by_its_timestep(run):
    _, (row,) = steps(run, Recorder(run), 0, 1)
    judged = judged_timesteps(run.settings.spo, run.spo.process.timesteps)
    assert judged[-1] == 0
    assert [row[f"judge_score/t{t:04d}"] for t in judged] == [1.0, 2.0, 3.0]
    assert row["loss"] == pytest.approx(0.7) and row["valid_share"] == 0.5
    # All pairs that the rollout made, and those that the update learned from.
    for part, pairs in (("rollout", 12), ("update", 6)):
        assert row[f"pairs_per_second/{part}"] == pytest.approx(pairs / row[f"seconds/{part}"])
    groups = {name.partition("/")[0] for name in row}
    assert groups <= CHARTS.keys()  # every curve has a title


def test_only_the_first_update_is_checked_for_rounding(run, monkeypatch):
    """A fresh adapter is the reference; after an update the ratio differs because the policy has learned."""
    seen = []
    monkeypatch.setattr(method, "warn_of_rounding", lambda *told: seen.append(told))
    recorder = Recorder(run, first_error=0.25)
    _, rows = steps(run, recorder, 0, 3)
    assert seen == [(0.25, "spo.eps", run.settings.spo.eps)]
    assert ["first_ratio_error" in row for row in rows] == [True, False, False]
    # A rollout without valid pairs leaves the adapter fresh.
    late = Recorder(run, {("valid_pairs", 0.0): 0}, first_error=0.5)
    late.trains = False
    state, _ = steps(run, late, 0, 1)
    late.trains = True
    steps(run, late, 1, 2, state)
    assert [error for error, *_ in seen] == [0.25, 0.0, 0.5]


def test_a_batch_without_valid_pairs_has_no_loss_to_show(run):
    _, rows = steps(run, Recorder(run, {("valid_pairs", 1.0): 0}), 0, 3)
    assert ["loss" in row for row in rows] == [True, False, True]
    assert rows[1]["valid_pairs"] == 0 and "grad_norm" not in rows[1] and "judge_score/t0000" in rows[1]
    assert run.progress.shown(rows)["judge"] == "2.00"
    assert run.progress.shown(rows[1:2])["margin"] == "no valid pair yet"


def test_a_run_without_any_valid_pair_is_not_a_success(run, fresh, tmp_path):
    run.export(fresh, tmp_path)
    assert not (tmp_path / "lora.safetensors").exists()
    with pytest.raises(UserError, match="no pair was valid in 6 batches, .* lower config field spo.threshold"):
        run.finish(fresh, tmp_path)
    run.export(fresh._replace(step=fresh.step + 1), tmp_path)
    adapter = read_lora(tmp_path / "lora.safetensors")
    assert adapter.rank == run.settings.lora.rank


def test_the_shapes_of_the_state_are_known_before_there_is_one(run, fresh):
    shapes = run.state_shapes()
    assert jax.tree.structure(shapes) == jax.tree.structure(fresh)
    for shape, leaf in zip(jax.tree.leaves(shapes), jax.tree.leaves(fresh), strict=True):
        assert (shape.shape, shape.dtype) == (leaf.shape, leaf.dtype)
        assert shape.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)


def test_images_before_and_after_are_of_the_evaluation_s_prompts(run, fresh, tmp_path):
    """The judge that training uses also scores them: it is not loaded a second time."""
    first = run.begin(fresh, resuming=False)
    row, images = run.evaluate(2, fresh)
    assert list(row) == ["eval_spm_score"] and row == pytest.approx(first) and list(images) == ["samples"]
    assert next(iter(run.charts)) == "eval_spm_score" and "loss" in run.charts
    assert run.judge_scores == ["spm_score"]
    result = run.finish(fresh._replace(step=fresh.step + 1), tmp_path)
    assert result.summary["images"] == 4
    assert result.summary["scores"]["spm_score"]["change"] == 0  # nothing was trained
    assert [pair.prompt for pair in result.pairs] == ["a red star", "a blue moon"] * 2
    assert all(str(tmp_path) in step.code for step in result.steps) and len(result.steps) >= 3
