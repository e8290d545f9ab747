"""Several processes that run one program: how they join, and how each loads its own part of a batch."""

from collections.abc import Collection, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from spo_jax.core.errors import UserError
from spo_jax.core.progress import hide, stage
from spo_jax.core.typing import Int, PyTree
from spo_jax.parallel.mesh import over_batch
from spo_jax.parallel.settings import check_processes


def join(multihost: bool, address: str = "", processes: int = 0, index: int = -1) -> None:
    """Joins the other processes of the run; it must be called before anything else uses a device.

    Args:
      multihost: whether to find the other processes by the cluster's own means (TPU pod, GKE, Slurm, Open MPI).
      address: ``HOST:PORT`` of process 0, for a cluster that jax does not know; the two other arguments are then
        needed.
      processes: number of processes.
      index: number of this process.

    Raises:
      UserError: the flags contradict each other, or the other processes cannot be found.
    """
    by_hand = check_processes(address, processes, index)
    if not (multihost or by_hand):
        return
    arguments = {"coordinator_address": address, "num_processes": processes, "process_id": index}
    try:
        with stage("joining the other processes"):
            jax.distributed.initialize(**(arguments if by_hand else {}))
    except (RuntimeError, ValueError) as error:
        hint = "the address, and that all processes were started" if by_hand else "that this is a cluster"
        raise UserError(f"cannot join the other processes: {str(error).splitlines()[0]}; check {hint}") from error
    if not is_writer():
        hide()


def is_writer() -> bool:
    """Whether this process writes the files that exist once per run: curves, images, reports."""
    return jax.process_index() == 0


def local_positions(batch_size: int) -> Int[np.ndarray, " p"]:
    """Finds the rows of a batch that lie on this process's devices of the mesh in context, ascending.

    Random draws follow a row's place in the whole batch, so the rows that a process loads have to follow the mesh,
    which need not hold the processes' devices one process after the other. Without a mesh, all rows are local.

    Args:
      batch_size: rows of the whole batch.

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
    """Finds the rows of a batch that lie on some of the devices, ascending.

    Args:
      indices: slices of each device, as `jax.sharding.Sharding.devices_indices_map` returns them.
      devices: the devices in question.
      size: rows of the whole batch.
    """
    return np.unique(np.concatenate([np.arange(size)[indices[device][0]] for device in devices]))


def join_parts(tree: PyTree) -> PyTree:
    """Joins the processes' parts, which are host arrays, to global arrays that are cut over the mesh in context.

    A process's rows are those at its `local_positions`, in that order. Without a mesh, arrays are returned unchanged.
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
    """Selects the rows that belong to one slice of a batch.

    Args:
      x: rows of the batch at ``positions``.
      positions: ascending positions in the batch.
      where: a slice of the batch.
    """
    begin, end = np.searchsorted(positions, (where.start or 0, where.stop or positions[-1] + 1))
    return x[begin:end]
