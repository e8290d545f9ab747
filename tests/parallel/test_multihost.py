"""The rows that a process loads follow the mesh, in any order of the processes' devices."""

import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from spo_jax.core.errors import UserError
from spo_jax.parallel.mesh import AXES, make_mesh, over_batch
from spo_jax.parallel.multihost import join, join_parts, local_positions, positions_on, rows_at


def test_one_process_holds_the_whole_batch():
    x = np.arange(32).reshape(16, 2)
    np.testing.assert_array_equal(local_positions(5), np.arange(5))
    assert join_parts(x) is x
    with jax.set_mesh(make_mesh()):
        np.testing.assert_array_equal(local_positions(16), np.arange(16))
        joined = join_parts({"x": x})["x"]
        assert joined.sharding.is_equivalent_to(over_batch(make_mesh()), 2)
        np.testing.assert_array_equal(joined, x)


def test_devices_that_do_not_divide_the_batch():
    with (
        jax.set_mesh(make_mesh()),
        pytest.raises(UserError, match="a batch of 12 pairs: expected a multiple of the 8 d"),
    ):
        local_positions(12)


@pytest.mark.parametrize(
    "order, expected",
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]),
        ([0, 4, 1, 5, 2, 6, 3, 7], [0, 1, 4, 5, 8, 9, 12, 13]),
        ([7, 6, 5, 4, 3, 2, 1, 0], [8, 9, 10, 11, 12, 13, 14, 15]),
        ([4, 0, 1, 5, 6, 7, 3, 2], [2, 3, 4, 5, 12, 13, 14, 15]),
    ],
)
@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
def test_positions_of_half_the_devices(order, expected, shape):
    """The first four devices stand for those of one process; every device holds two rows of sixteen."""
    devices = jax.devices()
    mesh = Mesh(np.asarray([devices[i] for i in order]).reshape(shape), AXES)
    indices = over_batch(mesh).devices_indices_map((16,))
    positions = positions_on(indices, set(devices[:4]), 16)
    np.testing.assert_array_equal(positions, expected)
    # And back: every device receives its own rows among those that its process has loaded.
    for device in devices[:4]:
        where = indices[device][0]
        np.testing.assert_array_equal(rows_at(positions * 10, positions, where), np.arange(16)[where] * 10)


def test_two_processes_whose_devices_alternate():
    """Each provides the rows at its own positions, and the whole is in order."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    root = Path(__file__).resolve().parents[2]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, address, str(index)],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    for process, expected in zip(processes, ("[0, 1, 4, 5]", "[2, 3, 6, 7]"), strict=True):
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error[-4000:]
        assert out.splitlines()[-1] == f"{expected} -> [0, 10, 20, 30, 40, 50, 60, 70]"


_PROCESS = """
import sys
import jax
import numpy as np
address, index = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(address, 2, int(index))
from spo_jax.parallel.mesh import AXES
from spo_jax.parallel.multihost import join_parts, local_positions
from spo_jax.parallel.sharding import to_host
first, second = ([d for d in jax.devices() if d.process_index == i] for i in range(2))
mesh = jax.sharding.Mesh(np.asarray([first[0], second[0], first[1], second[1]]).reshape(4, 1), AXES)
with jax.set_mesh(mesh):
    positions = local_positions(8)
    print(positions.tolist(), "->", to_host(join_parts(positions * 10)).tolist())
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((True, "host:1"), "--coordinator-address, --num-processes and --process-id belong together: give all three"),
        ((False, "", 2, 0), "--coordinator-address, --num-processes and --process-id belong together: give all three"),
        ((False, "host:1", 2, 2), "--process-id=2: expected 0 to 1"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(arguments, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        join(*arguments)


def test_a_single_process_joins_nobody(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("joined"))
    join(False)
