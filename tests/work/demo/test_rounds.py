"""The steps from votes to a LoRA: their commands, and how far they have come, by what is on disk alone."""

import dataclasses
import json
import shlex

import pytest

from spo_jax.run.lock import RunLock
from spo_jax.work.demo.rounds import ENOUGH_VOTES, Round, State, latest
from tests.support.commands import ROOT
from tests.work.demo.fakes import fake_page

WAITING, READY, RUNNING, ELSEWHERE, STOPPED, STOPPED_EARLY, FAILED, DONE = State


@pytest.fixture
def page(tmp_path):
    return fake_page(tmp_path)


def finish(step):
    """Leaves what a step that is done has left."""
    for path in step.results:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")


def test_states_follow_from_the_disk(page):
    round_ = Round(page, 1)
    prepare, judge, tune = round_.steps()

    def states(running="", votes=ENOUGH_VOTES):
        return Round(page, 1).states(running, votes)

    assert states(votes=ENOUGH_VOTES - 1) == [WAITING, WAITING, WAITING]
    assert states() == [READY, WAITING, WAITING]
    assert states(running=prepare.job) == [RUNNING, WAITING, WAITING]
    assert states(running=Round(page, 2).steps()[0].job) == [READY, WAITING, WAITING]
    prepare.output.parent.mkdir(parents=True)
    prepare.output.write_text("error: …")
    assert states() == [FAILED, WAITING, WAITING]
    finish(prepare)
    assert states() == [DONE, READY, WAITING]
    judge.output.write_text("02:51:19 reading toy …\ninterrupted\n")
    assert states() == [DONE, STOPPED_EARLY, WAITING]
    (round_.judge / "checkpoints" / "40").mkdir(parents=True)
    assert states() == [DONE, STOPPED, WAITING]
    with RunLock(round_.judge):  # as a run holds it that a page started which was killed
        assert states() == [DONE, ELSEWHERE, WAITING]
    assert states() == [DONE, STOPPED, WAITING]
    finish(judge)
    finish(tune)
    assert states(votes=0) == [DONE, DONE, DONE]
    assert page.lora_file(round_.lora).parent == round_.tuned
    assert Round(page, 2).states("", ENOUGH_VOTES) == [READY, WAITING, WAITING]


def test_a_judge_says_whether_it_has_learned(page):
    judge = Round(page, 1).steps()[1]
    assert judge.learned is None
    finish(judge)
    assert judge.learned is None  # its summary is empty
    for change, anything in ((0.25, True), (0.0, False), (-0.25, False)):
        scores = {"pair accuracy/t0000": {"before": 0.5, "after": 0.5 + change, "change": change, "change_se": 0.1}}
        judge.results[0].write_text(json.dumps({"verdict": "A sentence.", "scores": scores}))
        told = judge.learned
        assert told.anything is anything
        assert told.verdict.startswith(f"A sentence. On average over the timesteps, {0.5 + change:.0%} of the votes")
    judge.results[0].write_text('{"verdict": "A sentence.", "scores": [1]}')
    assert judge.learned is None


def test_the_latest_round_is_found(page):
    assert latest(page) == 1
    for name in ("data1", "data3", "data12", "data0", "dataset", "data5x"):
        (page.out / name).mkdir(parents=True)
    assert latest(page) == 12


def test_commands_can_be_copied(page, tmp_path):
    """A folder with a blank in its name; what is copied is what the button runs."""
    page = dataclasses.replace(page, out=tmp_path / "my votes")
    for step in Round(page, 3).steps():
        assert shlex.split(step.command.replace("\\\n", "")) == ["python", "-m", *step.arguments]
    prepare, judge, tune = (step.arguments for step in Round(page, 3).steps())
    assert f"--source={tmp_path}/my votes/preferences" in prepare and f"--data-dir={tmp_path}/my votes/data3" in prepare
    assert f"--config.data_dir={tmp_path}/my votes/data3" in judge and f"--out={page.runs}/taste3_judge" in judge
    assert f"--config.spm.model={page.runs}/taste3_judge/spm" in tune and f"--out={page.runs}/taste3" in tune


def test_another_model_is_named_in_the_commands(page):
    fields = {"model": "owner/model", "revision": "v2", "base": "", "vae": ""}
    page = dataclasses.replace(page, model="owner/model", model_fields=fields, prompts_file="mine.txt")
    _, judge, tune = (step.arguments for step in Round(page, 1).steps())
    for arguments in (judge, tune):
        assert {"--config.model=owner/model", "--config.revision=v2"} <= set(arguments)
        assert not any(argument.startswith(("--config.base", "--config.vae")) for argument in arguments)
    assert "--config.prompts=mine.txt" in tune


@pytest.mark.parametrize("model", ["toy", "another"])
def test_the_configs_are_there(page, model):
    for step in Round(dataclasses.replace(page, model=model), 1).steps()[1:]:
        (name,) = [argument.removeprefix("--config=") for argument in step.arguments if "--config=" in argument]
        assert (ROOT / "configs" / f"{name}.py").is_file()
