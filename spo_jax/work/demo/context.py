"""What the tabs of the page share: the studio, the folders, the LoRAs that may be read, and the device."""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from spo_jax.core.errors import UserError
from spo_jax.core.files import local_path
from spo_jax.core.memory import ELSEWHERE, explaining_memory
from spo_jax.core.run_files import LORA
from spo_jax.weights.lora import find_lora
from spo_jax.work.demo.device import Device

BASE_MODEL = ""  # the choice of no LoRA
STEPS = (1, 100)  # of a drawing: the least and the most that can be chosen
GUIDANCES = (0, 20)
DEVICE = "device"  # what events that compute share: gr.Button.click(…, concurrency_id=DEVICE, concurrency_limit=1)


@dataclasses.dataclass(frozen=True, eq=False)
class PageContext:
    """What the tabs of the page share.

    Attributes:
      model: name of the model, as ``--model``.
      studio: the opened model with its judge, as `spo_jax.open_studio` returns it.
      runs: folder of runs, whose LoRAs the page may read.
      out: folder to which the page writes.
      named_loras: files of LoRAs outside of ``runs``, by how they were named at the start: a path, or an id on the hub,
        which is not asked again.
      prompts: prompts of the pairs to vote on, and examples to try.
      prompts_file: the file that they were read from; empty if it was none that a person named.
      model_fields: config fields of a run on the same model, such as ``model`` and ``revision``.
      device: lock around whatever computes (``with page.device:``); one thing at a time does. Events that compute also
        take ``concurrency_id=DEVICE, concurrency_limit=1``, so that those who wait see their place in the queue.
    """

    model: str
    studio: Any
    runs: Path
    out: Path
    named_loras: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    prompts: Sequence[str] = ()
    prompts_file: str = ""
    model_fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    device: Device = dataclasses.field(default_factory=Device)

    def lora_choices(self) -> list[tuple[str, str]]:
        """Returns the LoRAs on disk now as a dropdown takes them: what is shown, and the name that `lora` takes.

        The first choice is the model without a LoRA. New runs appear when this is called again.
        """
        return [("no LoRA", BASE_MODEL), *((name, name) for name in [*self.named_loras, *self._found()])]

    def newest_lora(self) -> str:
        """Returns the choice that a person most likely wants to see now.

        It is the first LoRA that was named at the start, or else the one that was written last; `BASE_MODEL` if there
        is none.
        """
        found = self._found()
        return next(iter(self.named_loras), max(found, key=lambda name: _written(found[name]), default=BASE_MODEL))

    def _found(self) -> dict[str, Path]:
        """Returns the files of LoRAs below the folder of runs, by their names, in the order in which they are shown."""
        files = [*self.runs.glob(f"*/{LORA}"), *self.runs.glob(f"*/*/{LORA}")]
        named = {path.parent.relative_to(self.runs).as_posix(): path for path in files}
        return dict(sorted(named.items())) | {path.name: path for path in sorted(self.runs.glob("*.safetensors"))}

    def lora_file(self, name: str) -> Path | None:
        """Returns the file of a LoRA, or None for no LoRA.

        Args:
          name: a choice of `lora_choices`; or a path below ``runs``, relative to it or to the current folder.

        Raises:
          UserError: there is no such LoRA, or the page may not read it.
        """
        name = (name or "").strip()
        if not name:
            return None
        if name in self.named_loras:
            return self.named_loras[name]
        allowed = self.runs.resolve()
        inside = [
            path
            for path in (self.runs / name, local_path(name))
            if path.resolve().is_relative_to(allowed) and path.exists()
        ]
        if not inside:
            raise UserError(
                f"no LoRA {name!r}: the page reads those below {self.runs}, and those that --lora named at the start"
            )
        file = find_lora(inside[0])
        if not file.resolve().is_relative_to(allowed):
            raise UserError(f"{name} is a link that leads out of {self.runs}")
        return file

    def lora(self, name: str) -> Any:
        """Returns a LoRA as the studio draws with it, or None for no LoRA.

        Raises:
          UserError: as `lora_file`, or the LoRA does not fit the model.
        """
        file = self.lora_file(name)
        return None if file is None else self.studio.lora(file)

    def lora_version(self, name: str) -> str:
        """Returns a digest of a LoRA's file, which tells it from others of the same name; empty for no LoRA.

        Raises:
          UserError: as `lora_file`.
        """
        file = self.lora_file(name)
        if file is None:
            return ""
        status = file.stat()
        return _digest(file, status.st_mtime_ns, status.st_size)


def _written(file: Path) -> float:
    """Returns when a file was written; long ago if it has gone in the meantime."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


@functools.lru_cache(maxsize=64)
def _digest(file: Path, *changes: int) -> str:
    del changes  # a file that has changed is read again
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]


@contextlib.contextmanager
def page_errors() -> Iterator[None]:
    """Shows a user's mistake, and memory that does not suffice, as a message on the page.

    Raises:
      gr.Error: in place of a `UserError`, with the same text.
    """
    try:
        with explaining_memory(lambda: f"choose a smaller size; {ELSEWHERE}"):
            yield
    except UserError as error:
        raise gr.Error(str(error), print_exception=False) from error
