"""The mesh of a run, and the layout of batches on it."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Array, PyTree
from spo_jax.parallel.settings import MeshSettings

# Batches are cut over both axes, frozen weights over the second axis or not at all.
AXES = ("data", "fsdp")


def make_mesh(settings: MeshSettings | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes the mesh with axes ``data`` and ``fsdp``.

    Args:
      settings: number of devices along each axis; None takes all of them for data.
      devices: devices of the mesh; by default all devices of all processes. If there is one process and the settings
        name fewer devices, only the first ones are used.

    Raises:
      UserError: the sizes do not fit the number of devices.
    """
    settings = settings or MeshSettings()
    devices = jax.devices() if devices is None else devices
    total = len(devices)
    data = settings.data
    fsdp = settings.fsdp
    known = math.prod(size for size in (data, fsdp) if size != -1)
    if -1 in (data, fsdp):
        fits = total % known == 0
        data, fsdp = (total // known if size == -1 else size for size in (data, fsdp))
    else:
        fits = known == total or (known < total and jax.process_count() == 1)
    if not fits:
        raise UserError(
            f"config fields mesh.data = {settings.data}, mesh.fsdp = {settings.fsdp}: do not fit the {total} devices "
            "here; their product has to be the number of devices, and -1 takes what the other leaves"
        )
    if known == data * fsdp < total:
        return Mesh(np.asarray(devices[:known]).reshape(data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2)
    return jax.make_mesh((data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that are whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Returns the sharding of arrays that are cut along ``axis`` over all devices."""
    return NamedSharding(mesh, _batch_spec(axis))


def _batch_spec(axis: int) -> PartitionSpec:
    return PartitionSpec(*[None] * axis, AXES)


def devices_in_context() -> int:
    """Returns the number of devices of the mesh that `jax.set_mesh` has put in context, or 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().size or 1


def platform_in_context() -> str:
    """Returns ``"tpu"``, ``"gpu"`` or ``"cpu"``, the platform of the mesh in context or else of the default device."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (device or jax.devices()[0]).platform


def spread(tree: PyTree, axis: int = 0) -> PyTree:
    """Cuts ``axis`` of every array over all devices of the mesh in context, inside jit; does nothing without a mesh."""
    return _constrained(tree, _batch_spec(axis))


def spread_rows(x: Array) -> Array:
    """Spreads the rows of a network's activations inside jit, unless the devices do not divide their number.

    Otherwise weights that are cut on their outputs would draw the activations behind them into the same cut, and XLA
    would gather those, which are larger. Not for use inside `jax.shard_map`, where every device has its own rows.
    """
    return x if x.shape[0] % devices_in_context() else spread(x)


def gathered(tree: PyTree) -> PyTree:
    """Makes every array whole on every device of the mesh in context, inside jit; does nothing without a mesh."""
    return _constrained(tree, PartitionSpec())


def _constrained(tree: PyTree, spec: PartitionSpec) -> PyTree:
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spec), tree)


def check_divides(field: str, size: int, mesh: Mesh) -> None:
    """Raises a `UserError` unless the batch of ``size`` can be cut evenly over all devices.

    Args:
      field: config field that holds the size, for messages.
      size: number of rows of the batch.
      mesh: the mesh over which it is cut.
    """
    if size % mesh.size:
        below = size // mesh.size * mesh.size
        beyond = -(-size // mesh.size) * mesh.size
        near = " or ".join(str(n) for n in (below, beyond) if n)
        raise UserError(
            f"config field {field} = {size}: expected a multiple of the {mesh.size} devices, such as {near}; or use "
            "fewer devices with --config.mesh.data"
        )
