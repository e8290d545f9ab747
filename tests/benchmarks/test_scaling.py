"""The growth of cost: slopes and expectations by hand, and the tables, files and work of real subjects."""

from types import SimpleNamespace

import jax
import pytest

from benchmarks import scaling
from benchmarks.flops import count
from benchmarks.subjects import read_settings
from spo_jax.core.files import read_json


def test_slopes():
    rows = [{"value": n, "seconds": 0.1 * n**2} for n in (1, 2, 4)]
    assert scaling.slope(rows, "seconds") == pytest.approx(2)
    assert scaling.slope(rows[:1], "seconds") is None


def test_expectations_start_at_the_first_point():
    rows = scaling.with_expectations([{"seconds": 2.0, "work": 10.0}, {"seconds": 9.0, "work": 40.0}])
    assert [row["expected_seconds"] for row in rows] == [2.0, 8.0]


@pytest.fixture
def measured(monkeypatch):
    """Whole batches as `benchmarks.train` would report them: 3 s on any number of devices, and work per prompt."""

    def build(size, settings, decoder):
        assert (size, decoder) == ("micro", "vae")
        return SimpleNamespace(settings=settings, mesh=jax.sharding.get_mesh())

    def measure(subject, warmup, repeats):
        prompts = subject.settings.prompts_per_batch
        assert subject.mesh.size in (1, 2) and (warmup, repeats) == (1, 3)
        return {
            "seconds": {"median": 3.0},
            "seconds_rollout": 2.0,
            "seconds_update": 1.0,
            "compile_seconds": 9.0,
            "flops_rollout": 100.0 * prompts,
            "flops_update": 50.0 * prompts,
        }

    monkeypatch.setattr(scaling, "build", build)
    monkeypatch.setattr(scaling.train, "measure", measure)


def test_tables_and_plot(measured, tmp_path):
    """Twice the prompts are twice the work; simulated devices share one processor and take the same time."""
    rows = {
        axis: scaling.measure(axis, values, "micro", [], "vae", (1, 3))
        for axis, values in (("prompts", [2, 4]), ("devices", [1, 2]))
    }
    assert [row["expected_seconds"] for row in rows["prompts"]] == [3.0, 6.0]
    assert [row["expected_seconds"] for row in rows["devices"]] == [3.0, 3.0]
    scaling.write(tmp_path, read_settings("micro"), "micro", "vae", rows)
    found = read_json(tmp_path / "scaling-micro-cpu.json")["results"]
    assert found["prompts"]["slope"] == 0 and found["prompts"]["expected_slope"] == pytest.approx(1)
    table = (tmp_path / "scaling-micro-cpu.md").read_text()
    assert "| 4 | 3 | 2 | 1 | 6 |" in table and "measured 0.00, expected 1.00" in table
    assert (tmp_path / "scaling-micro-cpu.png").read_bytes().startswith(b"\x89PNG")


def test_larger_latents_are_more_work(micro, one_device):
    with jax.set_mesh(one_device):
        larger = scaling.with_latents(micro, 16)
        assert larger.spo.pipeline.latent_shape == (16, 16, 4)
        arguments = (micro.run.state_shapes().params, micro.frozen, micro.inputs, micro.keys(1)[0])
        assert count(larger.spo.collect, *arguments) > 3 * count(micro.traced["collect"])


@pytest.mark.parametrize(("axis", "size", "largest"), [("resolution", "sd15", 96), ("prompts", "toy", 16)])
def test_points(axis, size, largest):
    assert scaling.points(axis, size)[-1] == largest
