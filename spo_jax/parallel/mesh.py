"""The one mesh of a run, and how batches lie on it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from spo_jax.core.config import Settings, setting
from spo_jax.core.errors import UserError
from spo_jax.core.typing import Array, PyTree

# Batches are cut over both axes; frozen weights, if at all, over the second.
AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class MeshSettings(Settings):
    """Number of devices along each axis of the mesh; -1, for one of them, stands for all that the other leaves."""

    GROUP: ClassVar = "mesh."

    data: int = setting(-1, "Devices (or groups of fsdp devices) that each hold all weights and share the batch.")
    fsdp: int = setting(1, "Devices that share one copy of the frozen weights, cut over them.")

    def __post_init__(self):
        super().__post_init__()
        if min(self.data, self.fsdp) < -1 or 0 in (self.data, self.fsdp) or self.data == self.fsdp == -1:
            raise UserError(
                f"config fields mesh.data = {self.data}, mesh.fsdp = {self.fsdp}: expected 1 or more, or -1 for one "
                "of the two"
            )


def make_mesh(settings: MeshSettings = MeshSettings(), devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh with axes ``data`` and ``fsdp``.

    Args:
      devices: all of all processes by default. Fewer are used, in order, if the settings name fewer and there is one
        process.

    Raises:
      UserError: the sizes do not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    data, fsdp = settings.data, settings.fsdp
    total, known = len(devices), math.prod(size for size in (data, fsdp) if size != -1)
    if -1 in (data, fsdp):
        fits, data, fsdp = total % known == 0, *(total // known if size == -1 else size for size in (data, fsdp))
    else:
        fits = known == total or (known < total and jax.process_count() == 1)
    if not fits:
        raise UserError(
            f"config fields mesh.data = {settings.data}, mesh.fsdp = {settings.fsdp}: do not fit the {total} devices "
            "here; their product has to be the number of devices, and -1 stands for what the other leaves"
        )
    if known == data * fsdp < total:
        return Mesh(np.asarray(devices[:known]).reshape(data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2)
    return jax.make_mesh((data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Cut along ``axis`` over all devices."""
    return NamedSharding(mesh, _batch_spec(axis))


def _batch_spec(axis: int) -> PartitionSpec:
    return PartitionSpec(*[None] * axis, AXES)


def devices_in_context() -> int:
    """The number of devices of the mesh that `jax.set_mesh` has put in context; 1 without."""
    return jax.sharding.get_abstract_mesh().size or 1


def platform_in_context() -> str:
    """``"tpu"``, ``"gpu"`` or ``"cpu"``: of the mesh in context, or else of the default device."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (device or jax.devices()[0]).platform


def spread(tree: PyTree, axis: int = 0) -> PyTree:
    """Inside jit: lays ``axis`` of every array over all devices of the mesh in context; nothing without a mesh."""
    return _constrained(tree, _batch_spec(axis))


def spread_rows(x: Array) -> Array:
    """Inside jit: `spread` of activations inside a network, where the devices divide their rows; else nothing.

    Weights that are cut on their outputs would else draw the activations behind them into the same cut, and XLA would
    gather those, which are larger.
    """
    return x if x.shape[0] % devices_in_context() else spread(x)


def gathered(tree: PyTree) -> PyTree:
    """Inside jit: every array whole on every device of the mesh in context; nothing without a mesh."""
    return _constrained(tree, PartitionSpec())


def _constrained(tree: PyTree, spec: PartitionSpec) -> PyTree:
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spec), tree)


def check_divides(field: str, size: int, mesh: Mesh) -> None:
    """Raises a `UserError` unless the batch of ``size`` can be cut evenly over all devices."""
    if size % mesh.size:
        near = " or ".join(str(n) for n in (size // mesh.size * mesh.size, -(-size // mesh.size) * mesh.size) if n)
        raise UserError(
            f"config field {field} = {size}: expected a multiple of the {mesh.size} devices, such as {near}; or use "
            "fewer devices with --config.mesh.data"
        )
