"""Several processes, one program."""

import jax

from spo_jax.core.errors import UserError


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
