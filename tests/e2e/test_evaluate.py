"""Models are compared by the command: every image and score is made once, from the same noise, and kept.

Images of the micro models mean nothing, so these tests are about which images there are and what they are bound to.
Resumed evaluations have the same images to the bit, because programs and their inputs are the same; only the rows of a
batch beside an image differ.
"""

import importlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from spo_jax.core.errors import UserError
from spo_jax.evaluate import evaluate
from spo_jax.models import open_pipeline
from spo_jax.models.lora import write_lora
from spo_jax.nn.lora import init_lora
from spo_jax.run.lock import RunLock
from spo_jax.sample import sample
from spo_jax.weights.lora import LoRA
from spo_jax.work.evaluate import drawing, lineup
from spo_jax.work.evaluate.store import Store
from tests.e2e.test_bad_input import assert_one_line
from tests.support.commands import ROOT, command_line

PROMPTS = ["a red star", "a blue moon", "an orange heart"]
BRIGHTNESS = "tests.support.brightness"


@pytest.fixture(scope="module", autouse=True)
def traced_once():
    """Keeps models and samplers between the evaluations of this process, whose programs take seconds to trace."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lineup, "open_pipeline", kept(lineup.open_pipeline))
        patched.setattr(drawing, "Sampler", kept(drawing.Sampler))
        yield


def kept(make):
    """Returns a function that makes one thing for equal arguments; a pipeline is equal to itself alone."""
    made = {}

    def make_once(first, **others):
        key = (first if isinstance(first, str) else id(first), repr(sorted(others.items())))
        if key not in made:
            made[key] = first, make(first, **others)  # with its argument, whose id stays taken
        return made[key][1]

    return make_once


@pytest.fixture(scope="module")
def how(micro):
    return {
        "model": str(micro.sd),
        "prompts": PROMPTS,
        "rewards": BRIGHTNESS,
        "steps": 2,
        "images_per_prompt": 2,
        "batch": 4,
    }


@pytest.fixture(scope="module")
def flags(micro, tmp_path_factory):
    """The same as flags of the command."""
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("\n".join(PROMPTS))
    return [
        f"--model={micro.sd}", f"--prompts={file}", f"--rewards={BRIGHTNESS}", "--steps=2", "--images-per-prompt=2",
        "--batch=4",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def compared(succeed, flags, micro, micro_run, tmp_path_factory):
    """The folder of an evaluation of the micro model, its LoRA at two strengths and a merged model."""
    out = tmp_path_factory.mktemp("compared") / "out"
    done = succeed(
        "evaluate", *flags, f"--lora=spo={micro_run}", "--strengths=0.5", f"--merged=same={micro.sd}", f"--out={out}"
    )
    assert "brightness: mean of the pixels" in done.stdout and f"wrote {out / 'index.html'}" in done.stdout
    return out


def images(folder, name):
    """The files of a contestant's images, by their names."""
    return {file.name: file for file in sorted((folder / "images" / name).glob("*/*.png"))}


def pixels(folder, name):
    return np.stack([np.asarray(Image.open(file)) for file in images(folder, name).values()])


@pytest.fixture
def written(monkeypatch):
    """The contestants of the images that are written, in order."""
    names = []
    write = Store.write_image

    def spy(self, name, *arguments):
        names.append(name)
        return write(self, name, *arguments)

    monkeypatch.setattr(Store, "write_image", spy)
    return names


def test_every_contestant_has_its_images_from_the_same_noise(compared, flags, tmp_path, micro, micro_run):
    expected = [f"{prompt:04d}-{image}.png" for prompt in range(3) for image in range(2)]
    drawn = {name: pixels(compared, name) for name in ("base", "spo", "spo@0.5", "same")}
    assert [list(images(compared, name)) for name in drawn] == [expected] * 4
    np.testing.assert_array_equal(drawn["same"], drawn["base"])
    assert len(np.unique(drawn["base"], axis=0)) == 6
    # Those of the LoRA are near, and nearer at half its strength.
    far, near = (np.abs(drawn[name].astype(int) - drawn["base"]).mean() for name in ("spo", "spo@0.5"))
    assert 0 < near < far
    first = drawn["spo"][::2]
    how = {"prompts": PROMPTS, "seed": 0, "steps": 2, "batch": 4, "out": tmp_path}
    alone = np.stack([np.asarray(Image.open(file)) for file in sample(model=str(micro.sd), lora=str(micro_run), **how)])
    assert np.abs(first.astype(int) - alone).max() <= 1  # the same noise as spo_jax.sample's; the strength is folded


def test_results_have_scores_signs_and_what_made_them(compared):
    result = json.loads((compared / "results.json").read_text())
    text = json.dumps(result)
    for word in ("brightness", "saturation", "out_of_range", "high_frequency", "diversity", "spo@0.5", "jaxlib"):
        assert word in text
    (recipe,) = (compared / "images" / "spo@0.5").glob("*/recipe.json")
    recipe = json.loads(recipe.read_text())
    assert recipe["strength"] == 0.5 and recipe["steps"] == 2 and recipe["guidance"] == 5.0
    for name in ("results.csv", "scores.csv", "results.md", "index.html"):
        assert (compared / name).stat().st_size > 100
    assert sorted(compared.rglob(".*")) == []  # neither a lock nor half a file


def test_scores_are_those_of_the_saved_images(how, tmp_path):
    evaluation = evaluate(tmp_path / "out", **how | {"images_per_prompt": 1, "weights": "2"})
    drawn = pixels(tmp_path / "out", "base").astype(np.float32) / 127.5 - 1
    scores = evaluation.scores["base"]
    np.testing.assert_allclose(scores["brightness"][:, 0], drawn.mean((1, 2, 3)), atol=1e-6)
    assert scores["total"].shape == (3, 1) and "diversity" not in scores
    assert evaluation.images["base"](2, 0) == list(images(tmp_path / "out", "base").values())[2]
    assert evaluation.protocol["name"] == "custom" and not evaluation.overridden


def test_what_is_there_is_not_made_again(how, micro_run, tmp_path, written, monkeypatch):
    """A contestant more draws its own images only, a reward more draws nothing, and fewer prompts need nothing."""
    from tests.support import brightness

    scored = []
    monkeypatch.setattr(brightness, "load", spied(brightness.load, scored))
    out = tmp_path / "out"
    first = evaluate(out, **how)
    assert written == ["base"] * 6 and scored == [6]
    kept = {file: file.stat().st_mtime_ns for file in out.glob("images/**/*")}
    evaluate(out, **how, loras=[f"spo={micro_run}:0.5"])
    assert written == ["base"] * 6 + ["spo"] * 6 and scored == [6, 6]
    again = evaluate(out, **how | {"rewards": f"{BRIGHTNESS},{BRIGHTNESS}:_two"}, limit=2)
    assert len(written) == 12 and scored == [6, 6, 4]
    np.testing.assert_array_equal(again.scores["base"]["brightness"], first.scores["base"]["brightness"][:2])
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


def test_a_reward_that_says_another_version_scores_again(how, tmp_path, written, monkeypatch):
    """Weights say what a reward is; one without weights, such as `http`, may say it with a text."""
    from tests.support import brightness

    load = brightness.load
    scored = []
    for version in ("1", "1", "2"):
        monkeypatch.setattr(brightness, "load", spied(load, scored, version=version))
        evaluate(tmp_path / "out", **how, limit=1)
    assert written == ["base"] * 2 and scored == [2, 2]


def test_a_measure_without_a_better_direction_is_no_reward(how, tmp_path, monkeypatch):
    from tests.support import brightness

    load = brightness.load
    measure = spied(load, [], signs=("brightness",))
    monkeypatch.setattr(brightness, "load", lambda source, context: (load if source else measure)(source, context))
    evaluation = evaluate(tmp_path / "out", **how | {"rewards": f"{BRIGHTNESS},{BRIGHTNESS}:_two"}, limit=1)
    assert evaluation.rewards == ["brightness_two"] and "brightness" in evaluation.signs
    row = next(line for line in (tmp_path / "out" / "results.csv").read_text().splitlines() if ",brightness," in line)
    assert ",brightness,sign," in row


def test_what_is_replaced_while_an_evaluation_draws_is_not_taken_for_what_was_there(
    how, micro_run, tmp_path, written, monkeypatch
):  # fmt: skip
    """Images and scores are bound to what was read at the beginning, and hours may pass until it is used."""
    from tests.support import brightness

    lora = shutil.copy(micro_run / "lora.safetensors", tmp_path)
    small = how | {"images_per_prompt": 1, "limit": 1, "loras": {"spo": lora}}
    begin = Store.begin

    def begin_and_replace(self):
        begin(self)
        with safe_open(lora, "numpy") as file:
            save_file({name: 2 * file.get_tensor(name) for name in file.keys()}, lora, file.metadata())  # noqa: SIM118

    with monkeypatch.context() as patched, pytest.raises(UserError, match="spo: files of its lora were replaced since"):
        patched.setattr(Store, "begin", begin_and_replace)
        evaluate(tmp_path / "out", **small)
    assert written == ["base"]
    monkeypatch.setattr(brightness, "load", changing(brightness.load, iter("12")))
    with pytest.raises(UserError, match="the reward tests.support.brightness was replaced since this evaluation began"):
        evaluate(tmp_path / "out", **small)
    assert written == ["base", "spo"] and not list(tmp_path.glob("out/scores/*/*"))


def changing(load, versions):
    """Wraps a reward's ``load``, so that each time it says another version."""

    def load_next(source, context):
        reward = load(source, context)
        reward.version = next(versions)
        return reward

    return load_next


def test_a_reward_of_ones_own_that_is_rewritten_scores_again(how, tmp_path, monkeypatch):
    from tests.support import brightness

    text = Path(brightness.__file__).read_text()
    module = tmp_path / "rewriting" / "mine.py"
    module.parent.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # it tells files of one size by whole seconds
    scores = []
    for mean in ("1 * images.mean((1, 2, 3))", "2 * images.mean((1, 2, 3))"):
        module.write_text(text.replace("images.mean((1, 2, 3))", mean))
        importlib.invalidate_caches()
        for name in ("rewriting.mine", "rewriting"):
            sys.modules.pop(name, None)
        evaluation = evaluate(tmp_path / "out", **how | {"rewards": "rewriting.mine", "limit": 1})
        scores.append(evaluation.scores["base"]["brightness"])
    np.testing.assert_allclose(scores[1], 2 * scores[0], rtol=1e-5)


def spied(load, scored, **attributes):
    """Wraps a reward's ``load``, so that the numbers of scored images are listed and the reward has more attributes."""

    def spy(source, context):
        reward = load(source, context)
        measure = reward.measure

        def measure_and_count(images, prompts):
            scored.append(len(images))
            return measure(images, prompts)

        reward.measure = measure_and_count
        vars(reward).update(attributes)
        return reward

    return spy


def test_other_settings_make_other_images_and_the_old_ones_stay(how, tmp_path, written, capsys):
    out = tmp_path / "out"
    small = how | {"images_per_prompt": 1}
    first = evaluate(out, **small, limit=1)
    kept = images(out, "base")["0000-0.png"].read_bytes()
    evaluate(out, **small | {"guidance": 3.0}, limit=1)
    assert len(list(out.glob("images/base/*/recipe.json"))) == 2 and written == ["base"] * 2
    assert "base is drawn anew, and its other images stay: guidance is 5.0 there and 3.0 now" in capsys.readouterr().err
    back = evaluate(out, **small, limit=1)
    assert len(written) == 2
    np.testing.assert_array_equal(back.scores["base"]["brightness"], first.scores["base"]["brightness"])
    assert kept in [file.read_bytes() for file in out.glob("images/base/*/0000-0.png")]


def test_an_evaluation_that_was_cut_off_goes_on_with_the_same_images(how, compared, tmp_path, monkeypatch):
    """It ends in the middle of a batch; one image of an earlier batch is lost as well."""
    out = tmp_path / "out"
    write = Store.write_image

    def cut_off(self, name, recipe, prompt, image, *rest):
        if (prompt, image) == (2, 1):
            raise KeyboardInterrupt
        return write(self, name, recipe, prompt, image, *rest)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Store, "write_image", cut_off)
        evaluate(out, **how)
    assert len(images(out, "base")) == 5 and not (out / "results.json").exists()
    images(out, "base")["0001-0.png"].unlink()
    evaluate(out, **how)
    np.testing.assert_array_equal(pixels(out, "base"), pixels(compared, "base"))


def test_images_are_written_while_the_next_ones_are_drawn(how, tmp_path, monkeypatch):
    from spo_jax.models.sampler import Sampler

    draw, write = Sampler._draw_rows, Store.write_image
    drawing_second = threading.Event()
    numbers = itertools.count(1)

    def draw_and_tell(self, *arguments):
        if next(numbers) == 2:
            drawing_second.set()
        return draw(self, *arguments)

    def write_after(self, *arguments):
        assert drawing_second.wait(300)  # a program is compiled before
        return write(self, *arguments)

    monkeypatch.setattr(Sampler, "_draw_rows", draw_and_tell)
    monkeypatch.setattr(Store, "write_image", write_after)
    evaluate(tmp_path / "out", **how | {"prompts": [*PROMPTS, "a green cross", "a pink ring"]})  # 10 images, at most 8
    assert len(images(tmp_path / "out", "base")) == 10 and next(numbers) == 3


@pytest.mark.slow
def test_a_killed_evaluation_goes_on(succeed, flags, micro_run, compared, tmp_path):
    """SIGKILL leaves neither a lock that holds others up nor half a file that is taken for a whole one."""
    out = tmp_path / "out"
    line = command_line("evaluate", *flags, f"--lora=spo={micro_run}", "--batch=1", f"--out={out}")
    killed = subprocess.Popen(line, cwd=ROOT, env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"}, stderr=subprocess.DEVNULL)
    while len(list(out.glob("images/*/*/*.png"))) < 4:
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    there = {file: file.stat().st_mtime_ns for file in out.glob("images/*/*/0*.png")}
    assert 4 <= len(there) < 12
    succeed("evaluate", *flags, f"--lora=spo={micro_run}", f"--out={out}")
    assert {file: file.stat().st_mtime_ns for file in there} == there
    assert np.abs(pixels(out, "spo").astype(int) - pixels(compared, "spo")).max() <= 1  # batches of another size


def test_images_from_elsewhere_are_scored_only(how, compared, tmp_path, written):
    """They may have any size, and each its own."""
    (folder,) = (compared / "images" / "spo").iterdir()
    folder = shutil.copytree(folder, tmp_path / "images")
    with Image.open(folder / "0001-0.png") as image:
        image.resize((32, 48), Image.Resampling.NEAREST).save(folder / "0001-0.png")  # 16 x 16, doubled and tripled
    evaluation = evaluate(tmp_path / "out", **how, images={"mj": folder})
    assert set(written) == {"base"}
    drawn = pixels(compared, "spo").astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(evaluation.scores["mj"]["brightness"].reshape(-1), drawn.mean((1, 2, 3)), atol=1e-6)
    assert "out_of_range" not in evaluation.scores["mj"]  # 8 bits do not show it
    assert np.isfinite(evaluation.scores["base"]["out_of_range"]).all()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert not any("Not complete" in remark for remark in results["remarks"])
    assert any("mj come from elsewhere" in remark for remark in results["remarks"])
    assert [each["guidance"] for each in results["contestants"]] == [5.0, None]
    assert np.isfinite(evaluation.scores["mj"]["saturation"]).all()


def test_guidance_of_a_protocol_may_differ_between_contestants(how, micro, tmp_path):
    protocol = {
        "about": "A protocol of a test.", "source": "here", "prompts": "toy:held_out", "steps": 2, "guidance": 4.0,
        "guidance_of": {"sd": {"same": 2.0}}, "images_per_prompt": 1,
    }  # fmt: skip
    (tmp_path / "mine.json").write_text(json.dumps(protocol))
    given = {"model": how["model"], "rewards": BRIGHTNESS, "protocol": tmp_path / "mine.json", "batch": 4}
    evaluation = evaluate(tmp_path / "out", **given, steps=2, limit=2, merged={"same": str(micro.sd)})
    assert [contestant.guidance for contestant in evaluation.contestants] == [4.0, 2.0]
    assert evaluation.overridden == ["count"]
    assert (pixels(tmp_path / "out", "base") != pixels(tmp_path / "out", "same")).any()
    other = evaluate(tmp_path / "out", **given, guidance=2.0, limit=2)
    np.testing.assert_array_equal(other.scores["base"]["brightness"], evaluation.scores["same"]["brightness"])
    assert other.overridden == ["guidance", "count"]


# Bad input


@pytest.fixture
def lora_of_sdxl(micro, tmp_path):
    tree = init_lora(jax.random.key(0), open_pipeline(micro.sdxl, abstract=True).params["unet"], 2)
    write_lora(tmp_path / "sdxl.safetensors", LoRA(jax.tree.map(np.asarray, tree), 2, 2))
    return tmp_path / "sdxl.safetensors"


def test_contestants_of_another_family(how, micro, lora_of_sdxl, tmp_path):
    for changed, part in (
        ({"loras": [f"a={lora_of_sdxl}"]}, "^--lora a: .*sdxl.safetensors"),
        (
            {"merged": [f"a={micro.sdxl}"]},
            r"^--merged a: .* is another kind of model than .*\(kind sdxl, expected sd\)",
        ),
        ({"rewards": f"spm:{micro.spm_sdxl}"}, "spm_sdxl"),
        ({"size": 33}, "^--size=33: expected a multiple of"),
    ):
        with pytest.raises(UserError, match=part):
            evaluate(tmp_path / "out", **how | changed)
        assert not (tmp_path / "out").exists()


def test_folders_that_are_no_place_for_it(command, flags, compared, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("a green cross")
    process = command("evaluate", *flags, f"--prompts={other}", f"--out={compared}")
    assert_one_line(process, [f"--out={compared} holds an evaluation of other prompts (3 prompts; prompt 0 is 'a red"])
    (tmp_path / "out").mkdir()
    with RunLock(tmp_path / "out"):
        process = command("evaluate", *flags, f"--out={tmp_path / 'out'}")
        assert_one_line(process, [f"{tmp_path / 'out'} is in use by process {os.getpid()} on host"])


def test_images_that_are_not_finite(how, tmp_path, monkeypatch):
    """The others of the batch are kept."""
    from spo_jax.models.sampler import Sampler

    draw = Sampler._draw_rows

    def broken(self, *arguments):
        images = draw(self, *arguments).copy()
        images[1, 0, 0, 0] = np.nan
        return images

    monkeypatch.setattr(Sampler, "_draw_rows", broken)
    with pytest.raises(
        UserError, match=r"contestant base: image 1 of prompt 0 \('a red star'\) has values that are not"
    ):
        evaluate(tmp_path / "out", **how)
    written = list(images(tmp_path / "out", "base"))
    assert "0000-0.png" in written and "0001-0.png" in written and "0000-1.png" not in written


def test_a_damaged_image_and_a_score_that_is_not_finite(how, tmp_path, monkeypatch):
    from tests.support import brightness

    small = how | {"images_per_prompt": 1}
    evaluate(tmp_path / "out", **small)
    file = images(tmp_path / "out", "base")["0001-0.png"]
    whole = file.read_bytes()
    file.write_bytes(whole[:-30])
    with pytest.raises(
        UserError, match="0001-0.png cannot be decoded .*: replace it, or delete it if this command drew"
    ):
        evaluate(tmp_path / "out", **small)
    file.write_bytes(whole)
    monkeypatch.setattr(brightness, "load", spied_nan(brightness.load))
    with pytest.raises(UserError, match=r"brightness_x of .*0001-0.png \('a blue moon'\) is not finite"):
        evaluate(tmp_path / "out", **small | {"rewards": f"{BRIGHTNESS}:_x"})


def spied_nan(load):
    def spy(source, context):
        reward = load(source, context)
        reward.measure = lambda images, prompts: {f"brightness{source}": np.array([0.0, np.nan, 0.0])}
        return reward

    return spy


def test_two_rewards_with_one_score(how, tmp_path, monkeypatch):
    from tests.support import brightness

    monkeypatch.setattr(brightness, "load", lambda source, context, load=brightness.load: load("", context))
    with pytest.raises(
        UserError,
        match="--rewards: tests.support.brightness and tests.support.brightness:b both give a score brightness",
    ):
        evaluate(tmp_path / "out", **how | {"rewards": f"{BRIGHTNESS},{BRIGHTNESS}:b"})
    assert not (tmp_path / "out").exists()
