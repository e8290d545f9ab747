"""Latents from disk are those of the encoder, and stay bound to what they were computed from.

Equality is exact: the same program for the same shapes, and numbers are stored unchanged. Only with another number of
devices each encodes fewer images at a time, and sums round in another order: 1e-5 of the largest value.
"""

import dataclasses
import itertools
import json
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.data.preferences.images import decode
from spo_jax.data.preferences.loading import batches
from spo_jax.methods.common.latents import LatentCache, encode_images, latent_cache
from spo_jax.parallel.mesh import make_mesh
from tests.support.networks import SIDE, small_pipeline
from tests.support.pairs import noise_pairs

COUNT = 5
CHUNK = 2
SETTINGS = dict(side=SIDE, pairs_per_device=CHUNK, threads=1)


@pytest.fixture(scope="module")
def pipeline():
    return small_pipeline()


@pytest.fixture(scope="module")
def pairs():
    return noise_pairs(COUNT)


def rows_of(cache, rows):
    return np.stack([cache.pair(int(row)) for row in rows])


def direct(vae):
    """(weights, pixels) to the encoder's moments; compiled, because XLA multiplies by 1/255 where numpy divides."""
    return jax.jit(lambda params, x: vae.apply({"params": params}, (x / 255 - 0.5) / 0.5, method="encode"))


@pytest.fixture(scope="module")
def moments(pipeline, pairs):
    """Mean and log variance of every image, encoded directly, as many at a time as the cache encodes."""
    encode = direct(pipeline.vae)
    pixels = np.stack([[decode(data, SIDE) for data in files] for files in pairs.files])
    images = pixels.reshape(-1, SIDE, SIDE, 3)
    images = np.concatenate([images, images[-2:]])  # the last chunk is filled up
    parts = [encode(pipeline.params["vae"], images[at : at + 2 * CHUNK]) for at in range(0, len(images), 2 * CHUNK)]
    mean, logvar = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return tuple(x[: 2 * COUNT].reshape(COUNT, 2, *x.shape[1:]) for x in (mean, logvar))


@pytest.fixture(scope="module")
def cache(tmp_path_factory, pipeline, pairs):
    return latent_cache(tmp_path_factory.mktemp("cache"), pairs, pipeline, **SETTINGS)


def test_equals_direct_encoding(cache, moments):
    np.testing.assert_array_equal(rows_of(cache, np.arange(COUNT)), moments[0])
    np.testing.assert_array_equal(rows_of(cache, np.asarray([3, 0])), moments[0][[3, 0]])
    np.testing.assert_array_equal(cache.pair(4), moments[0][4])


def test_scaled_latents_are_what_the_model_sees(cache, pipeline, pairs):
    """1e-5: the pipeline encodes these two images by themselves."""
    pixels = np.stack([decode(data, SIDE) for data in pairs.files[1]])
    mean, _ = jax.jit(pipeline.encode)(pipeline.params["vae"], jnp.asarray(pixels, jnp.float32) / 127.5 - 1)
    expected = mean * pipeline.vae.config.scaling_factor
    found = pipeline.scale_latents(jnp.asarray(cache.pair(1)))
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_the_posterior_is_kept_with_its_log_variance(tmp_path, pipeline, pairs, moments):
    cache = latent_cache(tmp_path, pairs, pipeline, **SETTINGS, posterior=True)
    np.testing.assert_array_equal(rows_of(cache, np.arange(COUNT)), np.concatenate(moments, axis=-1))


def test_the_loader_gives_latents_of_the_same_rows_in_the_same_order(cache, pipeline, pairs, moments):
    settings = dict(side=SIDE, batch_size=3, seed=1, start=1)
    streams = [batches(pairs, np.arange(COUNT), **settings, read=read) for read in (None, cache.pair)]
    for images, latents in itertools.islice(zip(*streams, strict=True), 4):
        np.testing.assert_array_equal(latents.rows, images.rows)
        np.testing.assert_array_equal(latents.images, moments[0][images.rows])


def test_bfloat16_comes_back_to_the_bit(tmp_path, pipeline, pairs):
    vae = pipeline.vae.clone(dtype=jnp.bfloat16)
    half = dataclasses.replace(pipeline, vae=vae)
    cache = latent_cache(tmp_path, pairs, half, **SETTINGS)
    pixels = np.stack([decode(data, SIDE) for files in pairs.files[:CHUNK] for data in files])
    mean, _ = direct(vae)(pipeline.params["vae"], pixels)
    assert rows_of(cache, np.arange(CHUNK)).dtype == jnp.bfloat16
    np.testing.assert_array_equal(rows_of(cache, np.arange(CHUNK)).reshape(mean.shape), mean)
    assert np.load(tmp_path / "latents.npy").dtype == np.uint16


def test_eight_devices_give_the_same_latents(tmp_path, pipeline, pairs, moments):
    with jax.set_mesh(make_mesh()):
        cache = latent_cache(tmp_path, pairs, pipeline, side=SIDE, pairs_per_device=1)
    assert np.abs(rows_of(cache, np.arange(COUNT)) - moments[0]).max() < 1e-5 * np.abs(moments[0]).max()


def test_two_processes_fill_one_cache(tmp_path, pairs, moments):
    """Each process encodes its own part; one writes, and both read the whole."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    lines = [sys.executable, "-c", _PROCESS, address, str(tmp_path), str(SIDE), str(COUNT)]
    root = Path(__file__).resolve().parents[3]
    processes = [
        subprocess.Popen([*lines, str(index)], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for index in range(2)
    ]
    for process in processes:
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error[-4000:]
        total = float(out.split()[-1])
        assert abs(total - np.abs(moments[0]).sum()) < 1e-4 * total  # printed digits of a float32 sum
    stored = np.load(tmp_path / "latents.npy")
    assert np.abs(stored - moments[0]).max() < 1e-5 * np.abs(moments[0]).max()


_PROCESS = """
import sys
import jax
import numpy as np
from tests.support.pairs import noise_pairs
address, folder, side, count, index = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 1)
jax.distributed.initialize(address, 2, int(index))
from spo_jax.parallel.mesh import make_mesh
from spo_jax.methods.common.latents import latent_cache
from tests.support.networks import small_pipeline
mesh = make_mesh()
with jax.set_mesh(mesh):
    pipeline = small_pipeline(mesh)
    cache = latent_cache(folder, noise_pairs(int(count)), pipeline, side=int(side), pairs_per_device=1, threads=1)
    print(np.abs(np.stack([cache.pair(row) for row in range(int(count))])).sum())
"""


def test_a_pass_that_was_stopped_is_continued(tmp_path, pipeline, pairs, moments):
    """A damaged image stops the first pass; the second reads only the rest."""
    damaged = noise_pairs(COUNT)
    files = damaged.files[4]
    damaged.files[4] = (b"", files[1])
    with pytest.raises(UserError, match="pair 4: the first image is not an image in a known format"):
        latent_cache(tmp_path, damaged, pipeline, **SETTINGS)
    assert json.loads((tmp_path / "latents.json").read_text())["rows_done"] == 4
    assert not (tmp_path / "latents.npy").exists()
    damaged.files[:] = [(b"", b"")] * 4 + [files]
    cache = latent_cache(tmp_path, damaged, pipeline, **SETTINGS)
    np.testing.assert_array_equal(rows_of(cache, np.arange(COUNT)), moments[0])


def test_stopped_between_the_last_row_and_the_name(cache, pipeline, pairs, tmp_path):
    folder = tmp_path / "cache"
    shutil.copytree(cache.file.path.parent, folder)
    (folder / "latents.npy").rename(folder / "latents.npy.part")
    unreadable = dataclasses.replace(pairs, files=[(b"", b"")] * COUNT)
    again = latent_cache(folder, unreadable, pipeline, **SETTINGS)
    np.testing.assert_array_equal(rows_of(again, np.arange(COUNT)), rows_of(cache, np.arange(COUNT)))


def test_a_second_run_does_not_write_into_the_same_folder(tmp_path, pipeline, pairs, moments):
    """The second run begins while the first is in the middle of its pass."""

    class Busy(type(pairs)):
        def images(self, row):
            if row == 2 and not refusals:
                with pytest.raises(UserError, match="latents.npy is being written by another process") as caught:
                    latent_cache(tmp_path, pairs, pipeline, **SETTINGS)
                refusals.append(caught)
            return super().images(row)

    refusals = []
    cache = latent_cache(tmp_path, Busy(pairs.files), pipeline, **SETTINGS)
    assert len(refusals) == 1
    np.testing.assert_array_equal(rows_of(cache, np.arange(COUNT)), moments[0])


def test_complete_latents_are_not_computed_again(cache, pipeline, pairs):
    unreadable = dataclasses.replace(pairs, files=[(b"", b"")] * COUNT)
    again = latent_cache(cache.file.path.parent, unreadable, pipeline, **SETTINGS)
    np.testing.assert_array_equal(again.pair(0), cache.pair(0))


def with_other_weights(pipeline, part):
    params = dict(pipeline.params["vae"])
    params[part] = jax.tree.map(lambda x: x + 1, params[part])
    return dataclasses.replace(pipeline, params={**pipeline.params, "vae": params})


def with_other_factor(pipeline):
    config = dataclasses.replace(pipeline.vae.config, scaling_factor=0.25)
    return dataclasses.replace(pipeline, vae=pipeline.vae.clone(config=config))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p, d: (p, dataclasses.replace(d, digest="other"), {}), "preferences is in memory there and other here"),
        (lambda p, d: (with_other_weights(p, "encoder"), d, {}), "autoencoder weights is [0-9a-f]{16} there"),
        (lambda p, d: (with_other_factor(p), d, {}), "autoencoder.scaling_factor is 0.5 there and 0.25 here"),
        (lambda p, d: (p, d, dict(side=32)), r"shape is .* there and .* here|side is 16 there and 32 here"),
        (lambda p, d: (p, d, dict(posterior=True)), "latents is means there and means and log va.* here"),
        (lambda p, d: (dataclasses.replace(p, vae=p.vae.clone(dtype=jnp.bfloat16)), d, {}), "dtype is float32 there"),
    ],
)
def test_latents_of_something_else_are_refused(cache, pipeline, pairs, change, message):
    other, data, settings = change(pipeline, pairs)
    with pytest.raises(UserError, match=message):
        latent_cache(cache.file.path.parent, data, other, **SETTINGS | settings)


def test_another_decoder_may_use_them(cache, pipeline, pairs):
    other = with_other_weights(pipeline, "decoder")
    assert latent_cache(cache.file.path.parent, pairs, other, **SETTINGS).file == cache.file


def test_a_folder_that_cannot_be_written(tmp_path, pipeline, pairs):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken is not a folder"):
        latent_cache(tmp_path / "taken" / "cache", pairs, pipeline, **SETTINGS)


def test_travels_to_workers_without_its_numbers(cache):
    cache.pair(0)
    again = pickle.loads(pickle.dumps(cache))
    assert isinstance(again, LatentCache) and len(pickle.dumps(cache)) < 4000
    np.testing.assert_array_equal(again.pair(2), cache.pair(2))


# Images that are not pairs


def test_mean_and_deviation_of_single_images(pipeline, pairs, moments):
    """Seven images by eight: as many as there are, each once."""

    def read(row, side):
        return decode(pairs.files[row // 2][row % 2], side)

    mean, deviation = encode_images(pipeline, read, 7)
    expected = [x.reshape(-1, *x.shape[2:])[:7] for x in moments]
    np.testing.assert_allclose(mean, expected[0], atol=1e-5 * np.abs(expected[0]).max())
    np.testing.assert_allclose(deviation, np.exp(expected[1] / 2), rtol=1e-4)


def test_a_model_that_is_not_square_cannot_encode_square_images(pipeline):
    unet = pipeline.unet.clone(config=dataclasses.replace(pipeline.unet.config, sample_size=(4, 8)))
    with pytest.raises(UserError, match="native size 8 x 16 is not square"):
        encode_images(dataclasses.replace(pipeline, unet=unet), lambda row, side: None, 1)
