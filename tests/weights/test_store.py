"""The right files are read, each of them whole or not at all, and files are written with the values that were given."""

import json
import logging
import resource
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.numpy import load_file, save_file
from transformers import CLIPTextModel

from spo_jax.core.errors import UserError
from spo_jax.weights import store
from spo_jax.weights.kinds import describe
from tests.support import fuzzing


def assert_same(state: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Checks that names, types, shapes and bytes are the same."""
    assert state.keys() == expected.keys()
    for name, array in expected.items():
        assert state[name].dtype == array.dtype and state[name].shape == array.shape, name
        assert state[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_reads_what_diffusers_wrote(
    tmp_path: Path, unet: Any, torch_arrays: Any, variant: str | None, shards: bool, suffix: str
) -> None:
    size = {"max_shard_size": "200KB"} if shards else {}
    unet.save_pretrained(tmp_path, variant=variant, safe_serialization=suffix == "safetensors", **size)
    assert (len(list(tmp_path.glob(f"*.{suffix}"))) > 1) == shards
    assert_same(store.read_state(tmp_path, "diffusers", variant), torch_arrays(unet))
    assert_same(store.read_state(tmp_path, "diffusers"), torch_arrays(unet))


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shards", [False, True])
def test_reads_what_transformers_wrote(
    tmp_path: Path, text_encoder: Any, torch_arrays: Any, variant: str | None, shards: bool
) -> None:
    size = {"max_shard_size": "20KB"} if shards else {}
    text_encoder.save_pretrained(tmp_path, variant=variant, **size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == shards
    assert_same(store.read_state(tmp_path, "transformers", variant), torch_arrays(text_encoder))


def test_full_precision_is_preferred_and_falling_back_to_fp16_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full = {"a": np.ones(3, np.float32)}
    half = {"a": np.ones(3, np.float16)}
    store.write_state(tmp_path / "model.fp16.safetensors", half)
    store.write_state(tmp_path / "model.safetensors", full)
    assert_same(store.read_state(tmp_path, "transformers"), full)
    assert_same(store.read_state(tmp_path, "transformers", "fp16"), half)
    assert not caplog.records
    (tmp_path / "model.safetensors").unlink()
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert_same(store.read_state(tmp_path, "transformers"), half)
    assert "reading its fp16 variant: model.fp16.safetensors" in caplog.text


def test_a_full_bin_is_preferred_to_an_fp16_safetensors(tmp_path: Path) -> None:
    names = ["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin", "config.json"]
    assert store.choose_weights(names, "diffusers") == ("diffusion_pytorch_model.bin", None)
    assert store.choose_weights(names, "diffusers", "fp16") == (names[0], "fp16")
    assert store.choose_weights(names, "diffusers", "ema") is None
    assert store.choose_weights(names, "transformers") is None


def test_missing_folder_and_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such folder: .*unet: expected a folder with diffusion_pytorch_model.safe"):
        store.read_state(tmp_path / "unet", "diffusers")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds no weights: expected model.safetensors, found config.json$"):
        store.read_state(tmp_path, "transformers")
    with pytest.raises(UserError, match=r"expected model.fp16.safetensors, found config.json$"):
        store.read_state(tmp_path, "transformers", "fp16")
    with pytest.raises(UserError, match=r"missing file: .*x.safetensors"):
        store.read_file(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"config.json: expected a .safetensors, .bin"):
        store.read_file(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda whole: whole[:-5], "damaged or cut off"),
        (lambda whole: whole[:20], "damaged or cut off"),
        (lambda whole: b"", "damaged or cut off"),
        (lambda whole: b"<!doctype html>" * 9, "damaged or cut off"),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git-lfs pointer"),
    ],
)
def test_damaged_safetensors_are_refused_by_name(tmp_path: Path, damage: Any, reason: str) -> None:
    path = tmp_path / "model.safetensors"
    store.write_state(path, {"a": np.ones((4, 5), np.float32)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"cannot read {path} as safetensors: it is .*{reason}"):
        store.read_state(tmp_path, "transformers")
    with pytest.raises(UserError, match=str(path)):
        store.read_metadata(path)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A folder with two shards, of a and b and of c and d."""
    state = {name: np.full((10,), i, np.float32) for i, name in enumerate("abcd")}
    written = store.write_state(tmp_path / "model.safetensors", state, max_shard_bytes=80)
    assert written == {path.name for path in tmp_path.iterdir()}
    assert sorted(written) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    assert_same(store.read_state(tmp_path, "transformers"), state)
    return tmp_path


def test_a_missing_shard_raises(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"names shards that are missing: model-00002-of-00002.safetensors; fetch them again$"
    ):
        store.read_state(sharded, "transformers")


def test_a_key_in_two_shards_raises(sharded: Path) -> None:
    save_file({name: np.zeros(1, np.float32) for name in "bcd"}, sharded / "model-00002-of-00002.safetensors")
    with pytest.raises(UserError, match=r"model-00002-of-00002.safetensors repeats keys of an earlier shard: b$"):
        store.read_state(sharded, "transformers")


def test_an_index_that_disagrees_with_its_shards_raises(sharded: Path) -> None:
    save_file({name: np.zeros(1, np.float32) for name in "ce"}, sharded / "model-00002-of-00002.safetensors")
    with pytest.raises(UserError, match=r"disagree about 2 keys: d, e$"):
        store.read_state(sharded, "transformers")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/model.safetensors"])
def test_an_index_cannot_point_outside_its_folder(sharded: Path, name: str) -> None:
    save_file({"a": np.zeros(1, np.float32)}, sharded.parent / "model.safetensors")
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match=r"names shards that are missing"):
        store.read_state(sharded, "transformers")


@pytest.mark.parametrize("content", ["{}", "[]", '{"weight_map": []}', '{"weight_map": {}}', "{"])
def test_a_broken_index_is_named(sharded: Path, content: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=r"model.safetensors.index.json"):
        store.read_state(sharded, "transformers")


BASE = np.arange(24, dtype=np.float32).reshape(4, 6)


@pytest.mark.parametrize(
    "array",
    [
        BASE.T,
        BASE[:, ::2],
        BASE[::-1],
        BASE.T.astype(np.float16),
        BASE.T.astype(ml_dtypes.bfloat16),
        np.asfortranarray(BASE),
        np.broadcast_to(np.float32(3), (2, 3)),
        BASE.astype(">f4"),
        BASE.reshape(2, 2, 3, 2).transpose(3, 2, 0, 1),
        np.float32(4.6),
        np.array(7, np.int64),
        np.zeros((0, 3), np.float32),
        jnp.asarray(BASE, jnp.bfloat16).T,
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_any_memory_layout_is_written_right(tmp_path: Path, array: Any) -> None:
    # safetensors.numpy.save_file alone silently writes the memory behind a transposed view in its original order.
    store.write_state(tmp_path / "model.safetensors", {"a": array})
    expected = np.asarray(array)
    for read in (store.read_file(tmp_path / "model.safetensors")["a"], load_file(tmp_path / "model.safetensors")["a"]):
        assert read.shape == expected.shape and read.dtype == expected.dtype.newbyteorder("=")
        assert np.array_equal(read, expected)


def test_the_format_in_the_header_is_always_pt(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    store.write_state(path, {"a": BASE})
    assert store.read_metadata(path) == {"format": "pt"}
    store.write_state(path, {"a": BASE}, {"note": "x", "format": "np"})
    assert store.read_metadata(path) == {"format": "pt", "note": "x"}


def test_a_file_of_diffusers_is_rewritten_byte_for_byte(tmp_path: Path, unet: Any) -> None:
    unet.save_pretrained(tmp_path)
    original = tmp_path / "diffusion_pytorch_model.safetensors"
    store.write_state(tmp_path / "copy.safetensors", store.read_state(tmp_path, "diffusers"))
    assert (tmp_path / "copy.safetensors").read_bytes() == original.read_bytes()


def test_a_failed_write_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    store.write_state(path, {"a": BASE})
    before = path.read_bytes()
    with pytest.raises(Exception, match="object"):
        store.write_state(path, {"a": np.array([None])})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]
    with pytest.raises(UserError, match="cannot write"):
        store.write_state(path / "model.safetensors", {"a": BASE})


def test_a_full_disk_is_a_user_error_and_leaves_the_older_file(tmp_path: Path) -> None:
    """A limit on the file size makes the operating system refuse the bytes, as it does if the disk is full."""
    path = tmp_path / "model.safetensors"
    store.write_state(path, {"a": BASE})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match=rf"^cannot write {path}: .*File too large"):
            store.write_state(path, {"a": np.zeros(100_000, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_our_shards_load_in_diffusers_and_transformers(
    tmp_path: Path, unet: Any, text_encoder: Any, torch_arrays: Any, variant: str | None
) -> None:
    for model, kind, cls in ((unet, "diffusers", UNet2DConditionModel), (text_encoder, "transformers", CLIPTextModel)):
        folder = tmp_path / kind
        model.save_pretrained(folder)
        (folder / store.weights_name(kind)).unlink()
        store.write_state(folder / store.weights_name(kind, variant), torch_arrays(model), max_shard_bytes=20_000)
        assert len(list(folder.glob("*-of-*.safetensors"))) > 1
        loaded = cls.from_pretrained(folder, variant=variant)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_safetensors_damaged_at_random_are_read_or_refused(tmp_path: Path) -> None:
    """The header may be anything: lengths, offsets and types of other tensors, or no JSON."""
    path = tmp_path / "x.safetensors"
    state = {"a": np.ones((2, 3), np.float32), "b.c": np.arange(4, dtype=np.float16)}
    store.write_state(path, state, {"note": "x"})
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    for case in fuzzing.cases(200):
        if case.random() < 0.5:
            path.write_bytes(fuzzing.damaged(case, whole))
        else:
            text = fuzzing.damaged_json(case, header).encode("utf-8", "surrogatepass")
            path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
        fuzzing.read_or_refused(case, lambda: (store.read_file(path), store.read_metadata(path)))


@pytest.mark.parametrize("shape", [[1] * 70, [0, 2**62, 2**62]], ids=["70 axes", "too large"])
def test_shapes_that_numpy_does_not_have_are_named(tmp_path, shape):
    size = 4 if 0 not in shape else 0
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    for read in (store.read_shapes, store.read_file):
        with pytest.raises(UserError, match=f"cannot read {path} as safetensors: "):
            read(path)
    assert describe(path) == "a damaged safetensors file"
