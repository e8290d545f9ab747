"""Versions of everything that determines a run's numbers."""

import importlib.metadata
import platform

from jax.sharding import Mesh

_NAMES = ("spo_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def versions(mesh: Mesh) -> dict[str, str]:
    """Collects the versions of Python and of the libraries that determine numbers, and the devices of the mesh."""
    found = {}
    for name in _NAMES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    device = mesh.devices.flat[0]
    return {"python": platform.python_version(), **found, "device": f"{mesh.size} x {device.device_kind}"}
