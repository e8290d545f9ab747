"""Compiling for TPUs without one: the shapes are the run's own, and the compiler's numbers are told rightly."""

import dataclasses
import importlib.util
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import aot
from benchmarks.shapes import run_shapes
from benchmarks.spm_shapes import spm_run_shapes
from benchmarks.topologies import GIB, chip_of, find_topology
from spo_jax.core.errors import UserError
from spo_jax.core.files import write_json
from spo_jax.methods.spm.init import load_start
from spo_jax.methods.spm.programs import Networks as SPMNetworks
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.methods.spo.programs import Networks
from spo_jax.methods.spo.settings import SPMSettings, SPOSettings, TrainSettings
from spo_jax.models import open_pipeline
from spo_jax.parallel.mesh import MeshSettings, make_mesh, over_batch
from spo_jax.rewards.common.preference_model import load_spm
from spo_jax.toy import ASSETS
from spo_jax.toy.world import TRAIN_PROMPTS
from spo_jax.training import fresh_state

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler, wheel libtpu, is not here"
)
SMALL = SPOSettings(num_steps=3, divert_start_step=1, num_candidates=2, decode_chunk=2, train_batch_size=8)


def told(tree):
    """Shapes, types and places of a tree's leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): (x.shape, x.dtype, x.sharding.spec) for path, x in leaves}


def test_shapes_are_those_of_a_run_that_is_loaded():
    """Weights, adapter, optimiser and inputs of the embedded pipeline, cut over 8 devices as fsdp."""
    settings = TrainSettings(dtype="bfloat16", prompts_per_batch=8, spo=SMALL)
    mesh = make_mesh(dataclasses.replace(settings.mesh, data=2, fsdp=4))
    dtype = jnp.dtype(settings.dtype)
    pipeline, spm = open_pipeline("embedded", dtype=dtype, mesh=mesh), load_spm("embedded", dtype=dtype, mesh=mesh)
    loaded = Networks.build(pipeline, spm, settings.spo, 1.0, mesh)
    inputs = loaded.feed(loaded.inputs(TRAIN_PROMPTS[:8]))

    shapes = run_shapes(settings, mesh)
    assert told(shapes.frozen) == told(loaded.frozen())
    assert told(shapes.inputs) == told(inputs)
    assert told(shapes.state) == told(fresh_state(settings, loaded, jax.random.key(0)))
    assert inputs.text.sharding == over_batch(mesh)  # and not all of it whole everywhere
    assert any("fsdp" in spec for _, _, spec in told(shapes.frozen).values())


def test_published_models_are_known_without_a_download():
    """859.5 M parameters of the UNet, and those of CLIP ViT-H/14 with the SPM's modulation."""
    settings = TrainSettings(
        model="stable-diffusion-v1-5/stable-diffusion-v1-5",
        prompts_per_batch=8,
        spm=SPMSettings(model="owner/name/sd-v1-5_step-aware_preference_model.bin"),
        spo=dataclasses.replace(SMALL, decoder="madebyollin/taesd"),
    )
    run = run_shapes(settings, make_mesh())
    parameters = lambda tree: sum(math.prod(x.shape) for x in jax.tree.leaves(tree))  # noqa: E731
    assert parameters(run.frozen.unet) == 859_520_964
    assert parameters(run.frozen.decoder) == 2_445_063
    assert parameters(run.frozen.spm) > 986_000_000
    assert run.inputs.condition.states.shape == (8, 77, 768)
    assert run.networks.settings.decoder == "madebyollin/taesd"


def test_unknown_models_and_uneven_batches_are_refused():
    with pytest.raises(UserError, match="field model = 'owner/name': its networks are not known here"):
        run_shapes(TrainSettings(model="owner/name", prompts_per_batch=8, spo=SMALL), make_mesh())
    with pytest.raises(UserError, match="prompts_per_batch = 10: expected a multiple of the 8 devices"):
        run_shapes(TrainSettings(spo=SMALL), make_mesh())


def test_without_the_compiler_the_wheel_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"expected the wheel libtpu: pip install 'jax\[tpu\]'"):
        find_topology("v5e:2x4")


@needs_compiler
def test_topologies():
    chips = {name: chip_of(find_topology(name)[0]) for name in ("v5e:2x4", "v6e:2x4", "v5p:2x2x1")}
    assert [(chip.name, chip.hbm / GIB) for chip in chips.values()] == [("v5e", 16), ("v6e", 32), ("v5p", 95)]
    assert [chip.peak_flops for chip in chips.values()] == [197e12, 918e12, 459e12]
    with pytest.raises(UserError, match="--topology=v99:2x2: .*expected such as v5e:2x4"):
        find_topology("v99:2x2")


@pytest.fixture
def tiny_folder(tmp_path):
    """Configs, and no weights, of a pipeline and a preference model that compile in half a minute."""
    unet = {
        "block_out_channels": [32],
        "cross_attention_dim": 32,
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D"],
        "attention_head_dim": 2,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "sample_size": 8,
    }
    vae = {
        "block_out_channels": [16],
        "down_block_types": ["DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D"],
        "norm_num_groups": 8,
        "mid_block_add_attention": False,
    }
    layers = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = {**layers, "vocab_size": 99, "max_position_embeddings": 8, "projection_dim": 32}
    spm = {"projection_dim": 32, "text_config": text, "vision_config": {**layers, "image_size": 32, "patch_size": 16}}
    scheduler = json.loads((ASSETS / "pipeline" / "scheduler" / "scheduler_config.json").read_text())
    files = {
        "model_index": {},
        "unet/config": unet,
        "vae/config": vae,
        "text_encoder/config": text,
        "scheduler/scheduler_config": scheduler,
        "spm/config": spm,
    }
    for name, content in files.items():
        write_json(tmp_path / f"{name}.json", content)
    return tmp_path


@pytest.mark.slow
@needs_compiler
def test_both_programs_compile_for_a_tpu(tiny_folder):
    """Whole programs, at the least effort; weights are on every chip, and a chip has an eighth of the work."""
    settings = TrainSettings(
        model=str(tiny_folder),
        dtype="bfloat16",
        prompts_per_batch=8,
        spm=SPMSettings(model=str(tiny_folder / "spm")),
        spo=SMALL,
    )
    programs = dict(aot.measure(settings, "v5e:2x4", effort=-1.0))
    assert list(programs) == ["collect", "update"]
    run = run_shapes(settings, make_mesh())
    weights = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(run.frozen))
    for program in programs.values():
        assert program["fits"] and weights < program["argument_bytes"] < program["total_bytes"] < 0.1 * GIB
        # XLA counts small things too, and each loop's body once; it would be 8 times as much if all chips did all.
        assert 0.1 < program["flops_xla_loops_once"] / program["flops_layers"] < 2
        np.testing.assert_allclose(program["seconds_at_peak"], program["flops_layers"] / 197e12)
    assert programs["update"]["alias_bytes"] > 0  # the state is donated


def test_shapes_of_a_preference_model_in_training_are_those_of_one_that_is_loaded():
    """The embedded one, its state cut over 8 devices as fsdp; pictures cut over all of them."""
    settings = SPMTrainSettings(dtype="bfloat16", batch_size=16, mesh=MeshSettings(2, 4))
    mesh = make_mesh(settings.mesh)
    pipeline = open_pipeline("embedded", dtype=jnp.bfloat16, mesh=mesh)
    start = load_start("embedded", jax.random.key(0), dtype=jnp.bfloat16, mesh=mesh)
    networks = SPMNetworks(pipeline, start.clip, settings, mesh)
    shapes = spm_run_shapes(settings, mesh)
    assert told(shapes.frozen) == told(networks.frozen())
    assert told(shapes.state.params) == told(start.params)
    side = pipeline.image_size[0]
    assert shapes.rows.images.shape == (16, 2, side, side, 3) and shapes.rows.images.sharding == over_batch(mesh)
    assert any("fsdp" in spec for _, _, spec in told(shapes.state.opt_state).values())


@needs_compiler
def test_a_training_step_of_a_preference_model_compiles_for_a_tpu(tiny_folder):
    """Weights and moments are cut over the chips."""
    settings = SPMTrainSettings(
        model=str(tiny_folder), init=str(tiny_folder / "spm"), dtype="bfloat16", batch_size=16, chunk=1,
        mesh=MeshSettings(1, 8),
    )  # fmt: skip
    (name, program), *others = aot.measure(settings, "v5e:2x4", effort=-1.0)
    assert name == "step" and not others and program["fits"]
    run = spm_run_shapes(settings, make_mesh(settings.mesh))
    state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(run.state))
    assert 0 < program["alias_bytes"] < state  # donated; less than the whole, for all that padding adds
    assert 0.1 < program["flops_xla_loops_once"] / (program["flops_layers"] / 2) < 2  # two chunks: one is counted


def test_a_preference_models_batch_is_told():
    settings = SPMTrainSettings(dtype="bfloat16", remat=True, batch_size=128, chunk=6, mesh=MeshSettings(1, 8))
    found = {"config": "spm", "topology": "v5e:2x4", "chips": 8, "settings": dataclasses.asdict(settings)}
    row = aot.table([found | {"chip": {"hbm": 16 * GIB}, "programs": {"step": program(8 * GIB)}}]).splitlines()[2]
    assert "16 pairs by 4, bfloat16, remat, fsdp 8" in row and "8.00 of 16 GiB (50%)" in row


def program(total, **more):
    parts = dict.fromkeys(("output_bytes", "alias_bytes", "generated_code_bytes"), 0)
    sizes = {"argument_bytes": 4 * GIB, "temp_bytes": total - 4 * GIB, "total_bytes": total, **parts}
    costs = {"flops_layers": 2.5e12, "seconds_at_peak": 0.0127, "bytes_moved_loops_once": 65e9, "compile_seconds": 61.4}
    costs["effort"] = -0.5
    return {"fits": True, **sizes, **costs, **more}


def test_results_are_kept_and_tabled(tmp_path):
    """A file per config and topology, one table of all of them; what does not fit says so."""
    chip = {"name": "v5e", "hbm": 16 * GIB, "bandwidth": 819e9, "peak_flops": 197e12}
    settings = dataclasses.asdict(
        TrainSettings(dtype="bfloat16", remat=True, prompts_per_batch=80, spo=SPOSettings(train_batch_size=80))
    )
    found = {"config": "sd15", "topology": "v5e:2x4", "chips": 8, "chip": chip, "settings": settings}
    told_no = {"fits": False, "error": "Ran out of memory", "flops_layers": 1e12, "seconds_at_peak": 0.5}
    first = found | {
        "programs": {"collect": program(12 * GIB), "update": {**told_no, "compile_seconds": 7.0, "effort": 0.0}}
    }
    second = found | {"config": "other", "programs": {"collect": program(6 * GIB)}}
    assert aot.save(tmp_path, first).name == "aot-sd15-v5e-2x4.json"
    aot.save(tmp_path, second)
    rows = [row for row in (tmp_path / "aot.md").read_text().splitlines() if row.startswith("|")]
    start = "v5e:2x4 | 10 prompts, 10 pairs by 10, 4 decoded, bfloat16, remat"
    assert rows[2:] == [
        f"| other | {start} | collect | 4.00 GiB | 2.00 GiB | 6.00 of 16 GiB (38%) | 2.5 | 0.0127 | 65 | 61 | -0.5 |",
        f"| sd15 | {start} | collect | 4.00 GiB | 8.00 GiB | 12.00 of 16 GiB (75%) | 2.5 | 0.0127 | 65 | 61 | -0.5 |",
        f"| sd15 | {start} | update | - | - | does not fit 16 GiB | 1 | 0.5 | - | 7 | 0 |",
    ]
