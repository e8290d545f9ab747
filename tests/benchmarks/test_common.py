"""Parts that the scripts share: the clock, the results, and the messages about a user's mistakes."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from benchmarks import common
from benchmarks.memory import process_peak, reset_process_peak
from benchmarks.subjects import build, read_settings
from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json

ROOT = Path(__file__).resolve().parents[2]


def test_warm_up_runs_are_not_on_the_clock():
    calls = []
    seconds = common.timed(lambda: calls.append(0), warmup=2, repeats=3, title="test")
    assert len(calls) == 5 and len(seconds) == 3
    assert common.spread_of([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "all": [3.0, 1.0, 2.0]}


def test_the_clock_waits_for_results():
    """Dispatching takes microseconds, and this product takes much longer."""
    x = jax.numpy.ones((1500, 1500))
    product = jax.jit(lambda x: x @ x @ x)
    product(x)
    (seconds,) = common.timed(lambda: product(x), warmup=0, repeats=1, title="test")
    assert seconds > 2e-3


def test_utilisation(one_device, monkeypatch):
    monkeypatch.setattr(common, "peak_flops", lambda device: 100.0)
    with jax.set_mesh(one_device):
        assert common.utilisation(80.0, 2.0, "bfloat16") == {"flops_per_second": 40.0, "mfu": 0.4}
        assert common.utilisation(80.0, 2.0, "float32")["mfu"] is None


def test_a_peak_of_memory_can_be_reset():
    block = bytearray(64 << 20)
    block[::4096] = b"x" * len(block[::4096])
    high = process_peak()
    assert high > 64 << 20
    del block
    if reset_process_peak():
        assert process_peak() <= high


def test_too_little_memory_names_the_settings_to_change():
    with pytest.raises(UserError, match="do not fit in the memory of cpu.*prompts_per_batch=N.*RESOURCE_EXHAUSTED"):
        with common.memory_explained():
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.\nmore lines")
    with pytest.raises(RuntimeError, match="another"), common.memory_explained():
        raise RuntimeError("another")


def test_results_file(one_device, tmp_path, capsys):
    with jax.set_mesh(one_device):
        found = common.record("rollout", read_settings("toy"), "toy", "tiny", {"peak_memory_bytes": 2**30}, threads=2)
    path = common.save(tmp_path, found)
    assert path == tmp_path / "rollout-toy-tiny-decoder-cpu.json"
    held = read_json(path)
    assert held["date"].endswith("+00:00") and held["versions"]["jax"] == jax.__version__
    assert held["device"]["platform"] == "cpu" and held["device"]["count"] == 1
    assert held["settings"]["spo"]["num_steps"] == 20 and held["threads"] == 2
    assert held["results"] == {"peak_memory_bytes": 2**30}
    assert "1.00 GiB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("huge",), "--size=huge: expected one of micro, toy, small, sd15, sdxl"),
        (("toy", ["spo.decode_chunk"]), "--set=spo.decode_chunk: expected FIELD=VALUE"),
        (("toy", ["spo.dekode_chunk=2"]), "--set=spo.dekode_chunk=2: there is no field 'spo.dekode_chunk'"),
        (("toy", ["spo.decode_chunk.x=2"]), "there is no field 'spo.decode_chunk.x'"),
        (("toy", ["spo.decode_chunk=many"]), "spo.decode_chunk = 'many': expected int"),
        (("toy", ["spo.decode_chunk=-1"]), "spo.decode_chunk = -1: expected 0 to "),
    ],
)
def test_wrong_settings(arguments, message):
    with pytest.raises(UserError) as error:
        read_settings(*arguments)
    assert message in str(error.value)


def test_settings_of_sizes():
    toy, small, sd15 = (read_settings(size, ["seed=3"], devices=2) for size in ("toy", "small", "sd15"))
    assert (toy.model, toy.seed) == ("toy", 3) and toy.spo.threshold > 0
    assert (small.spo.threshold, small.prompts_per_batch, small.dtype) == (0.0, 8, "float32")
    assert (sd15.prompts_per_batch, sd15.spo.train_batch_size, sd15.dtype, sd15.remat) == (20, 20, "bfloat16", True)
    lpo = read_settings("small", decoder="none").spo
    assert (lpo.judged, lpo.divert_start_step, lpo.threshold, lpo.threshold_rule) == ("noisy", 0, 0.0, "constant")


def test_wrong_decoder_and_batch():
    with pytest.raises(UserError, match="--decoder=small: expected one of vae, tiny, none"):
        read_settings("micro", decoder="small")
    with pytest.raises(UserError, match="prompts_per_batch = 3.*2 devices"):
        with jax.set_mesh(common.make_mesh(devices=jax.devices()[:2])):
            build("micro", read_settings("micro", ["prompts_per_batch=3"]))


def test_a_script_reports_a_mistake_in_one_line(tmp_path):
    line = [sys.executable, "-m", "benchmarks.rollout", "--size=huge", f"--out={tmp_path}"]
    child = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert child.returncode == 2
    assert child.stderr == "error: --size=huge: expected one of micro, toy, small, sd15, sdxl\n"


SHARED = ("size", "decoder", "set", "warmup", "repeats", "out")
SCRIPTS = {
    "against_torch": (*SHARED, "threads"),
    "aot": ("config", "topology", "effort", "out"),
    "layers": ("repeats",),
    "loading": ("pairs", "batch", "threads", "out"),
    "rounding": ("config",),
    "scaling": (*SHARED, "axes"),
    "train": SHARED,
    "unet_forward": SHARED,
    "update_step": SHARED,
}


@pytest.mark.parametrize(
    ("script", "flags"),
    [("rollout", SHARED), *(pytest.param(*item, marks=pytest.mark.slow) for item in SCRIPTS.items())],
)
def test_help_lists_the_flags_of_a_script(script, flags):
    """Most scripts define none themselves, but share them."""
    line = [sys.executable, "-m", f"benchmarks.{script}", "--help"]
    child = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert [flag for flag in flags if f"\n  --{flag}:" not in child.stdout] == []
