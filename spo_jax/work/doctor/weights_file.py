"""What the weights of a model take on the disk: sizes, and in safetensors files numbers and dtypes of the tensors."""

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open

from spo_jax.core.errors import UserError
from spo_jax.core.words import counted, listed, size

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Weights(NamedTuple):
    """Weights on the disk.

    Attributes:
      bytes: size of their files.
      tensors: number of tensors in the safetensors files.
      parameters: number of floating-point numbers in these.
      dtypes: their dtypes, the most frequent first.
    """

    bytes: int
    tensors: int
    parameters: int
    dtypes: tuple[str, ...]

    def facts(self) -> dict[str, str]:
        """Returns them as text by name."""
        facts = {"on disk": size(self.bytes)}
        if self.tensors:
            facts["weights"] = f"{self.parameters / 1e6:,.1f} million in {counted(self.tensors, 'tensor')}"
            facts["dtype on disk"] = listed(self.dtypes)
        return facts


def weights_of(paths: Iterable[Path]) -> Weights:
    """Reads the headers of files.

    Raises:
      UserError: a safetensors file is damaged.
    """
    total = tensors = 0
    counts: Counter[str] = Counter()
    for path in paths:
        total += path.stat().st_size
        if path.suffix != ".safetensors":
            continue  # pickles show nothing before they are read
        try:
            with safe_open(path, framework="numpy") as file:
                for key in file.keys():
                    found = file.get_slice(key)
                    tensors += 1
                    if found.get_dtype() in _DTYPES:
                        counts[_DTYPES[found.get_dtype()]] += math.prod(found.get_shape())
        except Exception as error:  # the library's errors have no common class
            raise UserError(f"{path} is damaged: {error}") from error
    return Weights(total, tensors, sum(counts.values()), tuple(name for name, _ in counts.most_common()))


def weights_files(path: Path) -> list[Path]:
    """Lists the files with weights of a model, which is a file or a folder; a run's checkpoints are none."""
    if path.is_file():
        return [path]
    found = [file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file()]
    return sorted(file for file in found if "checkpoints" not in file.relative_to(path).parts)
