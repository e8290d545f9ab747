"""Versions of everything that determines a run's numbers."""

import importlib.metadata
import platform
from typing import Any

_NAMES = ("spo_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def library_versions() -> dict[str, str]:
    """Collects the versions of Python and of the libraries that determine numbers."""
    found = {}
    for name in _NAMES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return {"python": platform.python_version(), **found}


def versions(mesh: Any) -> dict[str, str]:
    """Adds the devices of the mesh to `library_versions`."""
    device = mesh.devices.flat[0]
    return library_versions() | {"device": f"{mesh.size} x {device.device_kind}"}
