"""Settings of mesh and processes, which can be read before jax is imported."""

import dataclasses
from typing import ClassVar

from spo_jax.core.config import Settings, setting
from spo_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class MeshSettings(Settings):
    """Number of devices along each axis of the mesh; -1, for one of them, takes all devices that the other leaves."""

    GROUP: ClassVar = "mesh."

    data: int = setting(
        -1, "Devices (or groups of fsdp devices) that each hold all weights and share the batch.", at_most=2**20
    )
    fsdp: int = setting(
        1, "Devices that share one copy of the frozen weights, cut over them.", at_most=2**20, memory="raise"
    )

    def __post_init__(self):
        super().__post_init__()
        if min(self.data, self.fsdp) < -1 or 0 in (self.data, self.fsdp) or self.data == self.fsdp == -1:
            raise UserError(
                f"config fields mesh.data = {self.data}, mesh.fsdp = {self.fsdp}: expected 1 or more, or -1 for one "
                "of the two"
            )


def check_processes(address: str, processes: int, index: int) -> bool:
    """Checks the flags that name a run's other processes; returns whether they are given.

    Args:
      address: ``HOST:PORT`` of process 0; empty if it is not given.
      processes: number of processes; 0 if it is not given.
      index: number of this process; negative if it is not given.

    Raises:
      UserError: the flags contradict each other.
    """
    given = (bool(address), processes > 0, index >= 0)
    if any(given) and not all(given):
        raise UserError("--coordinator-address, --num-processes and --process-id belong together: give all three")
    if any(given) and index >= processes:
        raise UserError(f"--process-id={index}: expected 0 to {processes - 1}")
    return any(given)
