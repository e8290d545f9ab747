"""Compiling for TPUs without one: a run's own shapes are compiled, and the compiler's numbers are reported."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import aot, records
from benchmarks.blueprints import blueprint, write_configs
from benchmarks.cycles import KINDS
from benchmarks.flops import count
from benchmarks.parts import PARTS, trace_part
from benchmarks.topologies import GIB, chip_of, find_topology
from benchmarks.trajectory import repeats, trajectory
from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json
from spo_jax.methods import read_settings
from spo_jax.methods.common.preference.settings import AccuracySettings
from spo_jax.methods.common.settings import JudgeSettings
from spo_jax.methods.finetune.settings import FinetuneSettings
from spo_jax.methods.spm.init import load_start
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.methods.spo.method import SPORun
from spo_jax.methods.spo.settings import SPOSettings, SPOTrainSettings
from spo_jax.models import open_pipeline
from spo_jax.models.decoder import open_decoder
from spo_jax.parallel.mesh import MeshSettings, make_mesh, over_batch
from spo_jax.parallel.sharding import shapes_of
from spo_jax.rewards.common.preference_model import load_spm

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler, wheel libtpu, is not here"
)
SMALL = SPOSettings(num_steps=3, divert_start_step=1, num_candidates=2, decode_chunk=2, train_batch_size=8)
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def described(tree):
    """The shapes, types and places of a tree's leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): (x.shape, x.dtype, x.sharding.spec) for path, x in leaves}


def abstract_run(settings, mesh=None):
    """An abstract run, by default on all devices."""
    mesh = mesh or make_mesh(settings.mesh)
    with jax.set_mesh(mesh):
        return aot.abstract_run(settings, mesh)


@pytest.fixture(scope="module")
def micro_folder(tmp_path_factory):
    """Configs, without weights, of a pipeline, a preference model and a distilled decoder."""
    folder = tmp_path_factory.mktemp("micro")
    write_configs(blueprint("micro"), folder)
    return folder


@pytest.fixture(scope="module")
def spo_settings(micro_folder):
    """Settings of SPO on these models."""
    return SPOTrainSettings(
        model=str(micro_folder),
        dtype="bfloat16",
        prompts_per_batch=8,
        spm=JudgeSettings(model=str(micro_folder / "spm")),
        spo=SMALL,
    )


@pytest.fixture(scope="module")
def spo_run(spo_settings):
    """An abstract run of SPO."""
    return abstract_run(spo_settings)


# Abstract runs


def test_weights_lie_where_those_of_a_loaded_run_do():
    """The toy pipeline and its judge are cut over 8 devices as fsdp; prompts are cut over all of them."""
    settings = SPOTrainSettings(dtype="bfloat16", prompts_per_batch=8, mesh=MeshSettings(2, 4), spo=SMALL)
    mesh = make_mesh(settings.mesh)
    run = abstract_run(settings, mesh)
    pipeline = open_pipeline("toy", dtype=jnp.bfloat16, mesh=mesh)
    judge = load_spm("toy", dtype=jnp.bfloat16, mesh=mesh)
    assert described(run.spo.pipeline.params) == described(shapes_of(pipeline.params))
    assert described(run.spo.judge.params["reward"]) == described(shapes_of(judge.params))
    assert run.spo.judge.params["decoder"] is run.spo.pipeline.params["vae"]
    assert any("fsdp" in spec for _, _, spec in described(run.spo.judge.params).values())
    assert run.spo.feature_shapes().judge.sharding == over_batch(mesh)


def test_a_preference_model_lies_where_a_loaded_one_does():
    """Its state is cut over 8 devices as fsdp; images are cut over all of them."""
    settings = SPMTrainSettings(dtype="bfloat16", batch_size=16, mesh=MeshSettings(2, 4))
    mesh = make_mesh(settings.mesh)
    run = abstract_run(settings, mesh)
    state = run.state_shapes()
    start = load_start("toy", jax.random.key(0), dtype=jnp.bfloat16, mesh=mesh)
    assert described(state.params) == described(start.params)
    assert any("fsdp" in spec for _, _, spec in described(state.opt_state).values())
    side = run.training.side
    images = run.training.row_shapes().images
    assert images.shape == (16, 2, side, side, 3) and images.sharding == over_batch(mesh)
    assert aot.idle_bytes(run) == 0 and aot.loop_trips(run, "step") == ()


def test_idle_weights_are_those_that_no_program_takes(spo_run, micro_folder):
    """The text encoder is idle, and the autoencoder too unless it decodes for the judge."""
    params = spo_run.pipeline.params
    assert spo_run.idle_params().keys() == {"text_encoder"}
    assert aot.idle_bytes(spo_run) == sum(2 * x.size for x in jax.tree.leaves(params["text_encoder"]))
    decoder = open_decoder(str(micro_folder / "tiny_vae"), spo_run.pipeline, spo_run.mesh, abstract=True)
    judge = dataclasses.replace(spo_run.spo.judge, decoder=decoder)
    run = SPORun(dataclasses.replace(spo_run.spo, judge=judge))
    assert run.idle_params().keys() == {"text_encoder", "vae"}


def test_loops_of_an_update_are_counted_for_one_training_batch(spo_run, spo_settings):
    """80 pairs, at most 3 at a time on each of 8 devices, are 4 chunks."""
    spo = dataclasses.replace(SMALL, train_batch_size=80, train_chunk=3)
    run = SPORun(dataclasses.replace(spo_run.spo, settings=dataclasses.replace(spo_settings, spo=spo)))
    assert aot.loop_trips(run, "update") == (1, 4) and aot.loop_trips(run, "collect") == ()


def test_any_method_is_traced(micro_folder):
    """The benchmarks know nothing of fine-tuning; its programs need no data, and its loops no counts."""
    settings = FinetuneSettings(model=str(micro_folder), batch_size=8)
    mesh = make_mesh(devices=jax.devices()[:2])
    run = abstract_run(settings, mesh)
    with jax.set_mesh(mesh):
        traced = run.trace(run.state_shapes(), keep_unused=True)
    assert list(traced) == ["update"] and count(traced["update"], while_trips=aot.loop_trips(run, "update")) > 1e6
    assert run.idle_params().keys() == {"text_encoder", "vae"}
    assert aot.with_batch_of_chip(settings, 16, {"prompts": None, "pairs": None}) == settings
    assert records.describe_batch(dataclasses.asdict(settings), settings.BATCHES, 2) == "4 images by 4, float32"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sdxl", "spm_sd15", "spm_sdxl"])
def test_published_runs_are_set_up_without_a_download(name):
    """The batches are those of the command on 8 chips."""
    settings = read_settings(importlib.import_module(f"configs.{name}").get_config())
    run = abstract_run(aot.with_batch_of_chip(settings, 8, {"prompts": None, "pairs": None}))
    assert aot.shard_bytes(run.state_shapes()) > 0


def test_uneven_batches_are_refused(spo_settings, micro_folder):
    """Batches of evaluation are not compiled, so they need not be even."""
    with pytest.raises(UserError, match="prompts_per_batch = 10: expected a multiple of the 8 devices"):
        abstract_run(dataclasses.replace(spo_settings, prompts_per_batch=10))
    with pytest.raises(UserError, match="config field batch_size = 12: expected a multiple of the 8 devices"):
        abstract_run(SPMTrainSettings(batch_size=12))
    models = {"model": str(micro_folder), "init": str(micro_folder / "spm")}
    abstract_run(SPMTrainSettings(**models, batch_size=8, eval=AccuracySettings(batch=3)))


# Compiling


def test_without_the_compiler_the_wheel_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"expected the wheel libtpu; run pip install 'jax\[tpu\]'"):
        find_topology("v5e:2x4")


@needs_compiler
def test_topologies():
    assert [len(find_topology(name)) for name in ("v5e:1x1", "v6e:1x1", "v5p:1x1x1", "v5e:2x4")] == [1, 1, 1, 8]
    chips = {name: chip_of(find_topology(name)[0]) for name in ("v5e:2x4", "v6e:2x4", "v5p:2x2x1")}
    assert [(chip.name, chip.hbm / GIB) for chip in chips.values()] == [("v5e", 16), ("v6e", 32), ("v5p", 95)]
    assert [chip.peak_flops for chip in chips.values()] == [197e12, 918e12, 459e12]
    with pytest.raises(UserError, match="--topology=v99:2x2: .*expected a name such as v5e:1x1"):
        find_topology("v99:2x2")


@pytest.mark.slow
@needs_compiler
def test_both_programs_compile_for_a_tpu(spo_settings, spo_run):
    """Weights are on every chip, and every chip has an eighth of the work; the compiler's effort is the least."""
    programs = dict(aot.measure(spo_settings, "v5e:2x4", effort=-1.0))
    assert list(programs) == ["collect", "update"]
    weights = aot.shard_bytes(spo_run.pipeline.params["unet"]) + aot.shard_bytes(spo_run.spo.judge.params)
    for program in programs.values():
        assert program["fits"] and weights < program["argument_bytes"] < program["total_bytes"] < 0.1 * GIB
        # XLA includes element-wise work, which is more than half of such narrow networks', and counts each loop's body
        # once. If every chip did all of the work, it would be 8 times as much.
        assert 0.1 < program["flops_xla_loops_once"] / program["flops_layers"] < 4
        np.testing.assert_allclose(program["seconds_at_peak"], program["flops_layers"] / 197e12)
    assert programs["update"]["alias_bytes"] > 0  # the state is donated


@needs_compiler
def test_a_training_step_of_a_preference_model_compiles_for_a_tpu(micro_folder):
    """Weights and moments are cut over the chips."""
    settings = SPMTrainSettings(
        model=str(micro_folder),
        init=str(micro_folder / "spm"),
        dtype="bfloat16",
        batch_size=16,
        chunk=1,
        mesh=MeshSettings(1, 8),
    )
    with pytest.raises(UserError, match="--programs=update: expected one of step"):
        next(aot.measure(settings, "v5e:2x4", programs=["update"]))
    (name, program), *others = aot.measure(settings, "v5e:2x4", effort=-1.0, programs=["step"])
    assert name == "step" and not others and program["fits"]
    state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract_run(settings).state_shapes()))
    assert 0 < program["alias_bytes"] < state  # the state is donated, and a chip holds less than the whole with padding
    assert 0.1 < program["flops_xla_loops_once"] / (program["flops_layers"] / 2) < 2  # one of two chunks is counted


# Results


def test_batches_of_a_chip():
    """The published batches are those of 4 devices; a single chip has all, and a batch of evaluation stays as it is."""
    given = {"prompts": None, "pairs": None}
    spo = SPOTrainSettings(prompts_per_batch=40, spo=SPOSettings(train_batch_size=42))
    sizes = aot.with_batch_of_chip(spo, 8, given).batch_sizes()
    assert sizes == {"prompts_per_batch": 80, "spo.train_batch_size": 88}
    sizes = aot.with_batch_of_chip(spo, 8, given | {"prompts": 3}).batch_sizes()
    assert sizes == {"prompts_per_batch": 24, "spo.train_batch_size": 88}
    assert aot.with_batch_of_chip(spo, 1, given) == spo
    assert aot.with_batch_of_chip(spo, 1, given | {"pairs": 7}).batch_sizes()["spo.train_batch_size"] == 7
    sizes = aot.with_batch_of_chip(SPMTrainSettings(), 8, given | {"pairs": 5}).batch_sizes()
    assert sizes == {"batch_size": 40, "eval.batch": 64}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            SPMTrainSettings(dtype="bfloat16", remat=True, batch_size=128, chunk=6, mesh=MeshSettings(1, -1)),
            "16 pairs by 4, bfloat16, remat, fsdp 8",
        ),
        (
            SPOTrainSettings(prompts_per_batch=16, spo=SPOSettings(train_batch_size=80, train_chunk=6)),
            "2 prompts, 10 pairs by 5, 8 decoded, float32",
        ),
        (
            SPOTrainSettings(
                prompts_per_batch=8, remat=True, remat_keeps="costly", spo=SPOSettings(train_batch_size=8)
            ),
            "1 prompts, 1 pairs by 1, 8 decoded, float32, remat (costly kept)",
        ),
        (
            SPOTrainSettings(
                model="stabilityai/stable-diffusion-xl-base-1.0",
                prompts_per_batch=16,
                spo=SPOSettings(train_batch_size=80, train_chunk=6),
            ),
            "2 prompts, 10 pairs by 5, 4 decoded, float32",
        ),
    ],
    ids=["spm", "spo", "kept", "sdxl"],
)
def test_a_batch_is_described(settings, text):
    """Pairs are cut as the method cuts them, by at most the chunk of its settings."""
    assert records.describe_batch(dataclasses.asdict(settings), settings.BATCHES, 8) == text


def test_earlier_results_are_read():
    """Their settings have the layout of an earlier version, and no method."""
    files = sorted(RESULTS.glob("aot-*.json"))
    assert files and (RESULTS / "aot.md").read_text().endswith(records.table([read_json(file) for file in files]))


def program(total, **more):
    """The numbers of a program."""
    parts = dict.fromkeys(("output_bytes", "alias_bytes", "generated_code_bytes"), 0)
    sizes = {"argument_bytes": 4 * GIB, "temp_bytes": total - 4 * GIB, "total_bytes": total, **parts}
    costs = {"flops_layers": 2.5e12, "seconds_at_peak": 0.0127, "bytes_moved_loops_once": 65e9, "compile_seconds": 61.4}
    return {"fits": True, **sizes, **costs, "effort": -0.5, **more}


def test_results_are_kept_and_tabled(tmp_path):
    """There is a file per config and topology and one table of all; a program that does not fit has no memory in it."""
    chip = {"name": "v5e", "hbm": 16 * GIB, "bandwidth": 819e9, "peak_flops": 197e12}
    batch = "10 prompts, 10 pairs by 10"
    found = {"benchmark": "aot", "config": "sd15", "topology": "v5e:2x4", "chips": 8, "chip": chip, "batch": batch}
    too_large = {
        "fits": False,
        "error": "Ran out of memory",
        "flops_layers": 1e12,
        "seconds_at_peak": 0.5,
        "compile_seconds": 7.0,
        "effort": 0.0,
    }
    first = found | {"programs": {"collect": program(12 * GIB), "update": too_large}}
    second = found | {"config": "other", "programs": {"collect": program(6 * GIB)}}
    assert records.save(tmp_path, first).name == "aot-sd15-v5e-2x4.json"
    records.save(tmp_path, second)
    assert records.save(tmp_path / "labelled", first, "chunk5").name == "aot-sd15-v5e-2x4-chunk5.json"
    rows = [row for row in (tmp_path / "aot.md").read_text().splitlines() if row.startswith("|")]
    start = f"v5e:2x4 | {batch}"
    assert rows[2:] == [
        f"| other | {start} | collect | 4.00 GiB | 2.00 GiB | 6.00 of 16 GiB (38%) | 2.5 | 0.0127 | 65 | 61 | -0.5 |",
        f"| sd15 | {start} | collect | 4.00 GiB | 8.00 GiB | 12.00 of 16 GiB (75%) | 2.5 | 0.0127 | 65 | 61 | -0.5 |",
        f"| sd15 | {start} | update | - | - | does not fit 16 GiB | 1 | 0.5 | - | 7 | 0 |",
    ]


# Estimated cycles


def estimated(seconds, flops):
    """A compiled part or program of so many seconds, as `records.save` takes it."""
    kinds = {kind: 0.0 for kind in KINDS} | {"products": 0.75 * seconds, "copies": 0.25 * seconds}
    cycles = {"seconds": seconds, "kinds": kinds, "networks": {"UNet": kinds}, "share_of_products": 0.75, "mfu": 0.5}
    return program(6 * GIB) | {"cycles": cycles, "flops_layers": flops, "seconds_at_peak": flops / 1e12}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"objective": "gradspo", "num_inner_step": 3}, {"pairs": 40, "unet": 16.25, "decode": 40, "judge": 40}),
        ({"judged": "noisy"}, {"pairs": 160, "unet": 5, "decode": 0, "judge": 160}),
        (
            {"judged": "noisy", "second_reward": "spm", "second_steps": 2},
            {"pairs": 160, "unet": 1 + 19 / 4, "decode": 20, "judge": 180},
        ),
    ],
    ids=["gradspo", "noisy", "second"],
)
def test_what_a_rollout_repeats_follows_from_its_plan(spo_run, fields, expected, monkeypatch):
    """GradSPO makes a pair for each judgement; noisy candidates are judged without the network and the decoder."""
    spo = dataclasses.replace(SPOSettings(train_batch_size=10, decode_chunk=4), **fields)
    monkeypatch.setattr(spo_run, "settings", dataclasses.replace(spo_run.settings, prompts_per_batch=80, spo=spo))
    with jax.set_mesh(spo_run.mesh):
        found = repeats(spo_run)
    assert {name: found[name] for name in expected} == expected
    assert spo_run.most_train_batches() == expected["pairs"] * 8 // 10


def test_a_trajectory_is_put_together_from_parts(micro_folder):
    """10 prompts with 4 candidates: 15 steps of pools and 5 of single candidates, and 16 judgements of 40 images."""
    settings = SPOTrainSettings(
        model=str(micro_folder),
        prompts_per_batch=10,
        spm=JudgeSettings(model=str(micro_folder / "spm")),
        spo=SPOSettings(train_batch_size=10, train_chunk=5),
    )
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        times = repeats(abstract_run(settings, mesh))
        assert repeats(abstract_run(FinetuneSettings(model=str(micro_folder), batch_size=8), mesh)) == {}
    assert times == {
        "prompts": 10, "pairs": 160, "train_batch": 10, "unet": 15 + 5 / 4, "decode": 160, "judge": 160, "update": 2,
    }  # fmt: skip
    parts = {"decode": estimated(0.2, 1e11), "unet": estimated(1.0, 5e11), "judge": estimated(0.05, 1e10)}
    parts["decode"]["repeats"] = times
    record = {"chip": {"peak_flops": 1e12}, "programs": parts}
    rollout = 16.25 * 1.0 + 160 * 0.25
    assert trajectory(record) == pytest.approx(
        {"rollout": rollout, "mfu": (16.25 * 0.5 + 160 * 0.11) / rollout, "basis": "parts"}
    )
    assert trajectory(record | {"programs": {"unet": parts["unet"]}}) is None
    parts["update"] = estimated(0.7, 3e11)
    found = trajectory(record)
    assert found["basis"] == "parts" and found["rollout"] == pytest.approx(rollout)
    assert found["train_batch"] == pytest.approx(1.4)
    assert found["trajectory"] == pytest.approx((rollout + 8 * 1.4) / 10)  # half of 160 pairs are 8 training batches
    collect = estimated(30.0, 9e12) | {"repeats": times}
    whole = record | {"programs": {"collect": collect, "update": estimated(1.5, 6e11)}}
    assert trajectory(whole)["trajectory"] == pytest.approx((30 + 8 * 1.5) / 10)
    assert trajectory(whole)["basis"] == "programs"


def test_trajectories_are_kept_and_tabled(tmp_path):
    """Records with cycles have files and a table of their own, with hours of 1,000 and 40,000 trajectories.

    Programs of the same settings are added to the file, others replace what is in it.
    """
    chip = {"name": "v5e", "hbm": 16 * GIB, "bandwidth": 819e9, "peak_flops": 1e12}
    found = {"benchmark": "cycles", "config": "sd15", "topology": "v5e:2x4", "chips": 2, "chip": chip, "batch": "B"}
    found |= {"settings": {}, "versions": {}, "programs": {"collect": estimated(28.0, 14e12)}}
    records.save(tmp_path, found | {"config": "spm"})
    assert [row for row in (tmp_path / "cycles.md").read_text().splitlines() if row.startswith("| spm")] == [
        "| spm | v5e:2x4 | B | collect | 28 | 14 | 50% | 75% | 25% | UNet 100% | 2.00 GiB |"
    ]
    found["programs"]["collect"]["repeats"] = {"prompts": 10, "pairs": 160, "train_batch": 10}

    def rows(programs, **changed):
        """The rows after programs were added."""
        assert records.save(tmp_path, found | {"programs": programs} | changed).name == "cycles-sd15-v5e-2x4.json"
        return [row for row in (tmp_path / "cycles.md").read_text().splitlines() if row.startswith("| sd15")]

    start = "| sd15 | v5e:2x4 | B |"
    alone = rows(found["programs"])
    assert len(alone) == 2 and alone[0] == f"{start} 28.0 s | 50% | - | - | - | programs | -0.5 |"
    update = {"update": estimated(1.0, 1e11)}
    both = rows(update)
    assert len(both) == 3 and both[0] == f"{start} 28.0 s | 50% | 1.00 s | 3.60 s | 0.5, 20 | programs | -0.5 |"
    assert len(rows(update, settings={"remat": True})) == 1
    assert not (tmp_path / "aot.md").exists()


def test_parts_are_refused_where_there_are_none(micro_folder):
    """Unknown ones, parts beside programs, other methods than SPO, and decoders of judges that read latents."""
    with pytest.raises(UserError, match="--part=text: expected one of decode, unet, judge, update"):
        aot.check_parts(["decode", "text"], [])
    with pytest.raises(UserError, match="--part and --programs: expected one of the two"):
        aot.check_parts(["decode"], ["collect"])
    run = abstract_run(FinetuneSettings(model=str(micro_folder), batch_size=8))
    with pytest.raises(UserError, match="--part=unet: expected a config whose method is spo"):
        trace_part(run, "unet")


def test_parts_have_the_shapes_and_the_work_of_the_run(spo_run):
    """What the parts cost, as often as a batch repeats them, is what the run's programs cost."""
    mesh = spo_run.mesh
    with jax.set_mesh(mesh):
        work = {part: count(trace_part(spo_run, part)) for part in PARTS}
        whole = spo_run.trace(spo_run.state_shapes(), keep_unused=True)
        times = repeats(spo_run)
    rollout = sum(times[part] * work[part] for part in ("decode", "unet", "judge"))
    assert rollout == pytest.approx(count(whole["collect"]), rel=1e-3)
    update = count(whole["update"], while_trips=aot.loop_trips(spo_run, "update"))
    assert times["update"] * work["update"] == pytest.approx(update, rel=1e-3)


@needs_compiler
def test_a_part_is_compiled_and_its_cycles_are_added_up(spo_settings):
    ((name, found),) = aot.measure(spo_settings, "v5e:2x4", effort=-1.0, parts=["unet"], cycles=True)
    assert name == "unet" and found["cycles"]["seconds"] > found["seconds_at_peak"] > 0
    assert next(iter(found["cycles"]["networks"])) == "UNet2DConditionModel"
    assert 0 < found["cycles"]["mfu"] < 1
