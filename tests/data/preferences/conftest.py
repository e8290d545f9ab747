"""Images and preference pairs as files, some of them damaged."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from spo_jax.data.preferences.sources.pick_a_pic import PickAPic
from spo_jax.data.preferences.writer import prepare_split, preparing


def encode(shade: int = 100, form: str = "jpeg", size: tuple[int, int] = (12, 10), mode: str = "RGB") -> bytes:
    """Encodes a plain image; noise would only make the file longer."""
    buffer = io.BytesIO()
    Image.new(mode, size, shade if len(mode) == 1 else (shade, 20, 30)).save(buffer, form)
    return buffer.getvalue()


def pair_row(index: int, **changes: Any) -> dict[str, Any]:
    """Makes a row of Pick-a-Pic; every third pair is a tie, and captions repeat after four rows."""
    first = (1.0, 0.0, 0.5)[index % 3]
    row = {
        "jpg_0": encode(index % 250),
        "jpg_1": encode(255 - index % 250),
        "caption": f"a pícture of {index % 4}",
        "label_0": first,
        "label_1": 1 - first,
        "has_label": index % 5 != 4,
        "are_different": True,
        "image_0_uid": f"uid-{index}-0",
        "image_1_uid": f"uid-{index}-1",
        "num_example_per_prompt": 7 + index % 4,
        "user_id": 3,
    }
    return row | changes


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """The function `encode`."""
    return encode


@pytest.fixture
def row() -> Callable[..., dict[str, Any]]:
    """The function `pair_row`."""
    return pair_row


@pytest.fixture
def write_parquet() -> Callable[[Path, list[dict[str, Any]]], Path]:
    """A function that writes rows to a parquet file with row groups of three."""
    import pyarrow
    import pyarrow.parquet

    def write(path: Path, rows: list[dict[str, Any]]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=3)
        return path

    return write


@pytest.fixture
def make_source(tmp_path, write_parquet):
    """A function that makes a source from the rows of the split ``train``."""

    def make(rows):
        write_parquet(tmp_path / "source" / "train.parquet", rows)
        return PickAPic(tmp_path / "source")

    return make


@pytest.fixture
def prepare(tmp_path):
    """A function that prepares ``train`` into the folder `data_dir`, with two rows per shard."""

    def run(source, **options):
        with preparing(tmp_path / "out"):
            return prepare_split(source, "train", tmp_path / "out", **{"shard": 2} | options)

    return run


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "out"
