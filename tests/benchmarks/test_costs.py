"""Operations of runs by what they are for, against counts by hand, and against the count of whole programs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import aot, costs, recipes
from benchmarks.blueprints import blueprint, write_configs
from benchmarks.costs import PARTS, ProgramCosts, costs_of, run_costs, total
from benchmarks.flops import count, operations, xla_flops
from benchmarks.recipes import RECIPES
from spo_jax.core.config_flag import load_config
from spo_jax.core.errors import UserError
from spo_jax.core.files import write_json
from spo_jax.methods import read_settings
from spo_jax.methods.common.settings import JudgeSettings
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.methods.spo.settings import SPOSettings, SPOTrainSettings
from spo_jax.nn.clip import CLIPModel
from spo_jax.nn.clip_config import CLIPConfig
from spo_jax.nn.shapes import clip_shapes
from spo_jax.parallel.mesh import make_mesh

SPO = SPOSettings(
    num_steps=5, divert_start_step=2, num_candidates=3, decode_chunk=2, train_batch_size=4, train_chunk=2
)  # fmt: skip
PROMPTS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Configs, without weights, of the smallest pipeline and preference model."""
    folder = tmp_path_factory.mktemp("micro")
    write_configs(blueprint("micro"), folder)
    return folder


@pytest.fixture(scope="module")
def spo(folder):
    """Settings of SPO on these models."""
    judge = JudgeSettings(model=str(folder / "spm"))
    return SPOTrainSettings(model=str(folder), prompts_per_batch=PROMPTS, spm=judge, spo=SPO)


@pytest.fixture(scope="module")
def traced(spo):
    """A run with these settings, and its programs."""
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        run = aot.abstract_run(spo, mesh)
        return run, run.trace(run.state_shapes())


@pytest.fixture(scope="module")
def found(traced):
    """The costs of this run."""
    run, programs = traced
    return costs_of(run, programs, run.pipeline)


def judged(configs):
    """Operations of an image judged by the preference model, from its network alone."""
    module = CLIPModel(CLIPConfig.from_dict(configs.spm, time_conditioned=True))
    side = module.config.vision.image_size
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.float32)
    return count(
        lambda p, x, t: module.apply({"params": p}, x, t, method="encode_image"), clip_shapes(module), image, t
    )


def test_a_rollout_is_what_is_counted_by_hand(found):
    """Of 5 steps, 3 have one latent per prompt and 2 have 3; 3 pools of 3 are judged, which chunks of 2 fill to 18."""
    call = found.programs["collect"].call
    guided = 2 * (3 + 2 * 3) * PROMPTS
    np.testing.assert_allclose(call["sampling"], guided * found.unet_forward, rtol=1e-3)
    images = 3 * 3 * PROMPTS
    np.testing.assert_allclose(call["decoding"], images * found.each["image_decoded"], rtol=1e-9)
    np.testing.assert_allclose(call["judging"], images * judged(blueprint("micro")), rtol=1e-3)
    assert call["encoding"] == call["training"] == 0
    assert not any(found.programs["collect"].train_batch.values())


def test_an_update_is_what_is_counted_by_hand(found):
    """The policy forward and backward (to activations only) and the reference, guided, for each of 4 pairs."""
    update = found.programs["update"]
    assert not any(update.call.values())
    assert update.train_batch["training"] == sum(update.train_batch.values())
    # Beside it, the backward pass has the adapter's own products, and not those for the gradient of the first layer.
    np.testing.assert_allclose(update.train_batch["training"], 3 * 2 * 4 * found.unet_forward, rtol=0.15)
    assert found.train_batches == 2  # 6 pairs in batches of 4


def test_a_finished_run_has_the_training_batches_of_its_curves(found):
    collect, update = (sum(program.call.values()) for program in found.programs.values())
    batch = sum(found.programs["update"].train_batch.values())
    rows = [{"step": 0, "score": 1.0}, {"step": 1, "train_batches": 2}, {"step": 2, "train_batches": 0}]
    done = total(found, rows)
    assert done.keys() == set(PARTS)
    np.testing.assert_allclose(sum(done.values()), 2 * (collect + update) + 2 * batch, rtol=1e-12)
    assert total(found, [{"step": 1}]) == found.of_batch() == total(found, [{"step": 1, "train_batches": 2}])
    assert sum(total(found, rows[:1]).values()) == 0


@pytest.mark.slow
def test_a_preference_model_is_trained_and_the_diffusion_model_is_not(folder):
    """Per pair: two images encoded, predicted with guidance, decoded and scored; the frozen network has no gradient."""
    settings = SPMTrainSettings(model=str(folder), init=str(folder / "spm"), batch_size=2, chunk=1)
    costs = run_costs(settings)
    (step,) = costs.programs.values()
    images = 2 * settings.batch_size
    np.testing.assert_allclose(step.call["sampling"], 2 * images * costs.unet_forward, rtol=1e-3)
    np.testing.assert_allclose(step.call["decoding"], images * costs.each["image_decoded"], rtol=1e-9)
    encoded = images * costs.each["image"] + settings.batch_size * costs.each["prompt"]
    np.testing.assert_allclose(step.call["encoding"], encoded, rtol=1e-3)
    assert step.call["judging"] == 0
    assert step.call["training"] > 2 * images * judged(blueprint("micro"))
    assert costs.train_batches == 1


class Network:
    """Stands for a network of flax, which writes its class into the name stack."""

    def __init__(self, name):
        self.name = name

    def __call__(self, weights, x):
        with jax.named_scope(self.name):
            return jnp.tanh(x @ weights)


W, X = jnp.ones((4, 4)), jnp.ones((3, 4))
ONE = count(jnp.matmul, X, W)


def parts_of(function, *args, trips=()):
    """The costs of a function in which UNet is the trained kind of network and Text encodes prompts."""
    return costs._costs_of(operations(function, *args), trips, {"UNet"}, {"Text"})


def only(**parts):
    return dict.fromkeys(PARTS, 0.0) | {name: times * ONE for name, times in parts.items()}


def test_networks_are_told_apart_by_their_names():
    def program(w, x):
        for name in ("UNet", "Text", "VAE.decode", "VAE.encode", "Judge.score", "Judge.score"):
            x = Network(name)(w, x)
        return x @ w  # of no network: an adapter that is merged

    assert parts_of(program, W, X) == ProgramCosts(only(sampling=2, encoding=2, decoding=1, judging=2), only())


def test_the_reference_is_training_and_a_network_in_another_loop_is_not():
    """What the network makes in a loop of its own is sampled, also inside of a program that trains."""
    unet = Network("UNet")

    def loss(w, x):
        policy = unet(w, unet(w, x))
        return jnp.sum(policy - unet(jax.lax.stop_gradient(w), x))

    def program(w, x, n):
        x = jax.lax.fori_loop(0, 5, lambda _, x: unet(w, x), x)
        body = lambda _, w: w - jax.grad(loss)(w, x)  # noqa: E731
        return jax.lax.fori_loop(0, n, body, w)

    found = parts_of(program, W, X, jnp.int32(3), trips=(1,))
    assert found.call == only(sampling=5)
    # Three forward; backward both weights' gradients, and one to the activations between them.
    assert found.train_batch == only(training=3 + 3)


def test_the_parts_are_all_that_is_counted(traced, found):
    """`benchmarks.flops.count`, with which the documents' other numbers are made, counts the same."""
    run, programs = traced
    for name, program in programs.items():
        parts = found.programs[name]
        whole = sum(parts.call.values()) + sum(parts.train_batch.values())
        np.testing.assert_allclose(whole, count(program, while_trips=run.loop_trips(name)), rtol=1e-12)


@pytest.mark.slow
def test_the_toy_against_xla_and_by_hand():
    """Within 8 %, which is what XLA's count of element-wise work adds at these widths."""
    settings = read_settings(load_config("toy"))
    found = run_costs(settings)
    # 12 steps of one latent per prompt, and 8 of 4.
    guided = 2 * (12 + 8 * 4) * settings.prompts_per_batch
    np.testing.assert_allclose(found.programs["collect"].call["sampling"], guided * found.unet_forward, rtol=2e-3)
    pipeline = costs.open_model(settings, None)
    params, x = pipeline.params["unet"], jnp.zeros((1, *pipeline.latent_shape))
    condition = pipeline.encode_unconditional()
    program = jax.jit(lambda p, x: pipeline.predict(p, None, x, jnp.zeros(1), condition)).lower(params, x).compile()
    assert found.unet_forward < xla_flops(program) < 1.08 * found.unet_forward


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.config)
def test_full_sizes_agree_with_the_cost_model_of_the_documents(recipe):
    """Within 1 % for a rollout per prompt. An update has up to 6 % less here, where the score matrices are kept.

    The model's numbers are those of TPUs, whose attention kernel computes them again in the backward pass; and its unit
    has the adapter in it.
    """
    settings = read_settings(load_config(recipe.config))
    found = run_costs(settings)
    np.testing.assert_allclose(found.unet_forward / 1e12, recipe.network, rtol=0.03)
    collect = sum(found.programs["collect"].call.values()) / 1e12 / settings.prompts_per_batch
    np.testing.assert_allclose(collect, recipes.work(recipe, settings, valid=0), rtol=0.01)
    update = sum(found.programs["update"].train_batch.values()) / 1e12 / settings.spo.train_batch_size
    of_pairs = recipes.work(recipe, settings) - recipes.work(recipe, settings, valid=0)
    of_a_pair = of_pairs / (settings.spo.num_steps - settings.spo.divert_start_step)
    assert 0.94 * of_a_pair < update < of_a_pair


# The command


def test_report(found, spo, tmp_path):
    done = total(found, [{"step": 1, "train_batches": 2}])
    report = costs._report(costs.record("micro", spo, found, 1, done), found)
    assert "| collect, a call |" in report and "| update, a training batch |" in report
    assert "update, a call" not in report  # nothing is outside of its loop
    assert "1 batch" in report and "A100" in report
    assert "--prompts=N" in costs._report(costs.record("micro", spo, found, None, None), found)
    assert costs.tflop(1.234e12 * 1000) == "1,230" and costs.tflop(1.2345e10) == "0.0123" and costs.tflop(0) == "–"


def test_hours_are_those_of_one_chip():
    """312 TFLOP/s of an A100 at 40 and at 20 %."""
    assert costs.chip_hours(312e12 * 3600)["A100"] == pytest.approx([2.5, 5])
    assert costs.chip_hours(459e12 * 3600)["TPU v5p"] == pytest.approx([2.5, 5])  # the machine has 4 of them


def test_length_of_a_run(spo):
    assert costs.batches_of(spo, 0) is None
    assert costs.batches_of(dataclasses.replace(spo, num_epochs=3), 10) == 15
    assert costs.batches_of(SPMTrainSettings(train_steps=700), 0) == 700


def test_a_run_is_read_from_its_folder(spo, tmp_path):
    with pytest.raises(UserError, match="no run.json here; expected the folder of a run"):
        costs._of_folder(tmp_path)
    write_json(tmp_path / "run.json", {"settings": dataclasses.asdict(spo)})
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train_batches": 1}\n')
    settings, rows = costs._of_folder(tmp_path)
    assert settings == spo and rows == [{"step": 1, "train_batches": 1}]
