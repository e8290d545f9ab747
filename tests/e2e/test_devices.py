"""The same run on one device and on eight, however they are laid out, and in two processes."""

import dataclasses
import functools
import json
import os
import subprocess
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from spo_jax.core.rows import take_rows
from spo_jax.core.trees import flatten
from spo_jax.methods.common.judge import open_judge
from spo_jax.methods.spo.method import SPORun
from spo_jax.methods.spo.programs import SPO
from spo_jax.models import open_pipeline
from spo_jax.parallel.mesh import MeshSettings, make_mesh
from spo_jax.parallel.sharding import to_host
from spo_jax.run.folder import Resume
from spo_jax.run.guard.look import looks_of
from spo_jax.run.metrics import read_metrics
from spo_jax.toy.world import TRAIN_PROMPTS
from spo_jax.train import train
from spo_jax.weights.store import read_file
from tests.support.commands import ROOT, command_line
from tests.support.processes import free_address

LAYOUTS = {"data=8": MeshSettings(8, 1), "fsdp=8": MeshSettings(1, 8), "data=2, fsdp=4": MeshSettings(2, 4)}


@pytest.fixture(scope="module")
def settings(micro_settings):
    """Sixteen prompts and two training batches a rollout; a batch is two chunks on eight devices, sixteen on one."""
    return dataclasses.replace(
        micro_settings,
        prompts_per_batch=16,
        mesh=MeshSettings(),
        spo=dataclasses.replace(micro_settings.spo, train_batch_size=16, train_chunk=1),
        optimizer=dataclasses.replace(micro_settings.optimizer, learning_rate=1e-3),
    )


def assert_same_adapter(found, wanted):
    """Compares to 1e-5 for the adapter as a whole, and to 1e-3 for single matrices.

    AdamW divides by the size of gradients, so entries whose gradient is about 0 follow its rounding.
    """
    assert found.keys() == wanted.keys()

    def off(keys):
        return np.sqrt(sum(np.square(found[key] - wanted[key]).sum() for key in keys))

    def size(keys):
        return np.sqrt(sum(np.square(wanted[key]).sum() for key in keys))

    assert off(wanted) <= 1e-5 * size(wanted)
    for key in wanted:
        assert off([key]) <= 1e-3 * size([key]), key


def one_batch(settings, layout):
    """Pairs and state after one rollout and one update pass on a mesh of that layout."""
    mesh = make_mesh(layout)
    with jax.set_mesh(mesh):
        pipeline = open_pipeline(settings.model, mesh=mesh)
        judge = open_judge("spm", vars(settings.spm), pipeline, decoder="vae", group="spo", mesh=mesh)
        spo = SPO(settings, pipeline, judge, mesh)
        run = SPORun(spo)
        state = run.init_state(jax.random.key(0))
        frozen = spo.frozen()
        inputs = spo.feed(take_rows(spo.features(list(TRAIN_PROMPTS[:16])), np.arange(16)))
        programs = {name: program.lower().compile() for name, program in run.trace(state).items()}
        keys = jax.random.split(jax.random.key(1))
        pairs, metrics = programs["collect"](state.params, frozen, inputs, keys[0])
        pairs = to_host(pairs)
        state, update = programs["update"](state, frozen, inputs, pairs, keys[1])
    return SimpleNamespace(pairs=pairs, metrics=to_host({**metrics, **update}), state=state, frozen=frozen)


@pytest.fixture(scope="module")
def batch_on(settings):
    """`one_batch` by the name of a layout, once each."""
    return functools.cache(lambda name: one_batch(settings, LAYOUTS[name]))


@pytest.fixture(scope="module")
def alone(settings):
    return one_batch(settings, MeshSettings(1, 1))


SLOW = {"data=8", "fsdp=8"}  # the mixed layout, which is both, is always run


@pytest.mark.parametrize(
    "layout", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in LAYOUTS]
)
def test_a_batch_on_eight_devices_is_a_batch_on_one(batch_on, alone, layout):
    """Decisions are equal; latents and adapter are equal to float32 rounding, whose order the layout changes."""
    spread = batch_on(layout)
    for field in ("t", "row", "valid"):
        np.testing.assert_array_equal(getattr(spread.pairs, field), getattr(alone.pairs, field))
    for field in ("x_t", "x_prev"):  # another winner or loser would be off by the noise, about 1
        np.testing.assert_allclose(getattr(spread.pairs, field), getattr(alone.pairs, field), atol=1e-4)
    assert alone.metrics["train_batches"] == spread.metrics["train_batches"] == 2
    np.testing.assert_allclose(spread.metrics["loss"], alone.metrics["loss"], rtol=1e-5)
    assert_same_adapter(flatten(to_host(spread.state.params)), flatten(to_host(alone.state.params)))


def test_with_fsdp_a_device_holds_a_part_of_the_frozen_weights_and_all_of_the_adapter(batch_on):
    spread = batch_on("data=2, fsdp=4")

    def size(tree):
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

    def held(tree):
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

    assert held(spread.frozen.network) < size(spread.frozen.network) / 3
    assert held(spread.state) == size(spread.state)


@pytest.mark.slow
def test_a_run_saved_on_eight_devices_is_resumed_on_two(settings, tmp_path):
    """It ends as the run that had eight to the end; adapters agree to float32 rounding of four batches (see above)."""

    def on(devices, batches):
        return dataclasses.replace(settings, max_batches=batches, mesh=MeshSettings(devices, 1))

    train(on(8, 4), tmp_path / "eight")
    train(on(8, 2), tmp_path / "both")
    train(on(2, 4), tmp_path / "both", Resume(required=True))
    rows = [read_metrics(tmp_path / name / "metrics.jsonl")[1:] for name in ("eight", "both")]  # after the start
    assert [[row["valid_pairs"] for row in part] for part in rows] == [[rows[0][0]["valid_pairs"]] * 4] * 2
    np.testing.assert_allclose(*([row["loss"] for row in part] for part in rows), rtol=1e-4)
    assert_same_adapter(*(read_file(tmp_path / name / "lora.safetensors") for name in ("both", "eight")))


@pytest.mark.slow
def test_two_processes_make_the_run_of_one(micro_config, in_processes, tmp_path):
    """Over loopback, a device each; one writes."""
    flags = [f"--config={micro_config}", "--config.mesh.data=-1", "--config.max_batches=2"]
    flags += ["--config.optimizer.learning_rate=1e-3", "--config.eval.guard=warn", "--config.eval.guard_every=1"]
    flags += ["--config.eval.guard_rewards=tests.e2e.redness"]
    for count, name in ((2, "two"), (1, "one")):
        in_processes(count, "train", *flags, f"--out={tmp_path / name}")

    assert_same_adapter(*(read_file(tmp_path / name / "lora.safetensors") for name in ("two", "one")))
    rows = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    assert [[row["step"] for row in part] for part in rows] == [[0, 1, 2]] * 2  # a row each, though two processes ran
    assert [row["valid_pairs"] for row in rows[0][1:]] == [row["valid_pairs"] for row in rows[1][1:]]
    looks = [[look.held_out["redness"] for look in looks_of(part)] for part in rows]
    assert len(looks[0]) == 3 and looks[0] == pytest.approx(looks[1], abs=1e-3)


@pytest.mark.slow
def test_two_processes_with_different_prompts_and_seeds_end_with_one_line(micro_config, tmp_path):
    """The same line in both, before any program, and nothing is written; tests/run/test_facts.py has each fact."""
    address = free_address()
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    processes = []
    for index, prompts in enumerate((["a red star"], ["a blue ring", "a green disc"])):
        file = tmp_path / f"prompts{index}.json"
        file.write_text(json.dumps(prompts))
        flags = [f"--config={micro_config}", "--config.mesh.data=-1", f"--out={tmp_path / 'run'}"]
        flags += [f"--config.prompts={file}", f"--config.seed={index}"]
        flags += [f"--coordinator-address={address}", "--num-processes=2", f"--process-id={index}"]
        line = command_line("train", *flags)
        processes.append(subprocess.Popen(line, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], errors
    line, other = (error.splitlines()[-1] for error in errors)
    assert line == other and not (tmp_path / "run").exists()
    for part in ("config.seed is 0 in process 0 and 1 in process 1", "prompts0.json' (1 entry", "prompts1.json' (2 "):
        assert part in line
