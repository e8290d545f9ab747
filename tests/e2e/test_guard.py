"""The guard in whole runs: that it ends them, exports the best, survives a kill, and moves no number of the training.

What ends early are runs of a method that counts (`tests/e2e/counting.py`), whose looks are made up. Runs of SPO on
micro models have real looks, at random weights that learn nothing. configs/toy_hacked.py is a real one with a judge
that is really hacked; tests/e2e/test_hacked.py trains it.
"""

import contextlib
import dataclasses
import io
import shutil

import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json
from spo_jax.run.checkpoint_reader import CheckpointReader
from spo_jax.run.folder import Resume
from spo_jax.run.guard.look import looks_of
from spo_jax.run.metrics import read_metrics
from spo_jax.run.settings import LogSettings
from spo_jax.train import train
from spo_jax.weights.store import read_file
from tests.e2e.counting import CountingSettings, Guarded

TIMING = ("seconds/", "pairs_per_second")
COUNTING = CountingSettings(log=LogSettings(checkpoint_every=1, keep_checkpoints=1, eval_every=0))


def rows_of(folder):
    rows = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith(TIMING)} for row in rows]


def checkpoints_in(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run that its guard ended after batch 6, beside what it printed; tests only read it."""
    out = tmp_path_factory.mktemp("counting") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        train(COUNTING, out)
    (out.parent / "printed.txt").write_text(printed.getvalue())
    return out


@pytest.fixture(scope="module")
def all_kept(tmp_path_factory):
    """The folder of the same run with all of its checkpoints; tests only read it."""
    out = tmp_path_factory.mktemp("counting") / "run"
    train(dataclasses.replace(COUNTING, log=dataclasses.replace(COUNTING.log, keep_checkpoints=10)), out)
    return out


def test_the_run_ends_and_exports_the_best(stopped):
    summary = read_json(stopped / "summary.json")
    guard = summary["guard"]
    assert (summary["batches"], guard["stopped_batch"], guard["exported_batch"], guard["kept_batch"]) == (6, 6, 3, 3)
    assert (stopped / "count.txt").read_text() == "3\n"
    assert summary["scores"]["count"]["after"] == 3, "what is exported is what is measured"
    assert checkpoints_in(stopped) == [2, 3, 6], "although only the latest is kept; 2 was the best before 3 was saved"
    assert looks_of(read_metrics(stopped / "metrics.jsonl")) == looks_of(guard["looks"])


def test_report_doctor_and_terminal_say_why(stopped, command):
    text = read_json(stopped / "summary.json")["guard"]["text"]
    assert text.startswith("Stopped by the guard after batch 6: the run exploits the errors of its judge")
    page = (stopped / "report.html").read_text()
    assert page.count(text) == 1 and "guard worse looks" not in page and "guard_worse_looks" not in page
    assert "Trained on, and held out" in page and "alarm: batch 6" in page
    shown = " ".join(command("doctor", f"--run={stopped}").stdout.split())
    assert "finished, 6 of 20 batches" in shown and "hacking: The run exploits the errors of its judge" in shown
    assert text in (stopped.parent / "printed.txt").read_text()


@pytest.mark.parametrize("at", [3, 5])
def test_killed_and_resumed_equals_uninterrupted(stopped, all_kept, tmp_path, at):
    """The guard's history is part of what is resumed: the run ends after the same batch, with the same curves."""
    out = tmp_path / "run"
    shutil.copytree(all_kept, out)
    for later in range(at + 1, 7):
        shutil.rmtree(out / "checkpoints" / str(later))
    train(COUNTING, out, Resume(required=True))
    assert rows_of(out) == rows_of(stopped)
    assert read_json(out / "summary.json")["guard"] == read_json(stopped / "summary.json")["guard"]
    assert (out / "count.txt").read_text() == "3\n"
    last = CheckpointReader(out / "checkpoints").read_meta(6)
    assert last == CheckpointReader(stopped / "checkpoints").read_meta(6)


def test_a_run_that_was_ended_stays_so_and_goes_on_with_another_setting(stopped, tmp_path, caplog):
    shutil.copytree(stopped, tmp_path / "run")
    train(COUNTING, tmp_path / "run", Resume(if_there=True))
    assert "the guard has ended this run after batch 6" in caplog.text
    assert rows_of(tmp_path / "run") == rows_of(stopped)
    assert read_json(tmp_path / "run" / "summary.json")["guard"] == read_json(stopped / "summary.json")["guard"]

    warned = train(dataclasses.replace(COUNTING, eval=Guarded("warn")), tmp_path / "run", Resume(required=True))
    assert warned["batches"] == 20 and warned["guard"]["exported_batch"] == 20 and warned["guard"]["kept_batch"] == 3
    assert warned["guard"]["text"].startswith("The guard warned in batch 6: ")
    assert checkpoints_in(tmp_path / "run") == [2, 3, 20]


def test_a_damaged_best_checkpoint_is_named_and_can_be_given_up(stopped, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    damaged = next(path for path in sorted((run / "checkpoints" / "3" / "params").rglob("*")) if path.is_file())
    damaged.unlink()
    with pytest.raises(UserError, match=r"checkpoints/3 is damaged: .*; it is the best by the held-out scores"):
        train(COUNTING, run, Resume(required=True))
    assert checkpoints_in(run) == [2, 3, 6]
    (run / "checkpoints" / "3").rename(tmp_path / "3")
    summary = train(COUNTING, run, Resume(required=True))
    assert summary["guard"]["exported_batch"] == 6 and "batch 3, whose checkpoint is no longer there" in str(summary)


def test_with_other_held_out_rewards_the_looks_begin_anew(stopped, tmp_path):
    """Batch 6, after which the other scores have ended the run, is looked at again; the report shows the new looks."""
    shutil.copytree(stopped, tmp_path / "run")
    summary = train(dataclasses.replace(COUNTING, eval=Guarded(guard_score="other")), tmp_path / "run", Resume(True))
    guard = summary["guard"]
    assert [look["step"] for look in guard["looks"]] == [0, *range(6, 21)] and guard["stopped_batch"] is None
    assert guard["kept_batch"] in range(6, 21)
    assert [look.batch for look in looks_of(read_metrics(tmp_path / "run" / "metrics.jsonl"))] == [*range(6, 21)]
    assert "above other, which it does not" in (tmp_path / "run" / "report.html").read_text()


# SPO


@pytest.fixture(scope="module")
def looked(once, succeed, micro_settings, write_config):
    """The folder of a run like `micro_run`, at which a guard looks."""
    config = write_config(_guarded(micro_settings))
    return once("looked", lambda out: succeed("train", f"--config={config}", f"--out={out}"))


def _guarded(settings):
    guarded = {"guard": "warn", "guard_rewards": "tests.e2e.redness", "guard_every": 1}
    return dataclasses.replace(settings, eval=dataclasses.replace(settings.eval, **guarded))


def test_looks_are_curves_beside_the_trained_score(looked):
    looks = looks_of(read_metrics(looked / "metrics.jsonl"))
    assert [look.batch for look in looks] == [0, 1, 2, 3]
    for look in looks:
        assert list(look.trained) == ["spm_score"] and list(look.held_out) == ["redness"]
        assert list(look.signs) == ["saturation", "out_of_range", "high_frequency"]
    evaluated = read_metrics(looked / "metrics.jsonl")[2]  # of the same images, by the same judge
    assert looks[2].trained["spm_score"] == pytest.approx(evaluated["eval_spm_score"], rel=1e-6)


def test_the_guard_moves_no_number_of_the_training(looked, micro_run):
    ours, without = rows_of(looked), rows_of(micro_run)
    assert [{n: v for n, v in row.items() if not n.startswith("guard_")} for row in ours] == without
    found, expected = (read_file(folder / "lora.safetensors") for folder in (looked, micro_run))
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    assert read_json(looked / "summary.json")["scores"] == read_json(micro_run / "summary.json")["scores"]


@pytest.mark.slow  # the runs that count above are resumed in the same way
def test_looks_of_a_resumed_run_are_the_same(looked, micro_settings, tmp_path):
    lost = shutil.ignore_patterns("3", "*.html", "summary.json", "*.safetensors")
    shutil.copytree(looked, tmp_path / "run", ignore=lost)
    train(_guarded(micro_settings), tmp_path / "run", Resume(required=True))
    assert rows_of(tmp_path / "run") == rows_of(looked)


def test_what_the_run_learns_from_is_not_held_out(command, micro_settings, write_config, micro):
    held_out = dataclasses.replace(micro_settings.eval, guard="warn", guard_rewards=f"spm:{micro.spm}")
    config = write_config(dataclasses.replace(micro_settings, eval=held_out))
    done = command("train", f"--config={config}", "--out=runs/never")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"config field eval.guard_rewards names 'spm:{micro.spm}', by which the run is judged" in done.stderr
