"""Checkpoints of two real processes: process 0 decides which one is whole, and nobody waits for ever."""

from tests.support.processes import two_processes

_CODE = """
import shutil
from pathlib import Path
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from spo_jax.run.checkpoint import Checkpointer

shared, own = (Path(folder) for folder in sys.argv[3:])
mesh = Mesh(np.array(jax.devices()), "data")
spread = NamedSharding(mesh, PartitionSpec("data"))


def items(seed):
    make = lambda: {"rest": {"x": jnp.arange(64.0) + seed, "key": jax.random.key(seed)}}
    shardings = {"rest": {"x": spread, "key": NamedSharding(mesh, PartitionSpec())}}
    return jax.jit(make, out_shardings=shardings)()


def truncate(folder):
    file = max((folder / "rest").rglob("d/*"), key=lambda file: file.stat().st_size)
    file.write_bytes(file.read_bytes()[:10])


def restored(folder):
    with Checkpointer(folder) as checkpointer:
        step, found, meta = checkpointer.restore_latest(items(0))
        mine = np.asarray(found["rest"]["x"].addressable_shards[0].data)
        np.testing.assert_array_equal(mine, np.arange(64.0)[jax.process_index() * 32:][:32] + step)
        assert meta == {"step": step}
        if step == 2:
            checkpointer.save(3, items(3), {"step": 3})
    return step


@agreement.ending_together()
def main(_):
    with Checkpointer(shared) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, items(step), {"step": step})
    agreement.decided(lambda: truncate(shared / "3"))
    print([restored(shared), restored(shared)], sorted(path.name for path in shared.iterdir()), flush=True)
    # Process 1 sees another disk, on which a file is truncated.
    if jax.process_index() == 1:
        shutil.copytree(shared, own)
        truncate(own / "3")
    agreement.decided(lambda: None)
    restored(own)


run_command(main, ["program"])
"""


def test_damage_that_all_see_is_set_aside_and_damage_that_one_sees_ends_all(tmp_path):
    shared = tmp_path / "shared"
    zero, one = two_processes(_CODE, ((shared, shared), (shared, tmp_path / "own")))
    for process in (zero, one):
        assert process.status == 2, process.err[-4000:]
        assert process.out.splitlines()[-1] == "[2, 3] ['1', '2', '3', '3.damaged']"
        assert "/3 is whole for process 0 and damaged for process 1: " in process.err.splitlines()[-1]
        assert "bytes instead of" in process.err and "Traceback" not in process.err
    assert sorted(path.name for path in shared.iterdir()) == ["1", "2", "3", "3.damaged"]
