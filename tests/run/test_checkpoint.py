"""Checkpoints: exact, atomic, strict about what they restore, and never silently replaced by a fresh start."""

import errno
import gc
import itertools
import logging
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from spo_jax.core.errors import UserError
from spo_jax.run.checkpoint import Checkpointer
from spo_jax.run.checkpoint_reader import CheckpointReader
from spo_jax.run.file_list import FILE_LIST
from spo_jax.run.folder import restore, state_items

META = {"epoch": 2, "config": {"spo": {"beta": 10.0}}, "prompts": ["a red star"]}


def make_items(seed=0, rank=4):
    """The items of a run's state: its weights, and the rest, which holds the optimizer's state and a typed key."""
    lora = {"to_q": {"lora_A": jax.random.normal(jax.random.key(seed), (64, rank)), "lora_B": jnp.ones((rank, 64))}}
    opt_state = optax.adamw(1e-3).init(lora)
    return {"params": lora, "rest": {"opt_state": opt_state, "key": jax.random.key(seed + 7), "step": jnp.int32(seed)}}


def assert_equal_trees(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def saved(tmp_path):
    """Three checkpoints, steps 1 to 3 with items of seeds 1 to 3."""
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    for step in (1, 2, 3):
        checkpointer.save(step, make_items(step), META | {"epoch": step})
    checkpointer.close()
    return tmp_path / "checkpoints"


def test_items_and_meta_come_back_exactly(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    items = make_items()
    checkpointer = Checkpointer("relative/folder")
    checkpointer.save(5, items, META)
    checkpointer.close()
    like = jax.eval_shape(lambda: items)
    step, restored, meta = Checkpointer("relative/folder").restore_latest(like)
    assert (step, meta) == (5, META)
    assert_equal_trees(restored, items)


def test_the_state_of_a_run_comes_back_as_what_it_was(tmp_path):
    """A NamedTuple, whose ``params`` are an item of their own."""

    class State(NamedTuple):
        params: dict
        opt_state: tuple
        step: jax.Array

    items = make_items(1)
    state = State(items["params"], items["rest"]["opt_state"], jnp.int32(3))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state_items(state), META)
        checkpointer.wait()
        done, restored, _ = restore(checkpointer, jax.eval_shape(lambda: state), total=1)
        assert done == 1 and type(restored) is State
        assert_equal_trees(restored, state)
        checkpointer.save(2, state_items(state), META)
        checkpointer.wait()
        with pytest.raises(UserError, match=f"--resume: {tmp_path}/2 is beyond the requested 1 batch$"):
            restore(checkpointer, state, total=1)


# One item


def test_one_item_is_read_by_the_shapes_that_were_saved(saved):
    """Exporting reads the weights and needs no model to know their shapes."""
    checkpointer = CheckpointReader(saved)
    for step in (1, 3):
        assert_equal_trees(checkpointer.read_item(step, "params"), make_items(step)["params"])


def test_one_item_may_hold_any_shape_and_dtype(tmp_path):
    item = {"scalar": jnp.float32(1.5), "half": {"x": jnp.arange(3, dtype=jnp.bfloat16)}, "count": jnp.int32(2)}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"params": item}, {})
        checkpointer.wait()
        assert_equal_trees(checkpointer.read_item(1, "params"), item)


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_one_item_may_hold_typed_keys(tmp_path, kind):
    item = {"key": jax.random.key(3, impl=kind), "keys": {"split": jax.random.split(jax.random.key(4, impl=kind), 2)}}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"rest": item}, {})
        checkpointer.wait()
        assert_equal_trees(checkpointer.read_item(1, "rest"), item)


def test_damage_to_another_item_is_damage_too(saved):
    """The files are checked together: a checkpoint is whole or it is not used."""
    (saved / "3" / "rest" / "_METADATA").unlink()
    with pytest.raises(UserError, match="checkpoint .*/3 is damaged: rest/_METADATA is missing"):
        CheckpointReader(saved).read_item(3, "params")


def test_an_item_that_is_not_there_is_named(saved):
    checkpointer = CheckpointReader(saved)
    with pytest.raises(UserError, match="checkpoint .*/3 has no item weights, only params, rest"):
        checkpointer.read_item(3, "weights")
    with pytest.raises(UserError, match="no checkpoint of step 7"):
        checkpointer.read_item(7, "params")


def test_reading_changes_nothing(saved):
    """What a run is writing at the moment is left alone."""
    (saved / "4.orbax-checkpoint-tmp").mkdir()
    before = sorted(saved.rglob("*"))
    checkpointer = CheckpointReader(saved)
    assert checkpointer.latest_step() == 3
    checkpointer.read_item(3, "params")
    assert checkpointer.read_latest_meta() == (3, META | {"epoch": 3})
    assert sorted(saved.rglob("*")) == before


# Saving


def test_numpy_scalars_come_back(tmp_path):
    """orbax by itself writes them and then cannot read them."""
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, {"x": {"a": np.float32(1.5), "b": np.arange(3, dtype=np.int32)}}, {})
    checkpointer.wait()
    items, _ = checkpointer.restore(1, {"x": {"a": np.float32(0), "b": np.zeros(3, np.int32)}})
    assert items["x"]["a"] == 1.5 and items["x"]["b"].tolist() == [0, 1, 2]


def test_python_numbers_in_an_item_are_refused(tmp_path):
    with pytest.raises(TypeError, match="meta"):
        Checkpointer(tmp_path).save(1, {"rest": {"step": 3}}, {})


def test_a_save_is_a_snapshot(tmp_path):
    """The loop continues and donates its buffers while the files are being written."""
    checkpointer = Checkpointer(tmp_path)
    update = jax.jit(lambda x: x + 1, donate_argnums=0)
    value = jnp.zeros(1_000_000)
    for step in range(3):
        checkpointer.save(step, {"params": {"x": value}}, {})
        for _ in range(5):
            value = update(value)
    checkpointer.wait()
    like = {"params": {"x": jax.ShapeDtypeStruct((1_000_000,), jnp.float32)}}
    for step in range(3):
        assert np.unique(checkpointer.restore(step, like)[0]["params"]["x"]).tolist() == [5.0 * step]


def test_last_n_and_every_mth_are_kept(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=2, keep_every=4)
    for step in range(1, 12):
        checkpointer.save(step, {"params": {"x": jnp.zeros(2)}}, {})
    checkpointer.close()
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [4, 8, 10, 11]


def test_a_step_is_saved_once_and_never_before_a_later_one(saved):
    checkpointer = Checkpointer(saved)
    checkpointer.save(3, make_items(9), {})
    _, meta = checkpointer.restore(3, make_items())
    assert meta["epoch"] == 3
    with pytest.raises(UserError, match="holds step 3"):
        checkpointer.save(2, make_items(9), {})


def test_a_run_that_may_not_write_any_more_saves_nothing(tmp_path):
    allowed = [True]

    def guard():
        if not allowed[0]:
            raise UserError("taken over")

    with Checkpointer(tmp_path, guard=guard) as checkpointer:
        checkpointer.save(1, few_items(), {})
        allowed[0] = False
        with pytest.raises(UserError, match="taken over"):
            checkpointer.save(2, few_items(), {})
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_restores_onto_other_devices(tmp_path):
    """Saved from 8 devices, restored onto 2, and onto none in particular."""
    spread = NamedSharding(Mesh(np.array(jax.devices()), "data"), P("data"))
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, {"params": {"x": jax.device_put(jnp.arange(16.0), spread)}}, {})
    checkpointer.wait()
    fewer = NamedSharding(Mesh(np.array(jax.devices()[:2]), "data"), P("data"))
    for like in (jax.device_put(jnp.zeros(16), fewer), jax.ShapeDtypeStruct((16,), jnp.float32)):
        items, _ = checkpointer.restore(1, {"params": {"x": like}})
        found = items["params"]["x"]
        assert found.tolist() == list(range(16))
        assert len(found.sharding.device_set) == (2 if like.sharding else 1)


def test_another_tree_is_refused_and_its_leaves_named(saved):
    message = r"params/to_q/lora_A is float32\[64,4\] there and float32\[64,8\] here.*3 more"
    with pytest.raises(UserError, match=message):
        Checkpointer(saved).restore_latest(make_items(rank=8))
    like = make_items()
    like["params"]["to_k"] = like["params"].pop("to_q")
    with pytest.raises(UserError, match="params/to_k/lora_A is absent there"):
        Checkpointer(saved).restore_latest(like)
    halved = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, make_items())
    with pytest.raises(UserError, match="bfloat16"):
        Checkpointer(saved).restore(3, halved)
    assert sorted(path.name for path in saved.iterdir()) == ["1", "2", "3"]  # none was mistaken for a damaged one


def test_no_checkpoint_is_an_error(tmp_path, saved):
    empty = Checkpointer(tmp_path / "empty")
    assert empty.latest_step() is None
    with pytest.raises(UserError, match="no checkpoint in"):
        empty.restore_latest(make_items())
    with pytest.raises(UserError, match="no checkpoint of step 7"):
        Checkpointer(saved).restore(7, make_items())


def few_items(seed=0):
    """A single item, so that there are few files to damage; its key has a file of its own."""
    return {"rest": {"x": jax.random.normal(jax.random.key(seed), (64,)), "key": jax.random.key(seed + 7)}}


@pytest.fixture
def few(tmp_path):
    """Checkpoints 2 and 3 of `few_items`."""
    with Checkpointer(tmp_path / "few") as checkpointer:
        for step in (2, 3):
            checkpointer.save(step, few_items(step), META | {"epoch": step})
    return tmp_path / "few"


def damaged_copies(folder, step, target):
    """Copies of ``folder`` in which one file of ``step`` is missing, empty or half as long; gives the file's name."""
    files = [path.relative_to(folder) for path in (folder / str(step)).rglob("*") if path.is_file()]
    for name in sorted(files):
        for share in (None, 0.0, 0.5):
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(folder, target)
            if share is None:
                (target / name).unlink()
            else:
                content = (target / name).read_bytes()
                (target / name).write_bytes(content[: int(share * len(content))])
            yield str(name)


def test_any_missing_or_truncated_file_is_named_and_the_one_before_is_used(few, tmp_path, caplog, capfd):
    """Every file of the latest checkpoint in turn."""
    expected = {step: few_items(step) for step in (2, 3)}
    tried = set()
    for name in damaged_copies(few, 3, tmp_path / "damaged"):
        tried.add(name)
        caplog.clear()
        checkpointer = Checkpointer(tmp_path / "damaged")
        with caplog.at_level(logging.WARNING):
            step, items, meta = checkpointer.restore_latest(expected[2])
        if name == f"3/{FILE_LIST}" and step == 3:  # without the list orbax's own checks remain
            assert_equal_trees(items, expected[3])
            continue
        assert (step, meta["epoch"], checkpointer.latest_step()) == (2, 2, 2)
        assert_equal_trees(items, expected[2])
        assert f"{tmp_path}/damaged/3 is damaged" in caplog.text and name.removeprefix("3/") in caplog.text
    assert len(tried) > 10
    assert "Traceback" not in capfd.readouterr().err


def restore_with_each_damage(folder, target):
    """Prints the steps that were restored; fails if one came back with other numbers."""
    expected = {step: few_items(step) for step in (2, 3)}
    steps = set()
    for _ in damaged_copies(Path(folder), 3, Path(target)):
        step, items, _ = Checkpointer(target).restore_latest(expected[2])
        assert_equal_trees(items, expected[step])
        steps.add(step)
    print(sorted(steps))


def test_damage_without_a_list_of_files_is_found_too(few, tmp_path):
    """A run killed before the list was written: no single file may be lost without other numbers being noticed.

    In a process of its own, because orbax's readers fail with pages of output until the interpreter ends.
    """
    (few / "3" / FILE_LIST).unlink()
    code = f"import test_checkpoint as t; t.restore_with_each_damage({str(few)!r}, {str(tmp_path / 'damaged')!r})"
    here = Path(__file__).parent
    child = subprocess.run(
        [sys.executable, "-c", code],
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(here.parents[1])},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    assert child.stdout == "[2, 3]\n"  # some files are not needed to restore


def test_a_damaged_step_is_set_aside_and_can_be_saved_again(saved):
    (saved / "3" / "params" / "_METADATA").unlink()
    checkpointer = Checkpointer(saved)
    with pytest.raises(UserError, match="params/_METADATA is missing"):
        checkpointer.restore(3, make_items())
    assert checkpointer.restore_latest(make_items())[0] == 2
    assert (saved / "3.damaged").is_dir()
    checkpointer.save(3, make_items(33), META)
    checkpointer.close()
    step, items, _ = Checkpointer(saved).restore_latest(make_items())
    assert step == 3
    assert_equal_trees(items, make_items(33))


# As orbax passes them on: the operating system's, Python's, and tensorstore's for files and for buckets.
_HINDRANCES = [
    (OSError(errno.EMFILE, "no more"), "Too many open files"),
    (OSError(errno.EACCES, "no"), "Permission denied"),
    (OSError(errno.ESTALE, "gone"), "Stale file handle"),
    (MemoryError(), "not enough memory on this machine"),
    (ValueError("UNKNOWN: Error reading \"x\" [source locations='…'] [os_error_code='5']"), "Input/output error"),
    (ValueError('UNAVAILABLE: Error reading "gs://bucket/3/rest/d/94e7"'), "unavailable"),
]


def test_what_cannot_be_read_for_now_is_not_damaged(few, monkeypatch):
    """A run would go back to an older checkpoint, and rename the good one, for a limit that another program reached."""
    before = sorted(few.rglob("*"))
    checkpointer = Checkpointer(few)
    reads = [
        lambda: checkpointer.restore_latest(few_items()),
        lambda: checkpointer.read_meta(3),
        lambda: checkpointer.read_item(3, "rest"),
        checkpointer.read_latest_meta,  # or a run that resumes would compare its settings with those of an older one
    ]
    for (error, reason), wrapped in itertools.product(_HINDRANCES, (False, True)):

        def fail(*_, error=error, wrapped=wrapped, **__):
            if wrapped:
                raise ValueError("orbax has failed") from error
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(checkpointer._reader, "restore", fail)
            for read in reads:
                with pytest.raises(UserError, match=f"^cannot read checkpoint {few}/3: {reason}; nothing was changed"):
                    read()
    assert sorted(few.rglob("*")) == before
    assert checkpointer.restore_latest(few_items())[0] == 3


def test_files_that_may_not_be_looked_at_are_not_damaged(few, monkeypatch):
    """The check of names and sizes comes first, and has no orbax around it."""

    def refuse(_):
        raise PermissionError(errno.EACCES, "no", "3/rest")

    monkeypatch.setattr("spo_jax.run.file_list._file_sizes", refuse)
    with pytest.raises(UserError, match=f"cannot read checkpoint {few}/3: Permission denied; nothing was changed"):
        Checkpointer(few).restore_latest(few_items())
    assert sorted(path.name for path in few.iterdir()) == ["2", "3"]


def test_a_folder_of_checkpoints_that_cannot_be_listed_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match="cannot read .*checkpoints: Not a directory"):
        CheckpointReader(tmp_path / "checkpoints").latest_step()


def test_none_usable_is_an_error_not_a_fresh_start(saved):
    for step in (1, 2, 3):
        (saved / str(step) / "rest" / "manifest.ocdbt").unlink()
    with pytest.raises(UserError, match="every checkpoint.*3, 2, 1"):
        Checkpointer(saved).restore_latest(make_items())
    assert sorted(path.name for path in saved.iterdir()) == ["1", "2", "3"]


def test_a_half_written_checkpoint_is_not_there(saved):
    """A killed run leaves orbax's temporary folder."""
    shutil.copytree(saved / "3", saved / "4.orbax-checkpoint-tmp")
    checkpointer = Checkpointer(saved)
    assert checkpointer.restore_latest(make_items())[0] == 3
    checkpointer.save(4, make_items(4), META)
    checkpointer.close()
    assert sorted(path.name for path in saved.iterdir()) == ["2", "3", "4"]


def test_a_folder_that_cannot_be_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot use .*file/checkpoints"):
        Checkpointer(tmp_path / "file" / "checkpoints")


def fill_the_disk(folder, limit):
    """Saves while the operating system refuses files beyond ``limit`` bytes, as a full disk does.

    It has to be reported once, although many files could not be written: orbax's threads report nothing more, also when
    the checkpointer is closed.
    """
    big = {"params": {"x": jax.random.normal(jax.random.key(0), (1000, 1000)), "more": [jnp.ones(3)] * 40}}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(UserError, match="^cannot write a checkpoint in .*: File too large$"):
        with Checkpointer(folder) as checkpointer:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
            try:
                checkpointer.save(4, big, {})
                checkpointer.wait()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("limit", [300, 100_000])  # bytes: of the first array on, or in the middle of the large one
def test_a_full_disk_is_a_user_error_and_leaves_the_older_ones(saved, limit, capfd):
    fill_the_disk(saved, limit)
    gc.collect()  # futures whose errors nobody has retrieved report them when they are collected
    assert capfd.readouterr().err == ""
    step, items, _ = Checkpointer(saved).restore_latest(make_items())
    assert step == 3
    assert_equal_trees(items, make_items(3))


def test_a_disk_without_any_room_is_reported_in_the_same_words(saved, capfd):
    """Closing fails as well, with the first error that orbax has met."""
    fill_the_disk(saved, 30)
    gc.collect()
    assert capfd.readouterr().err == ""
