"""Checkpoints of a run, written with orbax; damage is found and named before anything is trusted."""

import itertools
import json
import logging as stdlib_logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from spo_jax.core.errors import UserError
from spo_jax.core.trees import unflatten
from spo_jax.core.typing import PyTree

# Holds names and sizes of a checkpoint's files, and is written into its folder after orbax has finished it. Orbax finds
# most damage itself, but only by failing deep inside its threads, with pages of output; a missing or truncated file is
# found here first. A checkpoint without the list (the run was killed in between) is left to orbax's own checks.
FILE_LIST = "files.json"


class Damaged(Exception):
    """A checkpoint that cannot be read as it was written; the message says what is wrong with it."""


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

    Raises:
      UserError: the folder cannot be created or listed.
    """

    def __init__(
        self, folder: str | os.PathLike, keep: int = 3, keep_every: int | None = None, read_only: bool = False
    ):
        _silence_failures()
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
        self._unlisted: int | None = None  # the step whose list of files is still to be written

    def save(self, step: int, items: Mapping[str, PyTree], meta: dict[str, Any]) -> None:
        """Starts writing a checkpoint; an existing one of the same step is left unchanged.

        Args:
          step: number of the checkpoint.
          items: trees of arrays by name.
          meta: JSON values.

        Raises:
          UserError: this save or the previous one could not be written, or the folder holds later steps.
          TypeError: ``items`` has leaves that are not arrays (they belong in ``meta``).
        """
        self.wait()
        latest = self.latest_step()
        if latest is not None and latest >= step:
            if latest == step:
                return
            raise UserError(f"{self.folder} holds step {latest}, after step {step}: resume it or choose another folder")
        items = jax.tree.map(_array, dict(items))
        args = ocp.args.Composite(
            **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
            layout=ocp.args.JsonSave(_layouts(items)),
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
            self._writing(_write_file_list, self.folder / str(step))

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
            _check_file_list(self.folder / str(step))
            layout = self._from_orbax(step, layout=ocp.args.JsonRestore()).layout
            if name not in layout:
                raise UserError(f"checkpoint {self.folder / str(step)} has no item {name}, only {', '.join(layout)}")
            like = unflatten({path: _shape_of_text(text) for path, text in layout[name].items()})
            return self._from_orbax(step, **{name: ocp.args.StandardRestore(jax.tree.map(_shape, like))})[name]
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
            self._manager.close()

    def _read(self, step: int, like: Mapping[str, PyTree]) -> tuple[dict[str, PyTree], dict[str, Any]]:
        self._check_step(step)
        folder = self.folder / str(step)
        _check_file_list(folder)
        like = jax.tree.map(_shape, dict(like))
        texts = self._from_orbax(step, layout=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore())
        _check_layout(folder, _flat_layout(texts.layout), _flat_layout(_layouts(like)))
        restored = self._from_orbax(step, **{name: ocp.args.StandardRestore(tree) for name, tree in like.items()})
        items = {name: restored[name] for name in like}
        if _layouts(items) != _layouts(like):  # orbax gives a PRNG key back as uint32 where a file about it is lost
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
            raise UserError(f"cannot write a checkpoint in {self.folder}: {_reason(error)}") from error

    def _set_aside(self, steps: list[int]) -> None:
        for step in steps if jax.process_index() == 0 else []:
            names = (f"{step}.damaged" + (f".{number}" if number > 1 else "") for number in itertools.count(1))
            target = next(self.folder / name for name in names if not (self.folder / name).exists())
            (self.folder / str(step)).rename(target)
        if steps:
            self._manager.reload()


def _silence_failures() -> None:
    """Silences orbax's reports of failures, which `Checkpointer` reports in one line.

    Orbax logs each failure with pages of tracebacks. It also abandons a save at the first error and closes the event
    loop, to which writers that are still running then report in vain, with a traceback for every array.
    """
    logging.get_absl_logger().addFilter(_not_from_orbax)
    stdlib_logging.getLogger("asyncio").addFilter(_not_of_a_save)
    if not isinstance(sys.unraisablehook, _NotOfAWriter):
        sys.unraisablehook = _NotOfAWriter(sys.unraisablehook)


def _not_from_orbax(record: Any) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _not_of_a_save(record: Any) -> bool:
    """Drops asyncio's reports of errors that nobody has retrieved: those of arrays after the first that failed."""
    return not record.exc_info or ".orbax-checkpoint-tmp" not in str(record.exc_info[1])


class _NotOfAWriter:
    """A hook for errors that cannot be caught, which drops those of tensorstore's threads on a closed event loop."""

    def __init__(self, hook: Callable[[Any], None]):
        self._hook = hook

    def __call__(self, unraisable: Any) -> None:
        first = unraisable.exc_traceback and unraisable.exc_traceback.tb_frame.f_code.co_name
        if not (unraisable.object is None and first == "call_soon_threadsafe"):
            self._hook(unraisable)


def _array(leaf: Any) -> Any:
    if isinstance(leaf, np.generic):
        return np.asarray(leaf)  # orbax saves numpy scalars but cannot restore them
    if not isinstance(leaf, jax.Array | np.ndarray):
        raise TypeError(f"a checkpoint's items hold arrays only, not {type(leaf).__name__}; put it into meta")
    return leaf


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _layouts(items: Mapping[str, PyTree]) -> dict[str, dict[str, str]]:
    return {name: _layout(tree) for name, tree in items.items()}


def _flat_layout(layouts: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    return {f"{name}/{path}": text for name, layout in layouts.items() for path, text in layout.items()}


def _shape_of_text(text: str) -> jax.ShapeDtypeStruct:
    """Reads an entry of `_layout`, such as ``float32[4,8]``."""
    dtype, sizes = re.fullmatch(r"(\w+)\[([\d,]*)\]", text).groups()
    return jax.ShapeDtypeStruct(tuple(int(size) for size in sizes.split(",") if size), dtype)


def _layout(tree: Any) -> dict[str, str]:
    """Maps the path of every leaf to its dtype and shape, such as ``float32[4,8]``."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    name = jax.tree_util.keystr
    return {
        name(path, simple=True, separator="/"): f"{leaf.dtype}[{','.join(str(size) for size in leaf.shape)}]"
        for path, leaf in leaves
    }


def _check_layout(folder: epath.Path, saved: dict[str, str], wanted: dict[str, str]) -> None:
    differing = [path for path in sorted(saved | wanted) if saved.get(path) != wanted.get(path)]
    if differing:
        shown = "; ".join(
            f"{path} is {saved.get(path, 'absent')} there and {wanted.get(path, 'absent')} here"
            for path in differing[:3]
        )
        more = f"; {len(differing) - 3} more differ" if len(differing) > 3 else ""
        raise UserError(f"checkpoint {folder} is of another model or other settings: {shown}{more}")


def _file_sizes(folder: epath.Path) -> dict[str, int]:
    sizes = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            sizes |= {f"{path.name}/{name}": size for name, size in _file_sizes(path).items()}
        else:
            sizes[path.name] = path.stat().length
    return sizes


def _write_file_list(folder: epath.Path) -> None:
    part = folder / f"{FILE_LIST}.part"
    part.write_text(json.dumps(_file_sizes(folder), indent=0))
    part.rename(folder / FILE_LIST)


def _check_file_list(folder: epath.Path) -> None:
    try:
        expected = json.loads((folder / FILE_LIST).read_text())
    except FileNotFoundError:
        return
    except ValueError as error:
        raise Damaged(f"{FILE_LIST} is not JSON") from error
    found = _file_sizes(folder)
    for name, size in expected.items():
        if name not in found:
            raise Damaged(f"{name} is missing")
        if found[name] != size:
            raise Damaged(f"{name} has {found[name]} bytes instead of {size}")


def _reason(error: BaseException) -> str:
    """Summarises an error in one line; of tensorstore's long ones, only the operating system's message."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else f"{type(error).__name__}: {error}".splitlines()[0][:300]
