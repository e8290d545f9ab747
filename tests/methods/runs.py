"""Runs of any method in the test's own process: on one device or on eight, whole or interrupted.

A run is made from settings as the trainer makes it, except that no images are drawn before and after. Settings should
name models that compile in seconds (`tests/e2e/micro.py`) and `TINY_EVAL`, and ask for a few batches:

    def test_it_resumes_to_the_bit(settings, tmp_path):
        assert_resumes_to_the_bit(settings, tmp_path)

    @pytest.mark.slow
    def test_eight_devices_are_one(settings, tmp_path):
        assert_devices_agree(settings, tmp_path)
"""

import contextlib
import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from spo_jax.core.trees import flatten
from spo_jax.methods import load_method
from spo_jax.methods.common.settings import EvalSettings
from spo_jax.parallel.mesh import MeshSettings, make_mesh
from spo_jax.parallel.sharding import make, to_host
from spo_jax.run.checkpoint import Checkpointer
from spo_jax.run.folder import restore, state_items
from spo_jax.run.loop import Row, run_keys
from spo_jax.run.settings import RunSettings

TINY_EVAL = EvalSettings(images=1, batch=1, steps=1, grid_images=1, rewards="tests.e2e.redness")
TIMING = ("seconds", "pairs_per_second", "images_per_second")  # groups of curves that differ from run to run


class Trained(NamedTuple):
    """What a run ended with.

    Attributes:
      state: the whole state on the host.
      rows: the row of each batch, without timings.
      run: the run.
      programs: its compiled programs.
    """

    state: Any
    rows: list[Row]
    run: Any
    programs: Mapping[str, Any]


def train(
    settings: RunSettings,
    folder: Path,
    devices: int = 1,
    stop: int = 0,
    programs: Mapping[str, Any] | None = None,
) -> Trained:
    """Trains all batches of a run.

    Args:
      settings: settings of any method; ``mesh`` is replaced.
      folder: folder of the run.
      devices: number of devices that share a batch.
      stop: number of batches after which the state is saved, and a new run goes on from what was saved (0: never).
      programs: programs of another run with the same settings, for tests that have no time to compile them again.
    """
    settings = dataclasses.replace(settings, mesh=MeshSettings(data=devices))
    method = load_method(settings.method)
    mesh = make_mesh(settings.mesh)
    rows: list[Row] = []
    with jax.set_mesh(mesh), Checkpointer(folder / "checkpoints") as checkpointer:

        def part(first: int, last: int | None) -> Trained:
            """Trains some of the batches, from a state that was saved unless they are the first."""
            data = method.read_data(settings)
            run = method.setup(settings, mesh, data, folder)
            init_key, key = make(lambda: run_keys(settings.seed), mesh)
            state = run.init_state(init_key)
            own = programs or {name: program.lower().compile() for name, program in run.trace(state).items()}
            if first:
                done, state, _ = restore(checkpointer, state, run.total)
                assert done == first
            with contextlib.closing(run.batches(first)) as batches:
                for number in range(first, run.total if last is None else last):
                    state, row = run.step(own, batches, number, state, key)
                    rows.append({name: x for name, x in row.items() if name.partition("/")[0] not in TIMING})
            return Trained(state, rows, run, own)

        if stop:
            checkpointer.save(stop, state_items(part(0, stop).state), {})
            checkpointer.wait()
        trained = part(stop, None)
        return trained._replace(state=to_host(trained.state))


def assert_resumes_to_the_bit(settings: RunSettings, folder: Path, stop: int = 1, devices: int = 1) -> Trained:
    """Checks that a run that was interrupted has the rows and the whole state of one that was not, bit for bit.

    Returns:
      The run that was not interrupted, for tests of what it trained.
    """
    whole = train(settings, folder / "whole", devices)
    parts = train(settings, folder / "parts", devices, stop, whole.programs)
    assert 0 < stop < len(whole.rows)
    assert parts.rows == whole.rows
    assert jax.tree.structure(parts.state) == jax.tree.structure(whole.state)
    for one, other in zip(jax.tree.leaves(parts.state), jax.tree.leaves(whole.state), strict=True):
        np.testing.assert_array_equal(one, other)
    assert_moved(whole)
    return whole


def assert_devices_agree(
    settings: RunSettings,
    folder: Path,
    devices: int = 8,
    rows: float = 1e-4,
    weights: float = 1e-5,
    decided_by_rounding: Collection[str] = (),
    without_gradient: str = "",
) -> None:
    """Checks that a run on several devices is the run on one, up to the order in which float32 sums are rounded.

    Args:
      settings: settings of the run, whose batch sizes the devices divide.
      folder: folder of the runs.
      devices: number of devices.
      rows: largest difference of values in the rows, relative beyond 1 and absolute below.
      weights: largest difference of all trained weights together, relative to their size. AdamW divides by the size
        of a gradient, so that single weights whose gradient is about 0 follow its rounding.
      decided_by_rounding: values of the rows that are not compared, such as a share of pairs whose margin is 0.
      without_gradient: end of the names of weights that are not compared, because their gradient is rounding alone.
    """
    one = train(settings, folder / "one")
    many = train(settings, folder / "many", devices)
    assert [row.keys() for row in many.rows] == [row.keys() for row in one.rows]
    for found, wanted in zip(many.rows, one.rows, strict=True):
        for name, value in wanted.items():
            if name in decided_by_rounding:
                continue
            np.testing.assert_allclose(found[name], value, rtol=rows, atol=rows, err_msg=name)
    compared = [name for name in _weights(one) if not (without_gradient and name.endswith(without_gradient))]
    found, wanted = (np.concatenate([_weights(run)[name].ravel() for name in compared]) for run in (many, one))
    assert np.linalg.norm(found - wanted) <= weights * np.linalg.norm(wanted)
    assert_moved(one)


def assert_moved(trained: Trained) -> None:
    """Checks that training changed the weights: an idle run would pass any comparison.

    B of an adapter is zero at first, and the rows of a judge have its scale before each step.
    """
    moved = [np.abs(value).max() for name, value in _weights(trained).items() if name.endswith("lora_B")]
    if not moved:
        scales = [row["logit_scale"] for row in trained.rows]
        moved = [max(scales) - min(scales)]
    assert max(moved) > 0


def _weights(trained: Trained) -> dict[str, np.ndarray]:
    return flatten(trained.state.params)
