"""Whether a run may start or resume in a folder: every kind of folder, without a model."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import pytest

from spo_jax.core.config import setting
from spo_jax.core.errors import UserError
from spo_jax.methods.common.settings import LoRASettings
from spo_jax.methods.spo.settings import SPOSettings, SPOTrainSettings
from spo_jax.parallel.mesh import MeshSettings
from spo_jax.run.checkpoint import Checkpointer
from spo_jax.run.folder import FORMAT, Resume, check_format, open_folder, run_meta
from spo_jax.run.settings import LogSettings, RunSettings

SETTINGS = SPOTrainSettings()
PROMPTS = ["a red star", "a blue ring"]


def save(folder, meta, steps=(1,)):
    with Checkpointer(folder / "checkpoints") as checkpointer:
        for step in steps:
            checkpointer.save(step, {"params": {"x": jnp.ones(2)}}, meta)


@pytest.fixture
def held(tmp_path):
    """A folder with checkpoints of batches 1 and 2."""
    save(tmp_path, run_meta(SETTINGS, PROMPTS), (1, 2))
    return tmp_path


def opened(folder, resume=Resume(), settings=SETTINGS, prompts=PROMPTS):  # noqa: B008
    """Whether a run would be resumed."""
    with open_folder(folder, resume, settings, prompts) as found:
        return found.resuming


def test_a_bucket_is_refused_and_not_mistaken_for_a_folder():
    with pytest.raises(UserError, match="cannot write to gs:/bucket/run, a bucket: use a folder"):
        opened(Path("gs://bucket/run"))


def test_an_empty_folder_starts_a_run(tmp_path):
    assert opened(tmp_path) is False
    assert opened(tmp_path / "not" / "there", Resume(if_there=True)) is False
    with pytest.raises(UserError, match=f"--resume: no checkpoint in {tmp_path}/checkpoints; remove --resume to start"):
        opened(tmp_path, Resume(required=True))


def test_a_run_killed_before_its_first_checkpoint_is_started_again(tmp_path):
    (tmp_path / "checkpoints" / "1.orbax-checkpoint-tmp").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert opened(tmp_path) is False
    assert opened(tmp_path, Resume(if_there=True)) is False


def test_a_folder_is_opened_by_one_run_at_a_time(held):
    with open_folder(held, Resume(required=True), SETTINGS, PROMPTS):
        before = sorted(held.rglob("*"))
        with pytest.raises(UserError, match=f"^{held} is in use by process .*: wait for it, stop it, or"):
            opened(held, Resume(if_there=True))
        assert sorted(held.rglob("*")) == before


def test_a_run_without_a_checkpoint_that_is_still_going_is_waited_for(tmp_path):
    """Starting a new run there, which would be the advice otherwise, would be refused."""
    with open_folder(tmp_path, Resume(), SETTINGS, PROMPTS):
        with pytest.raises(UserError, match="is in use by process .*, which has saved no checkpoint yet: wait for it"):
            opened(tmp_path, Resume(required=True))


def test_a_run_that_was_refused_leaves_nothing_behind(tmp_path, held):
    before = sorted(tmp_path.rglob("*"))
    for folder, resume in ((tmp_path / "new", Resume(required=True)), (held, Resume())):
        with pytest.raises(UserError):
            opened(folder, resume)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_existing_run_is_resumed_or_refused(held):
    assert opened(held, Resume(required=True)) is True
    assert opened(held, Resume(if_there=True)) is True
    with pytest.raises(UserError, match="already holds a run: pass --resume .*, or choose another --out"):
        opened(held)


def test_other_settings_are_named_and_refused_unless_they_may_differ(held):
    other = dataclasses.replace(SETTINGS, seed=1, lora=LoRASettings(8), spo=SPOSettings(beta=5.0))
    changes = "lora.rank was 4, now 8; seed was 0, now 1; spo.beta was 10.0, now 5.0; .*--resume-with-changes"
    with pytest.raises(UserError, match=f"checkpoints/2 has other settings: {changes}"):
        opened(held, Resume(required=True), other)
    assert opened(held, Resume(required=True, changed=True), other) is True


def test_what_does_not_change_the_numbers_may_differ(held):
    chunks = dataclasses.replace(SETTINGS.spo, decode_chunk=1, train_chunk=1)
    log = LogSettings(eval_every=1, wandb="project")
    evaluation = dataclasses.replace(SETTINGS.eval, images=1, rewards="spm")
    other = dataclasses.replace(
        SETTINGS, mesh=MeshSettings(2), num_epochs=99, max_batches=7, spo=chunks, log=log, eval=evaluation
    )
    assert opened(held, Resume(required=True), other) is True


def test_a_checkpoint_older_than_a_field_had_its_default(tmp_path):
    older = run_meta(SETTINGS, PROMPTS)
    del older["settings"]["vae"], older["settings"]["spo"]["beta"]
    save(tmp_path, older)
    assert opened(tmp_path, Resume(required=True)) is True
    with pytest.raises(UserError, match="other settings: vae was '', now 'another'"):
        opened(tmp_path, Resume(required=True), dataclasses.replace(SETTINGS, vae="another"))


def test_settings_with_tuples_are_the_same_when_they_come_back_as_lists(tmp_path):
    """A checkpoint holds its settings as JSON."""

    @dataclasses.dataclass(frozen=True)
    class OwnSettings(RunSettings):
        sizes: tuple[int, ...] = setting((1, 2), "Sizes of something.")

    save(tmp_path, run_meta(OwnSettings(), PROMPTS))
    assert opened(tmp_path, Resume(required=True), OwnSettings()) is True
    with pytest.raises(UserError, match=r"other settings: sizes was \[1, 2\], now \[1, 3\]"):
        opened(tmp_path, Resume(required=True), OwnSettings(sizes=(1, 3)))


def test_other_prompts_under_the_same_name_are_refused(held):
    with pytest.raises(UserError, match="the prompts in toy:train are not the same"):
        opened(held, Resume(required=True), prompts=["a red star"])


def test_a_run_of_another_method_is_refused(held):
    settings = dataclasses.replace(SETTINGS, method="my.method")
    with pytest.raises(UserError, match="other settings: method was 'spo', now 'my.method'"):
        opened(held, Resume(required=True), settings)


# Formats


def test_a_checkpoint_s_meta_says_its_format():
    assert run_meta(SETTINGS, PROMPTS)["format"] == FORMAT == 2


@pytest.mark.parametrize("resume", [Resume(required=True), Resume(if_there=True), Resume(required=True, changed=True)])
@pytest.mark.parametrize("form", [None, 1, 3])
def test_a_checkpoint_of_another_format_is_refused(tmp_path, form, resume):
    """The first version wrote none; changed settings are no excuse."""
    meta = run_meta(SETTINGS, PROMPTS) | {"format": form}
    if form is None:
        del meta["format"]
    save(tmp_path, meta)
    message = (
        f"^{tmp_path}/checkpoints/1 was written by an earlier version of spo_jax and cannot be read by this one: .*"
    )
    with pytest.raises(UserError, match=message):
        opened(tmp_path, resume)
    with pytest.raises(UserError, match="^here was written by an earlier version"):
        check_format("here", meta)


def test_a_checkpoint_of_this_format_is_not_refused():
    check_format("here", run_meta(SETTINGS, PROMPTS))


# Damage


def test_damage_to_the_latest_does_not_hide_that_settings_differ(held):
    for file in (held / "checkpoints" / "2" / "meta").iterdir():
        file.write_bytes(b"")
    assert opened(held, Resume(required=True)) is True
    with pytest.raises(UserError, match="checkpoints/1 has other settings: seed was 0, now 1"):
        opened(held, Resume(required=True), dataclasses.replace(SETTINGS, seed=1))


def test_curves_that_cannot_be_read_are_found_at_once(held):
    (held / "metrics.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(UserError, match="metrics.jsonl: byte 0 is not UTF-8"):
        opened(held, Resume(required=True))
