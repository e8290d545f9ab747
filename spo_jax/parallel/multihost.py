"""Several processes that run one program: joining them, and batches of which each loads its own part."""

from collections.abc import Collection, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Int, PyTree
from spo_jax.parallel.mesh import over_batch


def join(multihost: bool, address: str = "", processes: int = 0, index: int = -1) -> None:
    """Joins the other processes of the run; call it before anything else touches a device.

    Args:
      multihost: find the others by the cluster's own means (TPU pod, GKE, Slurm, Open MPI).
      address: ``HOST:PORT`` of process 0, for a cluster that jax does not know; then the other two are needed.

    Raises:
      UserError: the flags contradict each other, or the others cannot be found.
    """
    by_hand = (bool(address), processes > 0, index >= 0)
    if any(by_hand) and not all(by_hand):
        raise UserError("--coordinator-address, --num-processes and --process-id belong together: give all three")
    if any(by_hand) and index >= processes:
        raise UserError(f"--process-id={index}: expected 0 to {processes - 1}")
    if not (multihost or any(by_hand)):
        return
    arguments = {"coordinator_address": address, "num_processes": processes, "process_id": index}
    try:
        jax.distributed.initialize(**(arguments if any(by_hand) else {}))
    except (RuntimeError, ValueError) as error:
        hint = "the address, and that all processes were started" if any(by_hand) else "that this is a cluster"
        raise UserError(f"cannot join the other processes: {str(error).splitlines()[0]}; check {hint}") from error


def is_writer() -> bool:
    """Whether this process writes the files that there is one of: curves, pictures, reports."""
    return jax.process_index() == 0


def local_positions(batch_size: int) -> Int[np.ndarray, " p"]:
    """Which rows of a batch lie on this process's devices of the mesh in context, ascending; all without a mesh.

    Draws follow a row's place in the whole batch, so what a process loads has to follow the mesh, which need not hold
    the processes' devices one process after the other.

    Raises:
      UserError: the devices do not divide the batch.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return np.arange(batch_size)
    if batch_size % mesh.size:
        raise UserError(f"a batch of {batch_size} pairs: expected a multiple of the {mesh.size} devices")
    return _local_positions(mesh, batch_size)


def _local_positions(mesh: Mesh, batch_size: int) -> Int[np.ndarray, " p"]:
    sharding = over_batch(mesh)
    return positions_on(sharding.devices_indices_map((batch_size,)), sharding.addressable_devices, batch_size)


def positions_on(
    indices: Mapping[jax.Device, tuple[slice, ...]], devices: Collection[jax.Device], size: int
) -> Int[np.ndarray, " p"]:
    """Ascending, what the slices of some devices, as `jax.sharding.Sharding.devices_indices_map` has them, cover."""
    return np.unique(np.concatenate([np.arange(size)[indices[device][0]] for device in devices]))


def join_parts(tree: PyTree) -> PyTree:
    """The processes' parts, host arrays, as global arrays cut over the mesh in context; nothing without a mesh.

    A process's rows are those at its `local_positions`, in that order.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return tree
    return jax.tree.map(lambda x: _joined(mesh, np.asarray(x)), tree)


def _joined(mesh: Mesh, x: np.ndarray) -> jax.Array:
    sharding = over_batch(mesh)
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    size = len(x) // len(sharding.addressable_devices) * mesh.size
    positions = _local_positions(mesh, size)
    return jax.make_array_from_callback((size, *x.shape[1:]), sharding, lambda index: rows_at(x, positions, index[0]))


def rows_at(x: np.ndarray, positions: Int[np.ndarray, " p"], where: slice) -> np.ndarray:
    """Of the rows that lie at some ascending positions of a batch, those of one of its slices."""
    begin, end = np.searchsorted(positions, (where.start or 0, where.stop or positions[-1] + 1))
    return x[begin:end]


def agreed(value: int) -> int:
    """What process 0 says; called by all of them, and so they meet here."""
    return value if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int64(value)))
