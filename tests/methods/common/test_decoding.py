"""How many images are decoded at a time: what the settings say, or what suits the platform."""

import pytest

from spo_jax.methods.common import decoding


@pytest.mark.parametrize(
    ("platform", "side", "expected"), [("tpu", 64, 8), ("tpu", 96, 8), ("tpu", 128, 4), ("gpu", 64, 4), ("cpu", 8, 4)]
)
def test_the_choice_is_the_platforms(monkeypatch, caplog, platform, side, expected):
    """Four below a size is what the TPU compiler splits; eight of 1,024 px would not fit."""
    monkeypatch.setattr(decoding, "platform_in_context", lambda: platform)
    with caplog.at_level("INFO", logger="absl"):
        assert decoding.images_at_a_time(0, (10, side, side, 4)) == expected
    assert f"decoding and judging {expected} images at a time" in caplog.text


def test_a_number_in_the_settings_is_taken(caplog):
    with caplog.at_level("INFO", logger="absl"):
        assert decoding.images_at_a_time(3, (64, 64, 4)) == 3
    assert not caplog.text
