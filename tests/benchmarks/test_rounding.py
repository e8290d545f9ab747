"""The weights of predictions in steps, which `docs/parity.md` quotes."""

import pytest

from benchmarks.rounding import weights
from spo_jax.diffusion.ddpm import make_ddpm
from spo_jax.diffusion.schedule import ScheduleConfig

SCHEDULE = ScheduleConfig(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1)


def test_only_the_last_step_but_one_is_sensitive_to_rounding():
    process = make_ddpm(SCHEDULE, 20)
    found = dict(zip(process.timesteps.tolist(), weights(process, process.timesteps, 1.0), strict=True))
    assert found.pop(51) == pytest.approx(5.43, abs=0.01)
    assert 0.6 < min(found.values()) and max(found.values()) < 1.15
