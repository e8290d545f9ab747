"""Checkpoints of a run, written with orbax; damage is found and named before anything is trusted."""

import itertools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from spo_jax.core.errors import UserError
from spo_jax.core.memory import is_out_of_memory
from spo_jax.core.typing import PyTree
from spo_jax.parallel.agreement import decided, gathered, is_visible
from spo_jax.parallel.multihost import is_writer
from spo_jax.run.checkpoint_reader import CheckpointReader
from spo_jax.run.damage import Damaged, reason_of
from spo_jax.run.file_list import write_file_list
from spo_jax.run.layout import layouts
from spo_jax.run.silence import silence_orbax


class Checkpointer(CheckpointReader):
    """Saves and restores (items, meta) by step in one folder, as its only writer.

    ``items`` are pytrees of arrays (including typed PRNG keys) by name, each of which can be read on its own; ``meta``
    is a dict of JSON values for everything else: data position, resolved settings, counters. Saves run in the
    background: `save` returns once the arrays have been copied, and waits only for an earlier save that is unfinished.
    A checkpoint that is being written has another name, so that it is never mistaken for a complete one.

    All processes of a run call all methods; process 0 decides which checkpoints there are and which of them is whole.

    Args:
      folder: folder of the checkpoints; it is created if it is missing.
      keep: number of latest checkpoints to keep.
      keep_every: keep checkpoints at multiples of this step as well.
      guard: function that is called before each save, and raises if this run may not write any more.
      preserved: function that returns further steps whose checkpoints must not be removed.

    Raises:
      UserError: the folder cannot be created or listed.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        keep: int = 3,
        keep_every: int | None = None,
        guard: Callable[[], None] = lambda: None,
        preserved: Callable[[], Collection[int]] = tuple,
    ):
        super().__init__(folder)
        policies = ocp.checkpoint_managers
        kept = [policies.LatestN(keep), _Preserved(preserved)]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,  # removes what killed runs left half-written
        )
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise UserError(f"cannot use {self.folder} for checkpoints: {error.strerror or error}") from error
        self._guard = guard
        self._unlisted: int | None = None  # the step whose list of files is still to be written

    def latest_step(self) -> int | None:
        """Returns the step of the latest checkpoint that is complete or being written, or None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, items: Mapping[str, PyTree], meta: dict[str, Any]) -> None:
        """Starts writing a checkpoint; an existing one of the same step is left unchanged.

        Args:
          step: number of the checkpoint.
          items: trees of arrays by name.
          meta: JSON values.

        Raises:
          UserError: this save or the previous one could not be written, or the folder holds later steps; or the guard
            raises it.
          TypeError: ``items`` has leaves that are not arrays (they belong in ``meta``).
        """
        self.wait()
        self._guard()
        latest = decided(self.latest_step)
        if latest is not None and latest >= step:
            if latest == step:
                return
            raise UserError(f"{self.folder} holds step {latest}, after step {step}: resume it or choose another folder")
        items = jax.tree.map(_array, dict(items))
        args = ocp.args.Composite(
            **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
            layout=ocp.args.JsonSave(layouts(items)),
            meta=ocp.args.JsonSave(meta),
        )
        self._writing(self._manager.save, step, args=args)
        self._unlisted = step

    def wait(self) -> None:
        """Returns once everything saved so far is on disk.

        Raises:
          UserError: it could not be written; the message holds the reason. Older checkpoints are unchanged.
        """
        step = self._unlisted
        self._unlisted = None  # if the save has failed there is nothing to list, now or later
        self._writing(self._manager.wait_until_finished)
        if step is not None and is_writer():
            self._writing(write_file_list, self.folder / str(step))

    def restore_latest(self, like: Mapping[str, PyTree]) -> tuple[int, dict[str, PyTree], dict[str, Any]]:
        """Reads the latest undamaged checkpoint as (step, items, meta).

        Damaged checkpoints after it are named in the log and renamed to ``<step>.damaged`` (``<step>.damaged.2``, …),
        so that the run can save that step again and nothing is lost.

        Args:
          like: as in `restore`.

        Raises:
          UserError: there is no checkpoint, all are damaged, or the items of one are not those of ``like``; or one
            cannot be read for another reason than damage, such as a missing permission, and then nothing is renamed; or
            another process cannot read the one that is whole for process 0.
        """
        steps = decided(self.steps)
        if not steps:
            raise UserError(f"no checkpoint in {self.folder}")
        for position, step in enumerate(steps):
            read, damage = self._attempt(step, like)
            if read is not None:
                self._set_aside(steps[:position])
                return step, *read
            logging.warning("checkpoint %s is damaged, trying the one before: %s", self.folder / str(step), damage)
        named = ", ".join(str(step) for step in steps)
        raise UserError(f"every checkpoint in {self.folder} is damaged (steps {named}); the log says how")

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        # Closing waits for all processes; after an error in one of them the others may never come here.
        if kind is None or jax.process_count() == 1:
            self.close()

    def close(self) -> None:
        """Waits for the last save and frees the threads; raises as `wait` does."""
        try:
            self.wait()
        finally:
            self._writing(self._manager.close)  # raises the error of a failed save once more

    def _attempt(self, step: int, like: Mapping[str, PyTree]) -> tuple[tuple[dict, dict] | None, str]:
        """Reads a checkpoint in every process; returns what was read, or None and what process 0 found damaged."""
        read, damage = None, ""
        try:
            if not is_visible(lambda: step in self.steps()):
                raise Damaged("it is not there")
            read = self.read(step, like)
        except Damaged as error:
            damage = str(error)
        first, *others = gathered(damage)
        for index, other in enumerate(others, 1):
            if other and not first:
                raise UserError(
                    f"checkpoint {self.folder / str(step)} is whole for process 0 and damaged for process {index}: "
                    f"{other}; every process needs the same files, on a disk that all of them share"
                )
        return (None, first) if first else (read, "")

    def _set_aside(self, steps: list[int]) -> None:
        """Renames damaged checkpoints; no process goes on before it sees that."""
        if not steps:
            return
        decided(lambda: self._rename(steps))
        if not is_visible(lambda: not any((self.folder / str(step)).exists() for step in steps)):
            renamed = ", ".join(str(step) for step in steps)
            raise UserError(f"{self.folder}: process 0 has renamed the damaged {renamed}, and another still sees them")
        self._manager.reload()

    def _rename(self, steps: list[int]) -> None:
        for step in steps:
            names = (f"{step}.damaged" + (f".{number}" if number > 1 else "") for number in itertools.count(1))
            target = next(self.folder / name for name in names if not (self.folder / name).exists())
            self._writing((self.folder / str(step)).rename, target)

    def _writing(self, function: Any, *args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except (OSError, ValueError, RuntimeError) as error:  # tensorstore reports a full disk as ValueError
            if is_out_of_memory(error):
                raise
            silence_orbax()  # again, in case other code has changed the filters since
            raise UserError(f"cannot write a checkpoint in {self.folder}: {reason_of(error)}") from error


class _Preserved:
    """orbax's policy for checkpoints of steps that are asked for anew whenever some are about to be removed."""

    def __init__(self, steps: Callable[[], Collection[int]]):
        self._steps = steps

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Says of each checkpoint whether it stays."""
        del context
        steps = self._steps()
        return [checkpoint.step in steps for checkpoint in checkpoints]


def _array(leaf: Any) -> Any:
    if isinstance(leaf, np.generic):
        return np.asarray(leaf)  # orbax saves numpy scalars but cannot restore them
    if not isinstance(leaf, jax.Array | np.ndarray):
        raise TypeError(f"a checkpoint's items hold arrays only, not {type(leaf).__name__}; put it into meta")
    return leaf
