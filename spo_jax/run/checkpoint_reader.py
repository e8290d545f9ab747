"""Reading checkpoints, which changes nothing and needs no other process; damage is found and named first."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from spo_jax.core.errors import UserError
from spo_jax.core.typing import PyTree
from spo_jax.run.damage import Damaged, reason_of, telling_damage
from spo_jax.run.file_list import check_file_list
from spo_jax.run.layout import check_layouts, layouts, shapes_of_layout
from spo_jax.run.silence import silence_orbax


class CheckpointReader:
    """Reads the checkpoints in one folder, to which a run may be writing; see `spo_jax.run.checkpoint.Checkpointer`.

    Args:
      folder: folder of the checkpoints.
    """

    def __init__(self, folder: str | os.PathLike):
        silence_orbax()
        path = os.fspath(folder)
        # orbax refuses relative paths; bucket addresses are absolute as they are.
        self.folder = epath.Path(path if "://" in path else os.path.abspath(path))
        process = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(process, {process}, f"reader-{process}")
        self._reader = ocp.Checkpointer(ocp.CompositeCheckpointHandler(), multiprocessing_options=alone)

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, damaged or not, the latest first.

        Raises:
          UserError: the folder cannot be read.
        """
        try:
            return sorted(ocp.utils.checkpoint_steps(self.folder), reverse=True) if self.folder.exists() else []
        except OSError as error:
            raise UserError(f"cannot read {self.folder}: {reason_of(error)}") from error

    def latest_step(self) -> int | None:
        """Returns the step of the latest complete checkpoint, damaged or not, or None if there is none."""
        return next(iter(self.steps()), None)

    def restore(self, step: int, like: Mapping[str, PyTree]) -> tuple[dict[str, PyTree], dict[str, Any]]:
        """Reads the checkpoint of ``step`` as (items, meta).

        Args:
          step: step that was saved.
          like: items of arrays or of `jax.ShapeDtypeStruct` with the shapes and dtypes that were saved. Arrays are
            restored with the shardings found here (without one, on the first device), independent of the mesh that they
            were saved from.

        Raises:
          UserError: there is no such step, it is damaged or cannot be read, or its items are not those of ``like``.
        """
        self._check_step(step)
        try:
            return self.read(step, like)
        except Damaged as error:
            raise self._refused(step, error) from error

    def read(self, step: int, like: Mapping[str, PyTree]) -> tuple[dict[str, PyTree], dict[str, Any]]:
        """Reads a checkpoint that is there, as `restore`.

        Raises:
          Damaged: it is damaged.
          Unreadable: it cannot be read, although it may be whole.
          UserError: its items are not those of ``like``.
        """
        folder = self.folder / str(step)
        self._check_files(step)
        like = jax.tree.map(_shape, dict(like))
        texts = self._from_orbax(step, layout=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore())
        check_layouts(folder, texts.layout, layouts(like))
        restored = self._from_orbax(step, **{name: ocp.args.StandardRestore(tree) for name, tree in like.items()})
        items = {name: restored[name] for name in like}
        if layouts(items) != layouts(like):  # orbax gives a PRNG key back as uint32 where a file about it is lost
            raise Damaged("it was read with other shapes or dtypes than were saved")
        return items, texts.meta

    def read_item(self, step: int, name: str) -> PyTree:
        """Reads a single item, a nested dict of arrays, by the shapes that the checkpoint itself lists.

        Args:
          step: step that was saved.
          name: name of the item.

        Raises:
          UserError: there is no such step or item, or it is damaged or cannot be read.
        """
        self._check_step(step)
        try:
            self._check_files(step)
            layout = self._from_orbax(step, layout=ocp.args.JsonRestore()).layout
            if name not in layout:
                raise UserError(f"checkpoint {self.folder / str(step)} has no item {name}, only {', '.join(layout)}")
            like = jax.tree.map(_shape, shapes_of_layout(layout[name]))
            return self._from_orbax(step, **{name: ocp.args.StandardRestore(like)})[name]
        except Damaged as error:
            raise self._refused(step, error) from error

    def read_meta(self, step: int) -> dict[str, Any]:
        """Reads what was saved as meta, without reading the state.

        Raises:
          UserError: there is no such step, or it is damaged or cannot be read.
        """
        self._check_step(step)
        try:
            return self._meta(step)
        except Damaged as error:
            raise self._refused(step, error) from error

    def read_latest_meta(self) -> tuple[int, dict[str, Any]] | None:
        """Reads step and meta of the latest checkpoint whose meta is whole, or returns None if there is none.

        Raises:
          UserError: a checkpoint cannot be read, although it may be whole.
        """
        for step in self.steps():
            try:
                return step, self._meta(step)
            except Damaged:  # a run that resumes skips it as well
                continue
        return None

    def _meta(self, step: int) -> dict[str, Any]:
        return self._from_orbax(step, meta=ocp.args.JsonRestore()).meta

    def _check_step(self, step: int) -> None:
        if step not in self.steps():
            raise UserError(f"no checkpoint of step {step} in {self.folder}")

    def _refused(self, step: int, error: Damaged) -> UserError:
        return UserError(f"checkpoint {self.folder / str(step)} is damaged: {error}")

    def _check_files(self, step: int) -> None:
        with telling_damage(f"checkpoint {self.folder / str(step)}"):
            check_file_list(self.folder / str(step))

    def _from_orbax(self, step: int, **items: Any) -> Any:
        with telling_damage(f"checkpoint {self.folder / str(step)}"):
            return self._reader.restore(self.folder / str(step), args=ocp.args.Composite(**items))


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
