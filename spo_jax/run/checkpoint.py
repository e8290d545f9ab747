"""Checkpoints of a run, written with orbax; damage is found and named before anything is trusted."""

import itertools
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from spo_jax.core.errors import UserError
from spo_jax.core.typing import PyTree
from spo_jax.run.file_list import Damaged, check_file_list, write_file_list
from spo_jax.run.layout import check_layouts, layouts, shapes_of_layout
from spo_jax.run.silence import silence_orbax


class Checkpointer:
    """Saves and restores (items, meta) by step in one folder.

    ``items`` are pytrees of arrays (including typed PRNG keys) by name, each of which can be read on its own; ``meta``
    is a dict of JSON values for everything else: data position, resolved settings, counters. Saves run in the
    background: `save` returns once the arrays have been copied, and waits only for an earlier save that is unfinished.
    A checkpoint that is being written has another name, so that it is never mistaken for a complete one.

    Args:
      folder: folder of the checkpoints; it is created if it is missing.
      keep: number of latest checkpoints to keep.
      keep_every: keep checkpoints at multiples of this step as well.
      read_only: never change the folder, because a run may be writing to it.
      guard: function that is called before each save, and raises if this run may not write any more.

    Raises:
      UserError: the folder cannot be created or listed.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        keep: int = 3,
        keep_every: int | None = None,
        read_only: bool = False,
        guard: Callable[[], None] = lambda: None,
    ):
        silence_orbax()
        path = os.fspath(folder)
        # orbax refuses relative paths; bucket addresses are absolute as they are.
        self.folder = epath.Path(path if "://" in path else os.path.abspath(path))
        policies = ocp.checkpoint_managers
        preserved = [policies.LatestN(keep)]
        if keep_every:
            preserved.append(policies.EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(preserved),
            cleanup_tmp_directories=not read_only,  # removes what killed runs left half-written
            read_only=read_only,
        )
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise UserError(f"cannot use {self.folder} for checkpoints: {error.strerror or error}") from error
        self._guard = guard
        self._unlisted: int | None = None  # the step whose list of files is still to be written

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
        latest = self.latest_step()
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
        if step is not None and jax.process_index() == 0:
            self._writing(write_file_list, self.folder / str(step))

    def latest_step(self) -> int | None:
        """Returns the step of the latest complete checkpoint, damaged or not, or None if there is none."""
        return self._manager.latest_step()

    def restore(self, step: int, like: Mapping[str, PyTree]) -> tuple[dict[str, PyTree], dict[str, Any]]:
        """Reads the checkpoint of ``step`` as (items, meta).

        Args:
          step: step that was saved.
          like: items of arrays or of `jax.ShapeDtypeStruct` with the shapes and dtypes that were saved. Arrays are
            restored with the shardings found here (without one, on the first device), independent of the mesh that they
            were saved from.

        Raises:
          UserError: there is no such step, it is damaged, or its items are not those of ``like``.
        """
        try:
            return self._read(step, like)
        except Damaged as error:
            raise UserError(f"checkpoint {self.folder / str(step)} is damaged: {error}") from error

    def read_item(self, step: int, name: str) -> PyTree:
        """Reads a single item, a nested dict of arrays, by the shapes that the checkpoint itself lists.

        Args:
          step: step that was saved.
          name: name of the item.

        Raises:
          UserError: there is no such step or item, or it is damaged.
        """
        self._check_step(step)
        try:
            check_file_list(self.folder / str(step))
            layout = self._from_orbax(step, layout=ocp.args.JsonRestore()).layout
            if name not in layout:
                raise UserError(f"checkpoint {self.folder / str(step)} has no item {name}, only {', '.join(layout)}")
            like = jax.tree.map(_shape, shapes_of_layout(layout[name]))
            return self._from_orbax(step, **{name: ocp.args.StandardRestore(like)})[name]
        except Damaged as error:
            raise UserError(f"checkpoint {self.folder / str(step)} is damaged: {error}") from error

    def _check_step(self, step: int) -> None:
        if step not in self._manager.all_steps():
            raise UserError(f"no checkpoint of step {step} in {self.folder}")

    def read_meta(self, step: int) -> dict[str, Any]:
        """Reads what `save` was given as ``meta``, without reading the state.

        Raises:
          UserError: there is no such step, or it is damaged.
        """
        self._check_step(step)
        try:
            return self._from_orbax(step, meta=ocp.args.JsonRestore()).meta
        except Damaged as error:
            raise UserError(f"checkpoint {self.folder / str(step)} is damaged: {error}") from error

    def read_latest_meta(self) -> tuple[int, dict[str, Any]] | None:
        """Reads step and meta of the latest checkpoint whose meta can be read, or returns None if there is none."""
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return step, self.read_meta(step)
            except UserError:  # damaged; `restore_latest` skips it as well
                continue
        return None

    def restore_latest(self, like: Mapping[str, PyTree]) -> tuple[int, dict[str, PyTree], dict[str, Any]]:
        """Reads the latest undamaged checkpoint as (step, items, meta).

        Damaged checkpoints after it are named in the log and renamed to ``<step>.damaged`` (``<step>.damaged.2``, …),
        so that the run can save that step again and nothing is lost.

        Args:
          like: as in `restore`.

        Raises:
          UserError: there is no checkpoint, all are damaged, or the items of one are not those of ``like``.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        if not steps:
            raise UserError(f"no checkpoint in {self.folder}")
        for position, step in enumerate(steps):
            try:
                items, meta = self._read(step, like)
            except Damaged as error:
                logging.warning("checkpoint %s is damaged, trying the one before: %s", self.folder / str(step), error)
                continue
            self._set_aside(steps[:position])
            return step, items, meta
        named = ", ".join(str(step) for step in steps)
        raise UserError(f"every checkpoint in {self.folder} is damaged (steps {named}); the log says how")

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the last save and frees the threads; raises as `wait` does."""
        try:
            self.wait()
        finally:
            self._writing(self._manager.close)  # raises the error of a failed save once more

    def _read(self, step: int, like: Mapping[str, PyTree]) -> tuple[dict[str, PyTree], dict[str, Any]]:
        self._check_step(step)
        folder = self.folder / str(step)
        check_file_list(folder)
        like = jax.tree.map(_shape, dict(like))
        texts = self._from_orbax(step, layout=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore())
        check_layouts(folder, texts.layout, layouts(like))
        restored = self._from_orbax(step, **{name: ocp.args.StandardRestore(tree) for name, tree in like.items()})
        items = {name: restored[name] for name in like}
        if layouts(items) != layouts(like):  # orbax gives a PRNG key back as uint32 where a file about it is lost
            raise Damaged("it was read with other shapes or dtypes than were saved")
        return items, texts.meta

    def _from_orbax(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except jax.errors.JaxRuntimeError:  # a fault of the device, such as too little memory; the files may be intact
            raise
        except Exception as error:  # orbax and tensorstore report damage with many types of exception
            raise Damaged(_reason(error)) from error

    def _writing(self, function: Any, *args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except (OSError, ValueError, RuntimeError) as error:  # tensorstore reports a full disk as ValueError
            silence_orbax()  # again, in case other code has changed the filters since
            raise UserError(f"cannot write a checkpoint in {self.folder}: {_reason(error)}") from error

    def _set_aside(self, steps: list[int]) -> None:
        for step in steps if jax.process_index() == 0 else []:
            names = (f"{step}.damaged" + (f".{number}" if number > 1 else "") for number in itertools.count(1))
            target = next(self.folder / name for name in names if not (self.folder / name).exists())
            (self.folder / str(step)).rename(target)
        if steps:
            self._manager.reload()


def _array(leaf: Any) -> Any:
    if isinstance(leaf, np.generic):
        return np.asarray(leaf)  # orbax saves numpy scalars but cannot restore them
    if not isinstance(leaf, jax.Array | np.ndarray):
        raise TypeError(f"a checkpoint's items hold arrays only, not {type(leaf).__name__}; put it into meta")
    return leaf


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _reason(error: BaseException) -> str:
    """Summarises an error in one line; of tensorstore's long ones, only the operating system's message."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code or (isinstance(error, OSError) and error.errno is not None):
        return os.strerror(int(code[1]) if code else error.errno)
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
