"""The doctor's command: the machine in text and JSON, runs by their state, and what exit statuses mean."""

import json
import re

from spo_jax.core.files import write_json, write_text


def test_the_machine_in_text(succeed):
    shown = succeed("doctor").stdout
    for part in ("Versions", "  jax ", "Devices", "memory of the host", "free of", "compiled programs", "Extras"):
        assert part in shown
    assert not re.search(r"\d{7} ", shown)  # sizes are in human units


def test_the_machine_in_json_without_the_token(commands, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    done = commands.start("doctor", "--json")
    found = json.loads(done.stdout)
    assert found["devices"]["devices"][0]["platform"] == "cpu" and found["storage"]["disk_free_bytes"] > 0
    assert found["environment"]["hub_token"] is True
    assert "hf_secret" not in done.stdout + done.stderr


def test_a_device_that_does_not_start_is_a_problem(commands, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    done = commands.start("doctor")
    assert done.returncode == 1 and "PROBLEM  jax starts no device" in done.stdout and "Traceback" not in done.stderr


def test_a_run_that_stopped(command, tmp_path):
    write_text(tmp_path / "metrics.jsonl", "".join(json.dumps({"step": i, "loss": 0.7}) + "\n" for i in range(1, 8)))
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    write_json(tmp_path / "run.json", {"method": "spo", "batches": 10, "command": "python -m spo_jax.train --config=x"})
    done = command("doctor", f"--run={tmp_path}")
    shown = " ".join(done.stdout.split())  # lines are as wide as the terminal
    assert done.returncode == 1 and "stopped before its end, 7 of 10 batches" in shown
    assert "\n           python -m spo_jax.train --config=x --resume\n" in done.stdout  # in one line, to be copied
    assert command("doctor", f"--run={tmp_path}/checkpoints/5").stdout == done.stdout  # that of its run


def test_a_folder_without_a_run_is_a_mistake(command, tmp_path):
    done = command("doctor", f"--run={tmp_path}")
    assert done.returncode == 2 and "no metrics.jsonl here" in done.stderr and not done.stdout


def test_a_run_of_ours_says_how_it_was_started(command, micro_run):
    """Its weights are random, so whether it got better is chance."""
    shown = " ".join(command("doctor", f"--run={micro_run}").stdout.split())
    assert ": spo, finished, " in shown and "first ratio: Before the first update the likelihood ratio is 1" in shown
    start = json.loads((micro_run / "run.json").read_text())
    assert start["command"].startswith("python -m spo_jax.train --config=") and start["settings"]["method"] == "spo"
