"""The ground truth of the toy world is right about real images, and no short cut raises its score."""

import numpy as np
import pytest
from scipy import ndimage

from spo_jax.core.errors import UserError
from spo_jax.core.signs import out_of_range
from spo_jax.toy import truth, world

PROMPTS = world.PROMPTS
TERMS = {"crisp": "edge_width", "trim": "raggedness", "even": "mottle", "clean": "grain", "colour": "dullness"}
COLOUR = np.float32([world.PALETTE[world.parse_prompt(prompt)[0]] for prompt in PROMPTS])[:, None, None]


@pytest.fixture(scope="module")
def real():
    rng = np.random.default_rng(1)
    prompts = list(rng.choice(world.PROMPTS, 1000))
    images, factors = world.draw(rng, prompts)
    return images, prompts, factors


@pytest.fixture(scope="module")
def reconstructed(real):
    """The real images from the 16 strongest components of their 4x4 patches, about what a latent of 8x8x16 keeps."""

    def patches(images):
        # [b 32 32 3] -> [b * 64 48]
        return images.reshape(-1, 8, 4, 8, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 48)

    # The components come from other images than those that are reconstructed.
    rng = np.random.default_rng(2)
    prompts = list(rng.choice(world.PROMPTS, 1000))
    flat = patches(world.draw(rng, prompts)[0])
    mean = flat.mean(0)
    basis = np.linalg.eigh(np.cov((flat - mean).T))[1][:, -16:].astype(np.float32)
    kept = (patches(real[0]) - mean) @ basis @ basis.T + mean
    # [b * 64 48] -> [b 32 32 3]
    return kept.reshape(-1, 8, 8, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 32, 32, 3)


@pytest.fixture(scope="module")
def real_terms(real):
    return truth.aesthetic_terms(real[0], real[1])


@pytest.fixture(scope="module")
def reconstructed_terms(real, reconstructed):
    return truth.aesthetic_terms(reconstructed, real[1])


def _total(terms):
    drawn = np.prod([terms[name] for name in TERMS], axis=0) ** (1 / 5)
    return terms["form"] * terms["meant"] * terms["range"] * drawn


def _drawn(**values):
    """Draws an image of every caption in a random pose, with the given quality."""
    factors = world.sample_factors(np.random.default_rng(3), len(PROMPTS))
    factors |= {name: np.full(len(PROMPTS), value, np.float32) for name, value in values.items()}
    return world.render(np.random.default_rng(4), PROMPTS, factors)


@pytest.fixture(scope="module")
def clean():
    return _drawn(edge_width=1, raggedness=0, mottle=0, grain=0, dullness=0)


@pytest.fixture(scope="module")
def middling():
    return _drawn(edge_width=3, raggedness=0.3, mottle=0.06, grain=0.06, dullness=0.3)


def _score(images, prompts=PROMPTS):
    return float(truth.aesthetic(images.astype(np.float32), prompts).mean())


def _saturated(images, factor):
    grey = images.mean(-1, keepdims=True)
    return grey + factor * (images - grey)


def _blurred(images, sigma):
    return ndimage.gaussian_filter(images, (0, sigma, sigma, 0), mode="nearest")


def _sharpened(images, amount, sigma=1):
    return images + amount * (images - _blurred(images, sigma))


def _on_grey(cover):
    return cover[..., None] * COLOUR + (1 - cover[..., None]) * np.float32(0.1)


def _disc(radius, softness=1):
    y, x = np.mgrid[:32, :32] - 15.5
    return np.clip(0.5 - (np.hypot(x, y) - radius) / softness, 0, 1)[None].astype(np.float32)


def test_the_classifier_is_right_about_real_and_reconstructed_images(real, reconstructed):
    images, prompts, _ = real
    for right in truth.accuracy(images, prompts).values():
        assert right.mean() >= 0.99
    for right in truth.accuracy(reconstructed, prompts).values():
        assert right.mean() >= 0.97


def test_accuracy_distinguishes_the_attributes(clean):
    def moved(colours, shapes):
        """Returns the captions with each colour and shape replaced by a later one of its list."""
        words = [world.parse_prompt(prompt) for prompt in PROMPTS]
        return [
            world.caption(
                world.COLOURS[(world.COLOURS.index(colour) + colours) % len(world.COLOURS)],
                world.SHAPES[(world.SHAPES.index(shape) + shapes) % len(world.SHAPES)],
            )
            for colour, shape in words
        ]

    for colours, shapes in [(0, 0), (1, 0), (0, 1), (1, 1)]:
        right = truth.accuracy(clean, moved(colours, shapes))
        assert right["colour"].all() == (not colours) and right["colour"].any() == (not colours)
        assert right["shape"].all() == (not shapes) and right["shape"].any() == (not shapes)
        np.testing.assert_array_equal(right["all"], right["colour"] & right["shape"])


@pytest.mark.parametrize("term", TERMS)
def test_each_term_follows_its_own_hidden_factor_and_no_other(real, real_terms, reconstructed_terms, term):
    factors = real[2]
    for values, least in ((real_terms[term], 0.90), (reconstructed_terms[term], 0.80)):
        assert np.corrcoef(values, factors[TERMS[term]])[0, 1] < -least
        for other in set(world.FACTORS) - {TERMS[term]}:
            # Edges show a little of all flaws.
            assert abs(np.corrcoef(values, factors[other])[0, 1]) < 0.22, other


def test_real_images_spread_widely_and_keep_their_order_after_reconstruction(real_terms, reconstructed_terms):
    scores = _total(real_terms)
    assert 0 <= scores.min() and scores.max() <= 1
    assert 0.11 < scores.std() < 0.18
    assert np.corrcoef(scores, _total(reconstructed_terms))[0, 1] > 0.95


def test_the_aesthetic_is_the_gated_geometric_mean_of_its_terms(real, real_terms):
    images, prompts, _ = real
    scores = truth.aesthetic(images[:50], prompts[:50])
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, _total(real_terms)[:50], atol=1e-4)


def test_layout_does_not_count(real, real_terms):
    factors = real[2]
    scores = _total(real_terms)
    for name in ("shift_x", "shift_y", "tilt", "scale", "background", "grain_size"):
        assert abs(np.corrcoef(scores, factors[name])[0, 1]) < 0.12, name
    for name in ("form", "meant", "range"):
        assert (real_terms[name] == 1).mean() > 0.995, f"{name} is a gate that real images pass"


def test_the_layout_is_measured_from_the_image_alone(real, reconstructed):
    images, prompts, factors = real
    round_ones = np.asarray([prompt.endswith("circle") for prompt in prompts])
    for drawn, tolerance in ((images, 0.3), (reconstructed, 0.5)):
        found = truth.layout(drawn[:400])
        assert np.mean(np.abs(found["tilt"][round_ones[:400]]) < 3) > 0.9
        for name, values in found.items():
            error = np.abs(values - factors[name][:400])[~round_ones[:400]]
            width = np.ptp(world.FACTORS[name])
            assert np.median(error) < tolerance * width / 4, name


def test_scores_of_the_layout_lead_from_the_worst_to_the_best_of_the_toy_world():
    smallest, largest = world.FACTORS["scale"]
    middle = _drawn(raggedness=0, shift_x=0, shift_y=0, tilt=0, scale=largest)
    corner = _drawn(raggedness=0, shift_x=2, shift_y=-2, tilt=18, scale=smallest)
    best = truth.measure_terms(middle)
    worst = truth.measure_terms(corner)
    tilted = np.asarray([not prompt.endswith("circle") for prompt in PROMPTS])
    for name in ("centred", "large", "upright"):
        rows = tilted if name == "upright" else slice(None)
        assert np.mean(best[f"layout/{name}"][rows]) > 0.95 and np.mean(worst[f"layout/{name}"][rows]) < 0.05, name


def test_a_clean_image_scores_nearly_one_in_every_shape_and_colour(clean):
    scores = truth.aesthetic(clean, PROMPTS)
    assert scores.min() > 0.9 and scores.mean() > 0.98


def test_without_prompts_what_is_shown_is_taken_as_meant(clean):
    np.testing.assert_allclose(truth.aesthetic(clean), truth.aesthetic(clean, PROMPTS))


def test_colour_peaks_at_the_palette(clean):
    curve = [_score(_saturated(clean, factor)) for factor in (0.4, 0.7, 0.9, 1.0, 1.1, 1.3, 1.6, 2.5)]
    assert np.argmax(curve) == 3
    assert (np.diff(curve[:4]) > 0).all() and (np.diff(curve[3:]) < 0).all()
    assert curve[-1] < 0.1


def test_lightness_and_contrast_peak_at_the_palette_too(clean):
    for worse in (clean - 0.2, clean + 0.2, clean * 0.8, clean * 1.2, clean * 1.5):
        assert _score(worse) < _score(clean) - 0.04


def test_over_saturating_a_dull_image_loses_in_the_end(middling):
    assert _score(_saturated(middling, 1.4)) > _score(middling), "an honest repair is rewarded"
    assert _score(_saturated(middling, 2)) < _score(middling)
    assert _score(middling * 2) < 0.5 * _score(middling)


def test_values_out_of_range_lower_the_score(clean):
    assert out_of_range(clean).max() == 0
    spotted = clean.copy()
    spotted[:, :4, :4] = 1.5
    np.testing.assert_allclose(out_of_range(spotted), 16 / 1024)
    assert _score(spotted) < _score(np.clip(spotted, -1, 1)) - 0.05


def test_edges_peak_at_natural_sharpness(clean):
    softer = [_score(_blurred(clean, sigma)) for sigma in (0, 0.4, 0.7, 1.0, 1.5, 2.5)]
    harder = [_score(_sharpened(clean, amount)) for amount in (0, 0.3, 0.6, 1, 2, 4)]
    assert (np.diff(softer) < 0).all() and (np.diff(harder) < 0).all()
    assert softer[-1] < 0.7 and harder[-1] < 0.6
    parts = truth.take_apart(clean)
    jagged = np.where(parts.inside[..., None], COLOUR, parts.background)
    assert _score(jagged) < _score(clean) - 0.05


def test_sharpening_a_blurred_image_gains_little_and_then_loses():
    blurred = _drawn(edge_width=4, raggedness=0.2, mottle=0.05, grain=0.05, dullness=0.2)
    before = _score(blurred)
    for sigma in (0.7, 1, 2):
        curve = [_score(_sharpened(blurred, amount, sigma)) for amount in (0.5, 1, 2, 4, 8)]
        assert max(curve) < before + 0.06
        assert curve[-1] < before - 0.1


@pytest.mark.parametrize("strength", [0.05, 0.1, 0.2])
def test_any_pattern_over_the_image_lowers_the_score(clean, strength):
    rng = np.random.default_rng(5)
    checks = np.where(np.indices((32, 32)).sum(0) % 2, 1, -1)[None, ..., None]
    stripes = np.where(np.arange(32) % 4 == 3, 2, 0)[None, None, :, None]
    noise = rng.standard_normal(clean.shape)
    coarse = world._blobs(rng, np.full(len(clean), 1.2, np.float32))[..., None]
    inside = truth.take_apart(clean).inside[..., None]
    patterns = (checks, stripes, noise, coarse, coarse * inside, coarse * ~inside)
    for pattern in patterns:
        assert _score(clean + strength * pattern) < _score(clean) - 0.5 * strength


def test_smearing_a_grainy_image_gains_little(middling):
    """Smoothing removes the grain and the edges alike."""
    grainy = _drawn(edge_width=1.5, raggedness=0, mottle=0.12, grain=0.12, dullness=0)
    assert max(_score(_blurred(grainy, sigma)) for sigma in (0.5, 0.8, 1.2, 2, 3)) < _score(grainy) + 0.05


def test_images_without_a_shape_score_nothing():
    shape = (len(PROMPTS), 32, 32, 3)
    noise = np.random.default_rng(6).standard_normal(shape) * 0.5
    blanks = (np.zeros(shape), np.ones(shape), np.broadcast_to(COLOUR, shape), noise, np.full(shape, np.nan))
    for blank in (*blanks, _on_grey(_disc(4)), np.full(shape, np.inf)):
        for prompts in (PROMPTS, None):
            assert truth.aesthetic(blank.astype(np.float32), prompts).max() < 0.1


def test_blobs_and_simpler_shapes_score_low(clean):
    others = [index for index, prompt in enumerate(PROMPTS) if not prompt.endswith("circle")]
    prompts = [PROMPTS[index] for index in others]
    for cover in (_disc(10), _disc(11), _disc(9, 4), _disc(9, 14)):
        scores = truth.aesthetic(np.broadcast_to(_on_grey(cover), clean.shape)[others].astype(np.float32), prompts)
        assert scores.max() < 0.2 and scores.mean() < 0.05, "a circle is not a star"
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:32, :32] - 15.5
    angle = np.arctan2(y, x)
    radius = np.hypot(x, y)
    waves = sum(
        rng.normal(0, 0.15, (len(PROMPTS), 1, 1)) * np.cos(k * angle + rng.uniform(0, 7, (len(PROMPTS), 1, 1)))
        for k in (2, 3, 4)
    )
    blobs = _on_grey(np.clip(0.5 - (radius - 9 * np.exp(waves)), 0, 1).astype(np.float32))
    assert _score(blobs) < 0.2
    assert _score(blobs, None) < _score(clean) - 0.3, "even without a prompt"


def test_half_a_shape_and_several_shapes_score_low(clean):
    half = np.where(np.arange(32)[None, None, :, None] < 16, clean, 0)
    assert _score(half, None) < 0.1
    small = clean[:, ::2, ::2]
    assert _score(np.tile(small, (1, 2, 2, 1)), None) < 0.1


def test_another_colour_scores_low(clean):
    for order in ([1, 2, 0], [2, 1, 0]):
        assert _score(clean[..., order], None) < _score(clean) - 0.1
        assert _score(clean[..., order]) < 0.3
    assert _score(-clean) < 0.05


def test_blurred_greys_under_crisp_colours_lower_the_score(clean):
    grey = clean.mean(-1, keepdims=True)
    assert _score(clean - grey + _blurred(grey, 1.5)) < _score(clean) - 0.03


def test_scores_do_not_depend_on_the_batch(real):
    images, prompts, _ = real
    together = truth.aesthetic(images[:20], prompts[:20])
    alone = [truth.aesthetic(images[i : i + 1], prompts[i : i + 1])[0] for i in range(20)]
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_a_prompt_outside_the_toy_world_is_refused(clean):
    with pytest.raises(UserError, match="outside the toy world"):
        truth.accuracy(clean[:1], ["a red dog"])


def test_a_tinted_background_and_a_ragged_outline_lower_the_score(clean):
    """Two holes that a blind search over latents found in an earlier form of this ground truth."""
    parts = truth.take_apart(clean)
    cover = np.clip(parts.cover, 0, 1)[..., None]
    tint = np.float32([0.15, -0.15, 0])
    assert _score(clean + (1 - cover) * tint) < _score(clean) - 0.1
    # Along the outline, every other pair of pixels goes to the other side.
    pairs = (np.indices((32, 32)) // 2).sum(0) % 2 == 0
    near = ndimage.uniform_filter(parts.inside.astype(np.float32), (1, 3, 3))
    edge = (near > 0.01) & (near < 0.99)
    flipped = np.where(edge & pairs, ~parts.inside, parts.inside)[..., None]
    ragged = np.where(flipped, COLOUR, parts.background)
    plain = np.where(parts.inside[..., None], COLOUR, parts.background)
    assert _score(ragged, None) < _score(plain, None) - 0.2


def test_rounded_corners_are_no_better_than_notches(clean):
    """Smoothing an outline lowers the term for it, as roughening it does."""
    parts = truth.take_apart(clean)
    smooth = ndimage.gaussian_filter(parts.cover, (0, 2, 2), mode="nearest")
    rounded = np.clip(0.5 + 4 * (smooth - 0.5), 0, 1)[..., None]
    images = (parts.background + rounded * (COLOUR - parts.background)).astype(np.float32)
    cornered = [index for index, prompt in enumerate(PROMPTS) if prompt.endswith(("star", "cross", "triangle"))]
    before = truth.aesthetic_terms(clean, PROMPTS)["trim"]
    after = truth.aesthetic_terms(images, PROMPTS)["trim"]
    assert before.min() > 0.95 and after[cornered].max() < 0.8


def test_one_ruined_term_ruins_the_score(clean):
    noise = np.random.default_rng(8).standard_normal(clean.shape) * 0.35
    for ruined in (clean + noise, _blurred(clean, 3), _saturated(clean, 0.1)):
        assert _score(ruined) < 0.5
