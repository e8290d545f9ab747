"""The measure of what is decided late sees less of it the later images divert."""

import dataclasses

import pytest

from spo_jax.build_toy.late import within_parents
from spo_jax.methods.spo.settings import SPOTrainSettings
from spo_jax.toy import world
from spo_jax.toy.truth import DETAILS


def _measured(steps, start, parents):
    settings = SPOTrainSettings()
    spo = dataclasses.replace(settings.spo, num_steps=steps, divert_start_step=start)
    return within_parents(dataclasses.replace(settings, model="toy", spo=spo), world.TRAIN_PROMPTS[:parents])


def test_every_detail_has_a_share_and_a_spread():
    found = _measured(2, 1, 2)
    assert found.keys() == set(DETAILS)
    assert all(0 <= share <= 1 and spread >= 0 for share, spread in found.values())


@pytest.mark.slow
def test_images_that_divert_later_differ_less():
    early = _measured(20, 5, 8)
    late = _measured(20, 18, 8)
    for name in DETAILS:
        assert late[name][1] < 0.8 * early[name][1], name
