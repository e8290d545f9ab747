"""Mistakes on the command line: one line that says what is wrong and where, status 2, nothing half-written."""

import json
import re
import shutil

import jax
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.export import export
from spo_jax.models import open_pipeline
from spo_jax.models.lora import write_lora
from spo_jax.nn.lora import init_lora
from spo_jax.run.lock import RunLock
from spo_jax.sample import sample
from spo_jax.weights import store
from spo_jax.weights.lora import LoRA

TOY = "--config=configs/toy.py"
SPM_TOY = "--config=configs/spm_toy.py"
LOG_LINE = re.compile(r"\d\d:\d\d:\d\d ")  # what a command does, with the time of day


def assert_one_line(process, parts):
    """The command ended with status 2 and one line on stderr that holds ``parts``."""
    lines = process.stderr.splitlines()
    assert process.returncode == 2, process.stderr[-4000:]
    assert [line for line in lines if not LOG_LINE.match(line)] == lines[-1:]
    assert lines[-1].startswith("error: ")
    for part in parts:
        assert part in lines[-1]


@pytest.fixture
def refused(command, tmp_path):
    """Asserts that a command ends with one line that holds ``parts``, and leaves ``tmp_path`` as it was."""

    def check(name, *arguments, parts, run=command):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        assert_one_line(run(name, *arguments), parts)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before

    return check


@pytest.fixture
def pipeline_folder(micro, tmp_path):
    """A copy of the micro pipeline, to be damaged."""
    shutil.copytree(micro.sd, tmp_path / "model")
    return tmp_path / "model"


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-1000])


# Flags and fields


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ([TOY, "--config.spo.bta=3"], ["--config has no field spo.bta: did you mean spo.beta?"]),
        ([TOY, "--config.spo.beta=strong"], ["--config.spo.beta=strong", "float"]),
        ([TOY, "--config.spo.num_steps=5.5"], ["--config.spo.num_steps=5.5", "int"]),
        ([TOY, "--config.spo.num_candidates=1"], ["config field spo.num_candidates = 1: expected 2 to 1024"]),
        (
            [TOY, "--config.model={micro.sd}", "--config.eval.rewards=beauty"],
            ["config field eval.rewards = 'beauty': expected '", "'toy', or the dotted path of"],
        ),
        ([TOY, "--config.method=beauty"], ["config field method = 'beauty': expected ", "'spm', 'spo', or the dotted"]),
        (["--config=configs/absent.py"], ["--config=configs/absent.py: no such file", "or a name:", "toy"]),
        ([], ["--config is missing"]),
        ([TOY, "--reusme"], ["--reusme: did you mean --resume?"]),
        ([TOY, "more"], ["unexpected argument 'more'"]),
        ([SPM_TOY, "--config.optimizer.warmup_steps=3000"], ["warmup_steps = 3000: expected less than the 3000 opt"]),
        ([SPM_TOY, "--config.data_dir={micro.sd}"], ["{micro.sd}"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_flags_of_train(refused, micro, tmp_path, flags, parts):
    flags = [flag.format(micro=micro) for flag in flags]
    refused("train", *flags, f"--out={tmp_path}/run", parts=[part.format(micro=micro) for part in parts])


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("config.spo.bta = 3", ["config field spo.bta is not a field of SPOSettings: did you mean beta?"]),
        ("config.spo.beta = None", ["config field spo.beta = None: expected float"]),
        ("config.spo.learning_rate = 1e-3", ["config field spo.learning_rate is now optimizer.learning_rate"]),
        ("config.prompts = 'embedded:train'", ["config field prompts = 'embedded:train'", "now 'toy:train'"]),
        ("config.spo = 3", ["config.py: line 7: TypeError", "'spo'"]),
    ],
)
def test_fields_of_a_config_file(refused, tmp_path, line, parts):
    (tmp_path / "config.py").write_text(
        "from spo_jax.methods import default_config\n\n\n"
        f"def get_config():\n    config = default_config('spo')\n\n    {line}\n    return config\n"
    )
    refused("train", f"--config={tmp_path}/config.py", f"--out={tmp_path}/run", parts=parts)


@pytest.mark.parametrize(
    ("content", "parts"),
    [(None, ["no prompt file", "prompts.txt"]), ("", ["prompts.txt holds no prompts"])],
    ids=["missing", "empty"],
)
def test_prompts_of_train(refused, tmp_path, content, parts):
    if content is not None:
        (tmp_path / "prompts.txt").write_text(content)
    flags = (TOY, f"--config.prompts={tmp_path}/prompts.txt", f"--out={tmp_path}/run")
    refused("train", *flags, parts=parts)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ([], ["give either --prompt=TEXT or --prompts=FILE"]),
        (["--prompt=a", "--prompts=b.txt"], ["give either"]),
        (["--prompts=absent.txt"], ["no prompt file absent.txt"]),
        (["--prompt=a", "--steps=0"], ["--steps=0", "[1, 1000]"]),
        (["--prompt=a", "--steps=1000000000"], ["--steps=1000000000", "[1, 1000]"]),
        (["--prompt=a", "--count=1000000000"], ["--count=1000000000", "[1, 1000000]"]),
        (["--prompt=a", "--batch=1000000000"], ["--batch=1000000000", "[1, 1024]"]),
        (["--prompt=a", "--height=99968"], ["--height=99968", "[1, 8192]"]),
        (["--prompt=a", "--seed=-1"], ["--seed=-1"]),
        (["--prompt=a", "--seed=4294967296"], ["--seed=4294967296", "4294967295"]),
        (["--prompt=a", "--guidance=nan"], ["--guidance=nan: expected a finite number"]),
        (["--prompt=a", "--lora-scale=inf"], ["--lora-scale=inf: expected a finite number"]),
        (["--prompt=a", "--dtype=float16"], ["--dtype", "float32|bfloat16"]),
        (["--prompt=a", "--solver=heun"], ["--solver=heun", "ddim|euler|dpm++"]),
        (["--prompt=a", "--height=21"], ["--height=21: expected a multiple of 2", "try 20 or 22"]),
        (["--prompt=a", "--width=0"], ["--width=0"]),
    ],
    ids=lambda value: " ".join(value) if not value or value[0].startswith("--") else "",
)
def test_flags_of_sample(refused, micro, tmp_path, flags, parts):
    refused("sample", f"--model={micro.sd}", *flags, f"--out={tmp_path}/images", parts=parts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lora": "absent.safetensors"}, "no such file or folder: absent.safetensors"),
        ({"init_latents": "absent.npy"}, "cannot read initial latents from absent.npy"),
        ({"steps": 1000}, "steps: 1000: with leading spacing.* 1000 to 1, expected within 999 to 0"),
        ({"karras": True}, r"Karras noise levels are for the solvers euler and dpm\+\+"),
        ({"crop": "0x0"}, r"takes no size conditions \(crop\): only SDXL models do"),
    ],
)
def test_arguments_of_sample(micro, tmp_path, arguments, message):
    """They are refused once the model is read, in the same way as flags."""
    with pytest.raises(UserError, match=message):
        sample(model=str(micro.sd), prompt="a", out=tmp_path / "images", **arguments)
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("original_size", "1024"),
        ("original_size", "0x64"),
        ("target_size", "64x-1"),
        ("target_size", "64×64"),
        ("crop", "-1x0"),
        ("crop", "0x0x0"),
    ],
)
def test_sizes_that_cannot_be_read(tmp_path, flag, text):
    """They are refused before anything is read: there is no such model."""
    name = flag.replace("_", "-")
    meaning = "TOPxLEFT" if flag == "crop" else "HEIGHTxWIDTH"
    with pytest.raises(UserError, match=f"--{name}={text}: expected {meaning} in pixels, such as"):
        sample(model="no/such/model", prompt="a", out=tmp_path, **{flag: text})


def test_flags_of_export(refused, tmp_path, micro_run):
    flags = (f"--run={micro_run}", "--format=onnx", f"--out={tmp_path}/out")
    refused("export", *flags, parts=["--format=onnx", "diffusers|kohya|merged"])
    flags = (f"--run={tmp_path}/absent", f"--out={tmp_path}/out.safetensors")
    refused("export", *flags, parts=[f"{tmp_path}/absent: no run here"])


def test_settings_of_another_method(refused, tmp_path):
    """A preference model is measured with a config of the method that trains one."""
    flags = (TOY, "--spm=toy", f"--out={tmp_path}/out")
    refused("evaluate_spm", *flags, parts=["--config: expected one of method 'spm', such as configs/spm_toy.py, found"])


# Old names


@pytest.mark.parametrize(
    ("name", "flags", "part"),
    [
        ("train_spm", [SPM_TOY], "python -m spo_jax.train_spm is now python -m spo_jax.train"),
        ("train", ["--config=configs/tiny.py"], "--config=configs/tiny.py is now --config=configs/toy.py"),
        ("train", ["--config=spm_tiny"], "--config=spm_tiny is now --config=spm_toy"),
        ("train", [TOY, "--config.model=embedded"], "--config.model=embedded: 'embedded' is now 'toy'"),
        ("train", [TOY, "--config.prompts=embedded:train"], "'embedded:train' is now 'toy:train'"),
        (
            "train",
            [TOY, "--config.spo.learning_rate=1e-3"],
            "--config.spo.learning_rate is now --config.optimizer.learning_rate",
        ),
        ("train", [TOY, "--config.eval.pictures=4"], "--config.eval.pictures is now --config.eval.images"),
        ("train", [TOY, "--config.eval.reward=scenes"], "'scenes' is now 'toy', expected --config.eval.rewards=toy"),
        ("train", [SPM_TOY, "--config.num_steps=4"], "--config.num_steps is now --config.train_steps"),
        ("sample", ["--model=embedded", "--prompt=a"], "--model=embedded: 'embedded' is now 'toy'"),
        ("prepare", ["--dataset=scenes", "--data-dir=out"], "--dataset=scenes: 'scenes' is now 'toy'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_old_names_are_refused_with_the_new_ones(refused, tmp_path, name, flags, part):
    out = [f"--out={tmp_path}/out"] if name == "train" else []
    refused(name, *flags, *out, parts=[part])


@pytest.mark.parametrize("name", ["build", "tiny_sdxl"])
def test_old_commands_of_the_toy_are_refused(refused, commands, name):
    """In a Python of its own: the package is refused while it is imported."""
    parts = ["spo_jax.embedded is now spo_jax.build_toy, with the commands ", "spo_jax.build_toy.toy_sdxl"]
    refused(f"embedded.{name}", parts=parts, run=commands.start)


# Models


def test_a_model_without_an_index(refused, tmp_path, pipeline_folder):
    (pipeline_folder / "model_index.json").unlink()
    parts = [f"{pipeline_folder} is a folder without a model: no model_index.json here"]
    refused("train", TOY, f"--config.model={pipeline_folder}", f"--out={tmp_path}/run", parts=parts)
    refused("sample", f"--model={pipeline_folder}", "--prompt=a star", f"--out={tmp_path}/images", parts=parts)


def test_a_model_that_does_not_exist(refused, tmp_path):
    flags = (TOY, f"--config.model={tmp_path}/absent", f"--out={tmp_path}/run")
    refused("train", *flags, parts=[f"no such file or folder: {tmp_path}/absent"])


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("sample", ["--prompt=a", "--model={name}"]),
        ("train", [TOY, "--config.model={name}"]),
        ("train", ["--config={name}"]),
        ("export", ["--run={name}"]),
        ("prepare", ["--dataset=folder", "--source={name}", "--data-dir=out"]),
    ],
)
def test_names_that_no_file_can_have(refused, tmp_path, name, flags):
    """Too long for any file system, and in the home of nobody."""
    out = [] if name == "prepare" else [f"--out={tmp_path}/out.safetensors"]
    refused(name, *[flag.format(name="x" * 300) for flag in flags], *out, parts=["xxx"])
    if name in ("sample", "prepare"):
        refused(name, *[flag.format(name="~nobody_here/x") for flag in flags], *out, parts=["no such user"])


def test_truncated_weights(refused, tmp_path, pipeline_folder):
    weights = pipeline_folder / "unet" / "diffusion_pytorch_model.safetensors"
    cut_off(weights)
    parts = [f"cannot read {weights} as safetensors"]
    refused("train", TOY, f"--config.model={pipeline_folder}", f"--out={tmp_path}/run", parts=parts)


def test_a_truncated_preference_model(refused, micro, tmp_path):
    shutil.copytree(micro.spm, tmp_path / "spm")
    cut_off(tmp_path / "spm" / "model.safetensors")
    flags = (TOY, f"--config.model={micro.sd}", f"--config.spm.model={tmp_path}/spm", f"--out={tmp_path}/run")
    refused("train", *flags, parts=[f"cannot read {tmp_path}/spm/model.safetensors as safetensors"])


def test_a_preference_model_of_another_kind_of_pipeline(refused, micro, tmp_path):
    flags = (TOY, f"--config.model={micro.sd}", f"--config.spm.model={micro.spm_sdxl}", f"--out={tmp_path}/run")
    refused("train", *flags, parts=["trained on", "SDXL", "--config.spm.model"])


def test_a_truncated_lora(refused, micro, micro_run, tmp_path):
    shutil.copy(micro_run / "lora.safetensors", tmp_path / "lora.safetensors")
    cut_off(tmp_path / "lora.safetensors")
    parts = [f"cannot read {tmp_path}/lora.safetensors as safetensors"]
    flags = (f"--model={micro.sd}", f"--lora={tmp_path}/lora.safetensors", "--prompt=a star")
    refused("sample", *flags, f"--out={tmp_path}/images", parts=parts)


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_a_lora_of_an_sd_model_for_sdxl(refused, micro, micro_run, tmp_path, layout):
    """It is refused in drawing, and in exporting SDXL with it."""
    lora = tmp_path / "lora.safetensors"
    export(micro_run, layout, lora)
    parts = [f"{lora} is a LoRA of SD 1.x or 2.x", "this model is SDXL"]
    model = f"--model={micro.sdxl}"
    if layout == "diffusers":
        refused("sample", model, f"--lora={lora}", "--prompt=a star", f"--out={tmp_path}/images", parts=parts)
    else:
        refused("export", model, f"--run={lora}", "--format=merged", f"--out={tmp_path}/merged", parts=parts)


def test_a_lora_of_sdxl_for_an_sd_model(refused, micro, tmp_path):
    params = open_pipeline(micro.sdxl, abstract=True).params["unet"]
    shapes = jax.eval_shape(lambda key: init_lora(key, params, 2), jax.random.key(0))
    tree = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    write_lora(tmp_path / "lora.safetensors", LoRA(tree, 2.0, 2))
    parts = [f"{tmp_path}/lora.safetensors is a LoRA of SDXL", "this model is SD 1.x or 2.x"]
    flags = (f"--model={micro.sd}", f"--lora={tmp_path}/lora.safetensors", "--prompt=a star")
    refused("sample", *flags, f"--out={tmp_path}/images", parts=parts)


@pytest.mark.parametrize("name", ["train", "sample"])
def test_an_autoencoder_of_another_width(refused, micro, tmp_path, name):
    """Such as those of SD 3 and Flux, with 16 channels."""
    shutil.copytree(micro.sdxl / "vae", tmp_path / "vae")
    fields = json.loads((tmp_path / "vae" / "config.json").read_text())
    (tmp_path / "vae" / "config.json").write_text(json.dumps(fields | {"latent_channels": 16}))
    flags = [f"--model={micro.sdxl}", f"--vae={tmp_path}/vae"]
    if name == "train":
        flags = [TOY, *(f"--config.{flag.removeprefix('--')}" for flag in flags)]
    parts = [f"{tmp_path}/vae/config.json: latent_channels = 16, but the UNet takes latents of 4"]
    flags += ["--prompt=a star"] if name == "sample" else []
    refused(name, *flags, f"--out={tmp_path}/out", parts=parts)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("conditioner.embedders.0.model.ln_final.weight", "the SDXL refiner"),
    ],
)
def test_a_single_file_of_another_architecture(refused, tmp_path, key, kind):
    store.write_state(tmp_path / "model.safetensors", {key: np.ones((2, 2), np.float32)})
    parts = [f"{tmp_path}/model.safetensors is {kind}"]
    model = f"model={tmp_path}/model.safetensors"
    refused("train", TOY, f"--config.{model}", f"--out={tmp_path}/run", parts=parts)
    refused("sample", f"--{model}", "--prompt=a star", f"--out={tmp_path}/images", parts=parts)


# Folders and files


def test_a_checkpoint_of_another_config(refused, tmp_path, micro_run, micro_config):
    shutil.copytree(micro_run, tmp_path / "run")
    flags = (f"--config={micro_config}", f"--out={tmp_path}/run", "--resume", "--config.spo.beta=5")
    refused("train", *flags, parts=["checkpoints/3 has other settings: spo.beta was 10.0, now 5.0"])


def test_a_folder_that_holds_a_run_already(refused, tmp_path, micro_run, micro_config):
    shutil.copytree(micro_run, tmp_path / "run")
    flags = (f"--config={micro_config}", f"--out={tmp_path}/run")
    refused("train", *flags, parts=[f"{tmp_path}/run already holds a run: pass --resume"])


def test_nothing_to_resume(refused, tmp_path):
    parts = [f"--resume: no checkpoint in {tmp_path}/run/checkpoints"]
    refused("train", TOY, f"--out={tmp_path}/run", "--resume", parts=parts)


@pytest.mark.parametrize("name", ["train", "sample", "export"])
def test_output_below_a_regular_file(refused, tmp_path, micro_run, name):
    """Permissions would not stop root."""
    (tmp_path / "file").write_text("")
    flags = {"train": [TOY], "sample": ["--prompt=a star"], "export": [f"--run={micro_run}"]}
    parts = [f"cannot write to {tmp_path}/file", f"{tmp_path}/file is not a folder"]
    refused(name, *flags[name], f"--out={tmp_path}/file/below/out", parts=parts)


def test_latents_of_another_size(micro, tmp_path):
    np.save(tmp_path / "latents.npy", np.zeros((1, 4, 8, 8), np.float32))
    with pytest.raises(UserError, match=r"latents.npy: float32.* expected floats \[b, \(4, 8, 32\) as c, h, w\]"):
        sample(model=str(micro.sd), prompt="a", out=tmp_path, width=64, init_latents=str(tmp_path / "latents.npy"))


def test_latents_for_another_number_of_images(refused, micro, tmp_path):
    np.save(tmp_path / "latents.npy", np.zeros((3, 4, 8, 8), np.float32))
    flags = (f"--model={micro.sd}", "--prompt=a", f"--init-latents={tmp_path}/latents.npy", f"--out={tmp_path}/images")
    refused("sample", *flags, parts=["latents.npy holds 3 rows for 1 image"])


@pytest.mark.parametrize(
    ("form", "out", "overwrite", "message"),
    [
        ("diffusers", "new", False, "--out=.*new: the name of a LoRA file has to end in .safetensors"),
        ("kohya", "new.bin", True, "--out=.*new.bin: the name of a LoRA file has to end in .safetensors"),
        ("kohya", "old.safetensors", False, "old.safetensors exists already"),
        ("merged", "old", False, "old exists already"),
        ("merged", "old", True, "old is not a pipeline's folder"),
    ],
)
def test_places_that_nothing_is_exported_to(tmp_path, form, out, overwrite, message):
    """They are refused before anything is read: there is no such run."""
    (tmp_path / "old.safetensors").write_text("kept")
    (tmp_path / "old").mkdir()
    with pytest.raises(UserError, match=message):
        export(tmp_path / "absent", form, tmp_path / out, overwrite=overwrite)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "old.safetensors"]
    assert (tmp_path / "old.safetensors").read_text() == "kept"


def test_a_prompt_that_is_no_text(tmp_path):
    """Bytes on the command line that are not UTF-8 become half characters; no file can hold them."""
    with pytest.raises(UserError, match=r"--prompt='a r\\udcfcd star': expected text that can be written as UTF-8"):
        sample(model="no/such/model", prompt="a r\udcfcd star", out=tmp_path)


def test_absurd_sizes(tmp_path, micro):
    """They are refused before anything is read (there is no such model) or allocated, in Python as well."""
    (tmp_path / "p.txt").write_text("a\nb\n")
    for how, message in (
        ({"prompt": "a", "width": 99968}, "--width=99968: expected a number from 1 to 8192"),
        ({"prompt": "a", "count": 0}, "--count=0: expected a number from 1 to 1000000"),
        (
            {"prompts": str(tmp_path / "p.txt"), "count": 600_000},
            "images of 2 prompts are 1200000: expected at most 1000000",
        ),
    ):
        with pytest.raises(UserError, match=message):
            sample(model="no/such/model", out=tmp_path / "out", **how)
    how = dict(height=8192, width=8192, count=5, batch=8)
    with pytest.raises(UserError, match="--batch=5 images of 8192x8192 pixels at a time .* expected 4 or fewer"):
        sample(model=str(micro.sd), prompt="a", out=tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("resume", [[], ["--auto-resume"]])
def test_a_second_run_in_the_folder_of_one_that_is_running(refused, micro_config, tmp_path, resume):
    with RunLock(tmp_path / "run"):
        parts = (f"{tmp_path}/run is in use by process", "stop it, or choose another --out")
        refused("train", f"--config={micro_config}", f"--out={tmp_path / 'run'}", *resume, parts=parts)


def test_runs_that_cannot_be_exported(tmp_path, micro_run):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for source, form, message in (
        (tmp_path / "run", "diffusers", "there is no checkpoint in it"),
        (micro_run / "checkpoints" / "9", "diffusers", "no checkpoint of step 9"),
        (micro_run / "lora.safetensors", "single-file", "name its base model with --model"),
    ):
        with pytest.raises(UserError, match=message):
            export(source, form, tmp_path / "out.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
