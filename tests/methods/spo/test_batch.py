"""Batches of SPO and the loop over them, with programs that only write down what they were given."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import Preempted, UserError
from spo_jax.methods.spo.batch import batch_rows, run_batches
from spo_jax.methods.spo.pairs import Pairs
from spo_jax.methods.spo.programs import Frozen, Inputs, Programs
from spo_jax.methods.spo.settings import LogSettings, TrainSettings
from spo_jax.methods.spo.update import UpdateConfig, init_state, make_optimiser
from spo_jax.models.stable_diffusion.conditioning import Conditioning
from spo_jax.run.checkpoint import Checkpointer
from spo_jax.run.loop import Outlets
from spo_jax.run.metrics import MetricsWriter, read_metrics

PROMPTS = 5
TIMESTEPS = np.array([501, 0], np.int32)


@pytest.mark.parametrize("size", [1, 2, 5, 7])
def test_every_epoch_shows_every_prompt_once(size):
    settings = TrainSettings(prompts_per_batch=size)
    shown = np.concatenate([batch_rows(settings, PROMPTS, batch) for batch in range(35)])
    for epoch in shown[: len(shown) // PROMPTS * PROMPTS].reshape(-1, PROMPTS):
        assert sorted(epoch) == list(range(PROMPTS))
    assert len({tuple(epoch) for epoch in shown[: 7 * PROMPTS].reshape(7, -1)}) > 1


def test_a_batch_is_a_function_of_its_number_and_the_seed():
    rows = [batch_rows(TrainSettings(prompts_per_batch=20, seed=seed), 50, 7).tolist() for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]


class Recorder:
    """Programs that write down prompts and keys; the adapter counts the updates."""

    def __init__(self, bad=None, learns=True):
        self.bad, self.seen, self.learns = bad or {}, [], learns

    def collect(self, lora, frozen, inputs, key):
        count = float(lora["a"][0])
        self.seen.append((inputs.text[:, 0].tolist(), jax.random.key_data(key).tolist()))
        scores = jnp.array([1.0, self.bad.get(("spm_score", count), 2.0)])
        pairs = Pairs(*jnp.zeros((4, 12)), valid=jnp.arange(12) < 6)
        valid = jnp.int32(self.bad.get(("valid_pairs", count), 6))
        return pairs, {"valid_pairs": valid, "valid_share": jnp.float32(0.5), "spm_score": scores}

    def update(self, state, frozen, inputs, pairs, key):
        count = float(state.lora["a"][0])
        self.seen[-1] += (jax.random.key_data(key).tolist(),)
        metrics = {"loss": jnp.float32(self.bad.get(("loss", count), 0.7)), "grad_norm": jnp.float32(1.0)}
        step = state.step + 2 * self.learns
        return state._replace(lora=jax.tree.map(lambda x: x + 1, state.lora), step=step), metrics


def run(folder, recorder, total, start=0, state=None, **log):
    """Batches ``start`` to ``total`` of two prompts; gives (state, numbers of the batches with a grid)."""
    settings = TrainSettings(prompts_per_batch=2, max_batches=total, log=LogSettings(**log))
    state = state or init_state({"a": jnp.zeros(1)}, make_optimiser(UpdateConfig()))
    frozen = Frozen({}, {}, {}, Conditioning(jnp.zeros((1, 1, 1))))
    inputs = Inputs(Conditioning(jnp.zeros((PROMPTS, 1, 1))), jnp.arange(float(PROMPTS)).reshape(-1, 1))
    programs, grids = Programs(recorder.collect, recorder.update, lambda rows: rows, 0.0), []
    checkpointer = Checkpointer(folder / "checkpoints", keep=10)
    with MetricsWriter(folder, resume_step=start or None) as writer:

        def look(batch, state):
            grids.append((batch, float(state.lora["a"][0])))
            return {"looked": 1.0}

        log = settings.log
        outlets = Outlets(writer, checkpointer, {}, look, log.sample_every, log.checkpoint_every)
        key = jax.random.key(0)
        state = run_batches(settings, programs, frozen, inputs, TIMESTEPS, state, key, start, outlets)
    checkpointer.close()
    return state, grids


def checkpoints_in(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_rows_grids_and_checkpoints_come_when_they_are_due(tmp_path):
    state, grids = run(tmp_path, Recorder(), 5, sample_every=2, checkpoint_every=3)
    assert grids == [(2, 2.0), (4, 4.0), (5, 5.0)]
    assert checkpoints_in(tmp_path) == [3, 5]
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[0]["spm_score/t0501"] == 1.0 and rows[0]["spm_score/t0000"] == 2.0
    assert rows[0]["loss"] == pytest.approx(0.7) and rows[0]["valid_share"] == 0.5
    # All that the rollout made, and those that the update learned from.
    for part, pairs in (("rollout", 12), ("update", 6)):
        assert rows[0][f"pairs_per_second/{part}"] == pytest.approx(pairs / rows[0][f"seconds/{part}"])
    assert ["looked" in row for row in rows] == [False, True, False, True, True]
    assert state.lora["a"].tolist() == [5.0]


def test_zero_means_at_the_end_alone(tmp_path):
    _, grids = run(tmp_path, Recorder(), 3, sample_every=0, checkpoint_every=0)
    assert grids == [(3, 3.0)] and checkpoints_in(tmp_path) == [3]


def test_a_run_in_two_parts_sees_the_same_prompts_and_keys(tmp_path):
    whole, parts = Recorder(), Recorder()
    run(tmp_path / "whole", whole, 6)
    state, _ = run(tmp_path / "parts", parts, 2)
    run(tmp_path / "parts", parts, 6, start=2, state=state)
    assert whole.seen == parts.seen
    assert len({str(keys) for _, *keys in whole.seen}) == 6  # no key is used twice
    assert all(collect != update for _, collect, update in whole.seen)


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        ({("loss", 3.0): np.nan}, "loss is nan"),
        ({("loss", 3.0): np.inf}, "loss is inf"),
        ({("spm_score", 3.0): np.nan}, "spm_score/t0000 is nan"),
    ],
)
def test_numbers_that_are_not_finite_stop_the_run_and_the_last_good_checkpoint_is_named(tmp_path, bad, name):
    with pytest.raises(UserError, match=f"batch 4: {name}; the last good checkpoint is {tmp_path}/checkpoints/2"):
        run(tmp_path, Recorder(bad), 6, checkpoint_every=2)
    assert checkpoints_in(tmp_path) == [2]
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_a_batch_without_valid_pairs_has_no_loss_to_show(tmp_path):
    run(tmp_path, Recorder({("valid_pairs", 1.0): 0}), 3)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert ["loss" in row for row in rows] == [True, False, True]
    assert rows[1]["valid_pairs"] == 0 and "grad_norm" not in rows[1] and "spm_score/t0501" in rows[1]


def test_a_run_without_any_valid_pair_is_no_success(tmp_path):
    with pytest.raises(UserError, match="no pair was valid in 2 batches: .* lower config field spo.threshold"):
        run(tmp_path, Recorder({("valid_pairs", 0.0): 0, ("valid_pairs", 1.0): 0}, learns=False), 2)


def test_sigterm_between_two_batches_saves_and_stops(tmp_path):
    """`Preempted` after the batch in which the signal came; afterwards the signal does again what it did before."""
    before = signal.getsignal(signal.SIGTERM)
    told = Recorder()
    collect = told.collect

    def telling(lora, *rest):
        if float(lora["a"][0]) == 2.0:
            os.kill(os.getpid(), signal.SIGTERM)
        return collect(lora, *rest)

    told.collect = telling
    with pytest.raises(Preempted, match="saved after batch 3 of 6"):
        run(tmp_path, told, 6, checkpoint_every=0, sample_every=1)
    # The machine will be gone soon: it is saved at once, and not looked at.
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert ["looked" in row for row in rows] == [True, True, False]
    assert checkpoints_in(tmp_path) == [3] and signal.getsignal(signal.SIGTERM) == before


def test_no_checkpoint_to_name(tmp_path):
    with pytest.raises(UserError, match="batch 1: loss is nan; no checkpoint was saved yet"):
        run(tmp_path, Recorder({("loss", 0.0): np.nan}), 6)
