"""TPUs that programs can be compiled for without one: topologies by name, and figures of their chips.

The compiler is in the ``libtpu`` wheel. `jax.experimental.topologies` gives devices that make a mesh like any others,
except that nothing can run on them.
"""

import dataclasses
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from benchmarks.flops import peak_flops
from spo_jax.core.errors import UserError
from spo_jax.core.memory import GIB


@dataclasses.dataclass(frozen=True)
class Chip:
    """Figures of a chip, from its maker.

    Attributes:
      name: generation.
      hbm: bytes of memory.
      bandwidth: bytes per second that memory moves.
      peak_flops: 16-bit operations per second.
      clock: cycles per second.
      lanes: rows and columns of a matrix unit.
    """

    name: str
    hbm: int
    bandwidth: float
    peak_flops: float
    clock: float
    lanes: int


# From Google Cloud's data sheets: GiB, GB/s; then GHz and the side of a matrix unit, from which the peaks follow (a v5e
# has 4 units of 128 x 128 at 1.5 GHz: 4 x 128 x 128 x 2 x 1.5e9 = 197e12). The first name that a device kind starts
# with is taken.
_CHIPS = (
    ("TPU v6", "v6e", 32, 1640, 1.75, 256),
    ("TPU v5 lite", "v5e", 16, 819, 1.5, 128),
    ("TPU v5", "v5p", 95, 2765, 1.75, 128),
    ("TPU v4", "v4", 32, 1228, 1.05, 128),
)


def find_topology(name: str) -> list[jax.Device]:
    """Returns the devices of a TPU topology.

    Args:
      name: generation and shape, such as ``v5e:2x4`` or ``v5p:2x2x1``; ``v5e:1x1`` is a single chip.

    Raises:
      UserError: there is no TPU compiler here, or it does not know the name.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("the TPU compiler is not installed: expected the wheel libtpu; run pip install 'jax[tpu]'")
    # Without these the library looks for the TPU machine that it runs on: it asks a server, warns and locks a file.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")  # any value works, because the name decides
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # Hosts have 2 by 2 chips unless the library is told otherwise, so it would refuse a single chip.
    host = {"chips_per_host_bounds": (1, 1, 1)} if _chips(name) == 1 else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **host).devices)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        expected = "a name such as v5e:1x1, v5e:2x4, v6e:2x4, v5p:2x2x1"
        raise UserError(f"--topology={name}: {reason}: expected {expected}") from error


def _chips(name: str) -> int:
    """Returns the number of chips in the name of a topology; 0 if the name has no shape."""
    shape = re.search(r":(\d+(?:x\d+)*)$", name)
    return math.prod(int(side) for side in shape[1].split("x")) if shape else 0


def chip_of(device: jax.Device) -> Chip:
    """Returns the figures of a device's chip.

    Raises:
      UserError: its generation is not in the table.
    """
    for kind, name, gib, bandwidth, clock, lanes in _CHIPS:
        if device.device_kind.startswith(kind):
            return Chip(name, gib * GIB, bandwidth * 1e9, peak_flops(device), clock * 1e9, lanes)
    raise UserError(f"--topology: {device.device_kind} is not in the table of chips in {__name__}")
