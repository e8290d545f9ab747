"""Runs every script on the smallest networks and checks that its numbers agree with each other."""

import jax
import numpy as np
import pytest

from benchmarks import rollout, train, unet_forward, update_step
from benchmarks.flops import count
from benchmarks.subjects import RandomTokenizer, build, random_params, read_settings

COMMON = {"seconds", "compile_seconds", "flops_per_second", "mfu", "peak_memory_bytes", "peak_memory_of"}


@pytest.fixture(scope="module")
def found(micro, one_device):
    """The results of every script by its name."""
    with jax.set_mesh(one_device):
        scripts = (unet_forward, rollout, update_step, train)
        return {script.__name__.rpartition(".")[2]: script.measure(micro, 1, 2) for script in scripts}


@pytest.mark.parametrize("script", ["unet_forward", "rollout", "update_step", "train"])
def test_results(found, script):
    results = found[script]
    assert COMMON <= results.keys()
    assert len(results["seconds"]["all"]) == 2 and results["seconds"]["median"] > 0
    assert results["compile_seconds"] > 0
    assert results["mfu"] is None and results["peak_memory_of"] == "process"
    assert results["peak_memory_bytes"] > 100e6


def test_forward(found):
    """Two prompts have two candidates each, predicted with and without text."""
    results = found["unet_forward"]
    assert results["evaluations"] == 8
    assert results["evaluations_per_second"] == pytest.approx(8 / results["seconds"]["median"])


def test_rollout(found):
    results = found["rollout"]
    seconds = results["seconds"]["median"]
    assert results["trajectories_per_second"] == pytest.approx(2 / seconds)
    assert results["judged_pictures_per_second"] == pytest.approx(2 * 2 * 3 / seconds)
    assert results["flops_layers_loops_once"] < results["flops_layers"]
    share = results["flops_per_second"] / results["flops_per_second_of_a_product"]
    assert results["share_of_a_product"] == pytest.approx(share) and share < 1


def test_update(found):
    """Three transitions of two prompts are six pairs, in batches of four."""
    results = found["update_step"]
    assert (results["pairs"], results["training_batches"]) == (6, 2)
    assert results["flops_layers"] == 2 * results["flops_layers_loops_once"]


def test_train(found):
    results = found["train"]
    assert (results["valid_pairs"], results["training_batches"]) == (6, 2)  # the threshold is 0
    assert results["flops_rollout"] == found["rollout"]["flops_layers"]
    assert results["flops_update"] == found["update_step"]["flops_layers"]
    assert results["seconds_rollout"] + results["seconds_update"] <= results["seconds"]["max"] * 1.01


@pytest.mark.parametrize("script", ["rollout", "update_step"])
def test_xla_counts_about_the_same(found, script):
    """XLA's count includes element-wise work, which is a few per cent even of networks as narrow as these."""
    results = found[script]
    assert results["flops_xla_loops_once"] == pytest.approx(results["flops_layers_loops_once"], rel=0.25)


def test_recomputed_work_is_counted_apart(micro, one_device):
    assert micro.without_remat() is micro
    again = micro.with_unet(micro.spo.pipeline.unet.clone(remat=True))
    assert again.without_remat().spo.pipeline.unet == micro.spo.pipeline.unet
    with jax.set_mesh(one_device):
        pairs = micro.traced["collect"].out_info[0]
        arguments = (micro.run.state_shapes(), micro.frozen, micro.inputs, pairs, micro.keys(1)[0])
        assert count(again.spo.update, *arguments) > count(micro.traced["update"])


def test_the_distilled_decoder_is_less_work(micro, one_device):
    with jax.set_mesh(one_device):
        tiny = build("micro", micro.settings, "tiny")
        arguments = (tiny.run.state_shapes().params, tiny.frozen, tiny.inputs, tiny.keys(1)[0])
        assert count(tiny.spo.collect, *arguments) < count(micro.traced["collect"])


def test_random_weights_and_tokens():
    def shape(*axes, dtype=jax.numpy.bfloat16):
        return jax.ShapeDtypeStruct(axes, dtype)

    shapes = {"kernel": shape(300, 400), "bias": shape(4), "scale": shape(4), "logit_scale": shape(dtype=np.float32)}
    params = random_params(shapes, seed=0)
    assert {name: (x.shape, x.dtype) for name, x in params.items()} == {
        name: (x.shape, x.dtype) for name, x in shapes.items()
    }
    assert params["kernel"].astype(np.float32).std() == pytest.approx(300**-0.5, rel=0.02)
    assert (params["bias"] == 0).all() and (params["scale"] == 1).all()
    tokenizer = RandomTokenizer({"vocab_size": 50, "max_position_embeddings": 20})
    ids = tokenizer(["a", "b", "a", ""])
    assert ids.shape == (4, 20) and (ids[0] == ids[2]).all() and (ids[0] != ids[1]).any()
    assert (ids[:, 0] == 48).all() and (ids[:, -1] == 49).all() and (ids[3, 1:] == 49).all()


def test_full_size_settings_are_published_ones():
    settings = read_settings("sd15")
    assert (settings.spo.num_steps, settings.spo.num_candidates, settings.prompts_per_batch) == (20, 4, 10)
