"""``python -m spo_jax.train`` with method spm: from prepared pairs to a preference model, and resuming such a run."""

import dataclasses
import json
import math
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from spo_jax.core.errors import UserError
from spo_jax.evaluate_spm import evaluate_spm
from spo_jax.methods.common.preference.run import read_agreement
from spo_jax.methods.spm.settings import RelabelSettings
from spo_jax.rewards.common.clip_score import score_images, text_features
from spo_jax.rewards.common.preference_model import load_spm
from spo_jax.run.folder import Resume
from spo_jax.run.metrics import read_metrics
from spo_jax.run.settings import LogSettings
from spo_jax.train import train
from spo_jax.weights.store import read_file, write_state

STEPS = 5  # of the config
TIMING = ("seconds/", "pairs_per_second")


@pytest.fixture(scope="module")
def run_folder(succeed, spm_config, tmp_path_factory):
    """The folder of a finished run of five steps; tests only read it."""
    out = tmp_path_factory.mktemp("runs") / "spm"
    process = succeed("train", f"--config={spm_config}", f"--out={out}")
    (out / "stdout.txt").write_text(process.stdout)
    return out


def rows_of(folder):
    """The curves without timings."""
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
    assert len(sources) > 6 and all(source.startswith(("data:", "#")) for source in sources)
    texts = ("Accuracy against timestep", "Accuracy on held-out pairs", "weight_decay", "pair accuracy at t = 501")
    for text in (*texts, "Use it as the judge", f"--config.spm.model={run_folder}/spm", "--config.train_steps=10"):
        assert text in report
    assert "None were recorded" not in report


def test_the_summary(run_folder):
    summary = json.loads((run_folder / "summary.json").read_text())
    assert (summary["method"], summary["batches"], summary["pairs"]) == ("spm", STEPS, 10)
    assert summary["scores"]["pair accuracy/t0000"]["change_se"] >= 0
    assert "pair accuracy/t0501" in (run_folder / "stdout.txt").read_text()


def test_the_model_is_read_back_and_scores(run_folder):
    spm = load_spm(run_folder / "spm", judges="sd")
    ids = jnp.asarray(spm.tokenizer(["a red star"]))
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)), jnp.float32)

    @jax.jit
    def scores(params, t):
        text = text_features(spm.clip, params, ids)
        return score_images(spm.clip, params, images, t, jnp.repeat(text, 2, axis=0))

    early, late = (np.asarray(scores(spm.params, jnp.full(2, t))) for t in (0, 900))
    assert np.isfinite(early).all() and np.isfinite(late).all()
    assert (early != late).all()  # it has learned that there is a timestep


def test_killed_and_resumed_equals_uninterrupted(run_folder, spm_settings, tmp_path):
    """Weights, curves and accuracies are equal bit for bit, in another process and in the middle of an epoch.

    The run was killed after the row of its last step: its last complete checkpoint is that of step 3.
    """
    out = tmp_path / "run"
    shutil.copytree(run_folder, out, ignore=shutil.ignore_patterns(str(STEPS), "*.html", "summary.json", "spm"))
    summary = train(spm_settings, out, Resume(required=True))
    assert rows_of(out) == rows_of(run_folder)
    found, expected = (read_file(folder / "spm" / "model.safetensors") for folder in (out, run_folder))
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name])
    assert summary["scores"] == json.loads((run_folder / "summary.json").read_text())["scores"]


def test_a_measurement_on_other_noise_is_not_paired_with(run_folder):
    """``--resume --config.eval.seed=5`` is allowed: then there is no change to report."""
    fingerprint = str(np.load(run_folder / "evaluation" / "before.npz")["fingerprint"])
    assert '"seed": 1234' in fingerprint
    assert read_agreement(run_folder, fingerprint).keys() == {0, 501}
    assert read_agreement(run_folder, fingerprint.replace("1234", "5")) is None


def test_a_run_is_not_resumed_with_settings_that_change_numbers(run_folder, spm_settings):
    optimizer = dataclasses.replace(spm_settings.optimizer, learning_rate=1.0)
    changed = dataclasses.replace(spm_settings, optimizer=optimizer, train_steps=9, chunk=2)
    with pytest.raises(UserError) as caught:
        train(changed, run_folder, Resume(required=True))
    message = str(caught.value)
    assert "optimizer.learning_rate was 0.01, now 1.0" in message and "train_steps was 5, now 9" in message
    assert "chunk" not in message


def test_a_split_that_does_not_exist_is_named(spm_settings, tmp_path):
    with pytest.raises(UserError, match="config field train_split = .nothing.: .*no prepared split nothing"):
        train(dataclasses.replace(spm_settings, train_split="nothing"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_of_a_preference_model_has_no_lora_to_export(run_folder, command, tmp_path):
    process = command("export", f"--run={run_folder}", f"--out={tmp_path}/lora.safetensors")
    assert process.returncode == 2 and len(process.stderr.splitlines()) == 1
    assert "a run of method 'spm' trains no LoRA" in process.stderr


def test_the_measuring_command(succeed, spm_config, run_folder, tmp_path):
    out = tmp_path / "measured"
    process = succeed("evaluate_spm", f"--config={spm_config}", f"--spm={run_folder / 'spm'}", f"--out={out}")
    found = json.loads((out / "accuracy.json").read_text())
    trained = json.loads((run_folder / "accuracy.json").read_text())
    line = "step-aware preference model"
    assert found == {line: trained[line], "chance": 0.5}  # float32 in the file: the very same numbers
    assert "pair accuracy at t =  501" in process.stdout and (out / "accuracy.svg").is_file()


def test_a_measurement_is_not_replaced_unasked(spm_settings, run_folder):
    """Least of all that of a run."""
    before = (run_folder / "accuracy.json").read_bytes()
    with pytest.raises(UserError, match="accuracy.json exists already: choose another --out, or .* with --overwrite"):
        evaluate_spm(spm_settings, "toy", run_folder)
    assert (run_folder / "accuracy.json").read_bytes() == before


@pytest.fixture(scope="module")
def plain_clip(micro, tmp_path_factory):
    """The micro preference model without its time conditioning."""
    plain = tmp_path_factory.mktemp("models") / "plain"
    shutil.copytree(micro.spm, plain)
    state = read_file(plain / "model.safetensors")
    added = ("t_embedder", "adaLN_modulation")
    write_state(plain / "model.safetensors", {k: v for k, v in state.items() if not any(part in k for part in added)})
    return plain


@pytest.mark.slow
def test_two_processes_make_the_run_of_one(spm_config, in_processes, plain_clip, tmp_path):
    """A device each, with weights cut over both; both make labels, latents and accuracies, and one writes them."""
    flags = [f"--config={spm_config}", "--config.mesh.data=1", "--config.mesh.fsdp=-1", "--config.train_steps=3"]
    flags += ["--config.posterior=mean", f"--config.relabel.model={plain_clip}"]
    for count, name in ((2, "two"), (1, "one")):
        cache = f"--config.cache_latents={tmp_path / name}-latents"
        in_processes(count, "train", *flags, cache, f"--out={tmp_path / name}")
    one, two = (read_file(tmp_path / name / "spm" / "model.safetensors") for name in ("one", "two"))
    off = np.sqrt(sum(np.square(two[name] - one[name]).sum() for name in one))
    assert off <= 1e-3 * np.sqrt(sum(np.square(x).sum() for x in one.values()))
    for row, other in zip(*(rows_of(tmp_path / name) for name in ("one", "two")), strict=True):
        assert row == pytest.approx(other, rel=1e-3)


@pytest.mark.slow
def test_cached_latents_and_new_labels_in_a_run(spm_settings, plain_clip, tmp_path):
    """The posterior's mean from the disk trains to the very same weights, and labels of a plain CLIP to others."""
    mean = dataclasses.replace(
        spm_settings, posterior="mean", train_steps=2, log=LogSettings(checkpoint_every=0, eval_every=0)
    )
    cached = dataclasses.replace(mean, cache_latents=str(tmp_path / "latents"))
    judged = dataclasses.replace(mean, relabel=RelabelSettings(model=str(plain_clip), margin=0.0))
    weights = []
    for name, settings in (("mean", mean), ("cached", cached), ("judged", judged)):
        train(settings, tmp_path / name)
        weights.append(read_file(tmp_path / name / "spm" / "model.safetensors"))
    of_mean, of_cached, of_judged = (np.concatenate([x.ravel() for x in state.values()]) for state in weights)
    # Latents are encoded in other batches by another program, 1e-6 apart. AdamW's first step is a learning rate up or
    # down for the smallest gradient, so single weights may part where whole tensors do not.
    parted = np.abs(of_cached - of_mean) > 1e-3
    assert parted.mean() < 0.01
    assert (np.abs(of_judged - of_mean) > 1e-3).mean() > 10 * parted.mean()
    assert sorted(path.name for path in (tmp_path / "judged" / "labels").iterdir()) == ["train", "validation_unique"]
