"""``python -m spo_jax.train_spm``: from prepared pairs to a preference model that SPO reads; going on with a run."""

import dataclasses
import json
import math
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from spo_jax import spm_training
from spo_jax.core.errors import UserError
from spo_jax.methods.spm.settings import RelabelSettings, SPMLogSettings
from spo_jax.rewards.common.clip_score import score_images, text_features
from spo_jax.rewards.common.preference_model import load_spm
from spo_jax.run.folder import Resume
from spo_jax.run.metrics import read_metrics
from spo_jax.spm_evaluation import evaluate_spm
from spo_jax.toy import ASSETS
from spo_jax.weights.store import read_file, write_state

STEPS = 5  # of the config
TIMING = ("seconds/", "pairs_per_second")


@pytest.fixture(scope="module")
def run_folder(command, spm_config_file, tmp_path_factory):
    """What five steps of the command leave behind; tests only read it."""
    out = tmp_path_factory.mktemp("runs") / "spm"
    process = command("train_spm", f"--config={spm_config_file}", f"--out={out}")
    assert process.returncode == 0, process.stderr[-4000:]
    (out / "stdout.txt").write_text(process.stdout)
    return out


def rows_of(folder):
    """The curves without what the clock says."""
    rows = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith(TIMING)} for row in rows]


def test_the_curves(run_folder):
    rows = read_metrics(run_folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(STEPS + 1))  # 0: accuracies before the first step
    for row in rows[1:]:
        wanted = "loss grad_norm learning_rate logit_scale seconds/loading seconds/step pairs_per_second"
        assert set(wanted.split()) <= row.keys() and all(math.isfinite(value) for value in row.values())
    rates = [row["learning_rate"] for row in rows[1:]]
    assert rates == pytest.approx([0, 1e-2, 0.75e-2, 0.5e-2, 0.25e-2])
    measured = [row["step"] for row in rows if "eval_accuracy/t0501" in row]
    assert measured == [0, 4, STEPS]


def test_the_accuracies(run_folder):
    files = sorted(path.name for path in (run_folder / "evaluation").glob("*.json"))
    assert files == ["000000.json", "000004.json", "000005.json"]
    last = json.loads((run_folder / "evaluation" / "000005.json").read_text())
    assert last.keys() == {"0", "501"} and last["0"]["pairs"] == 6
    lines = json.loads((run_folder / "accuracy.json").read_text())
    assert lines["step-aware preference model"] == last and lines["chance"] == 0.5
    assert lines["before training"] == json.loads((run_folder / "evaluation" / "000000.json").read_text())
    assert Image.open(run_folder / "accuracy.png").size[0] > 500


def test_the_report_needs_no_other_file(run_folder):
    report = (run_folder / "report.html").read_text()
    sources = re.findall(r"(?:src|href)=[\"']([^\"']*)", report)
    assert len(sources) > 6 and all(source.startswith("data:") for source in sources)
    for text in ("Accuracy against timestep", "Accuracy on held-out pairs", "weight_decay", "pair accuracy/t0501"):
        assert text in report
    assert "None were recorded" not in report
    summary = json.loads((run_folder / "summary.json").read_text())
    assert summary["steps"] == STEPS and summary["scores"]["pair accuracy/t0000"]["change_se"] >= 0


def test_the_model_is_read_back_and_scores(run_folder):
    spm = load_spm(run_folder / "spm", judges="sd")
    text = text_features(spm.clip, spm.params, jnp.asarray(spm.tokenizer(["a red star"])))
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 32, 32, 3)), jnp.float32)
    early, late = (score_images(spm.clip, spm.params, images, jnp.full(1, t), text) for t in (0, 900))
    assert np.isfinite(early).all() and float(early[0]) != float(late[0])  # it has learnt that there is a timestep


def test_killed_and_resumed_equals_uninterrupted(run_folder, spm_settings, tmp_path):
    """Bit for bit, in another process and in the middle of an epoch: weights, curves, accuracies.

    The run was killed after the row of its last step: its last whole checkpoint is that of step 3.
    """
    out = tmp_path / "run"
    shutil.copytree(run_folder, out, ignore=shutil.ignore_patterns(str(STEPS), "*.html", "summary.json", "spm"))
    summary = spm_training.train_spm(spm_settings, out, Resume(required=True))
    assert rows_of(out) == rows_of(run_folder)
    one, other = (read_file(folder / "spm" / "model.safetensors") for folder in (out, run_folder))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    assert summary["scores"] == json.loads((run_folder / "summary.json").read_text())["scores"]


def test_what_was_measured_before_on_other_noises_is_not_paired_with(run_folder):
    """``--resume --config.eval.seed=5`` may be: then there is no change to report."""
    told = str(np.load(run_folder / "evaluation" / "before.npz")["told"])
    assert '"seed": 1234' in told
    assert spm_training._read_agreement(run_folder, told).keys() == {0, 501}
    assert spm_training._read_agreement(run_folder, told.replace("1234", "5")) is None


def test_what_changes_the_numbers_is_not_resumed_with(run_folder, spm_settings):
    changed = dataclasses.replace(spm_settings, learning_rate=1.0, num_steps=9, chunk=2)
    with pytest.raises(UserError) as caught:
        spm_training.train_spm(changed, run_folder, Resume(required=True))
    message = str(caught.value)
    assert "learning_rate was 0.01, now 1.0" in message and "num_steps was 5, now 9" in message
    assert "chunk" not in message


def test_a_split_that_is_not_there_is_named(spm_settings, tmp_path):
    with pytest.raises(UserError, match="no prepared split nothing"):
        spm_training.train_spm(dataclasses.replace(spm_settings, train_split="nothing"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def plain_clip(tmp_path_factory):
    """The embedded preference model without its time conditioning."""
    plain = tmp_path_factory.mktemp("models") / "plain"
    shutil.copytree(ASSETS / "spm", plain)
    state = read_file(plain / "model.safetensors")
    added = ("t_embedder", "adaLN_modulation")
    write_state(plain / "model.safetensors", {k: v for k, v in state.items() if not any(part in k for part in added)})
    return plain


@pytest.mark.slow
def test_two_processes_make_the_run_of_one(spm_config_file, in_processes, plain_clip, tmp_path):
    """A device each, weights cut over both; labels, latents and accuracies are made by both, and one writes."""
    flags = [f"--config={spm_config_file}", "--config.mesh.data=1", "--config.mesh.fsdp=-1", "--config.num_steps=3"]
    flags += ["--config.posterior=mean", f"--config.relabel.model={plain_clip}"]
    for count, name in ((2, "two"), (1, "one")):
        cache = f"--config.cache_latents={tmp_path / name}-latents"
        in_processes(count, "train_spm", *flags, cache, f"--out={tmp_path / name}")
    one, two = (read_file(tmp_path / name / "spm" / "model.safetensors") for name in ("one", "two"))
    off = np.sqrt(sum(np.square(two[name] - one[name]).sum() for name in one))
    assert off <= 1e-3 * np.sqrt(sum(np.square(x).sum() for x in one.values()))
    for row, other in zip(*(rows_of(tmp_path / name) for name in ("one", "two")), strict=True):
        assert row == pytest.approx(other, rel=1e-3)


@pytest.mark.slow
def test_cached_latents_and_new_labels_in_a_run(spm_settings, plain_clip, tmp_path):
    """The posterior's mean from the disk trains to the very same weights; labels of a plain CLIP to others."""
    mean = dataclasses.replace(spm_settings, posterior="mean", num_steps=2, log=SPMLogSettings(0, eval_every=0))
    cached = dataclasses.replace(mean, cache_latents=str(tmp_path / "latents"))
    judged = dataclasses.replace(mean, relabel=RelabelSettings(model=str(plain_clip), margin=0.0))
    weights = []
    for name, run in (("mean", mean), ("cached", cached), ("judged", judged)):
        spm_training.train_spm(run, tmp_path / name)
        weights.append(read_file(tmp_path / name / "spm" / "model.safetensors"))
    of_mean, of_cached, of_judged = (np.concatenate([x.ravel() for x in state.values()]) for state in weights)
    # Latents are encoded in other batches by another program, 1e-6 apart; AdamW's first step is a learning rate up or
    # down for the smallest gradient, so single weights may part where whole tensors do not.
    parted = np.abs(of_cached - of_mean) > 1e-3
    assert parted.mean() < 0.01
    assert (np.abs(of_judged - of_mean) > 1e-3).mean() > 10 * parted.mean()
    assert sorted(path.name for path in (tmp_path / "judged" / "labels").iterdir()) == ["train", "validation_unique"]


def test_the_measuring_command(command, spm_config_file, run_folder, tmp_path):
    out = tmp_path / "measured"
    process = command("evaluate_spm", f"--config={spm_config_file}", f"--spm={run_folder / 'spm'}", f"--out={out}")
    assert process.returncode == 0, process.stderr[-4000:]
    found = json.loads((out / "accuracy.json").read_text())
    trained = json.loads((run_folder / "accuracy.json").read_text())
    line = "step-aware preference model"
    assert found == {line: trained[line], "chance": 0.5}  # float32 in the file: the very same numbers
    assert "pair accuracy at t =  501" in process.stdout and (out / "accuracy.svg").is_file()


def test_a_measurement_is_not_replaced_unasked(spm_settings, run_folder):
    """Least of all a run's own."""
    before = (run_folder / "accuracy.json").read_bytes()
    with pytest.raises(UserError, match="accuracy.json exists already: choose another --out, or .* with --overwrite"):
        evaluate_spm(spm_settings, "embedded", run_folder)
    assert (run_folder / "accuracy.json").read_bytes() == before
