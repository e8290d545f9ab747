"""Curves: rows can be read at once and survive a kill, and a resumed run has neither gaps nor duplicates."""

import json
import resource
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.run.metrics import MetricsWriter, read_metrics


def events(folder):
    """All TensorBoard events of a folder in the order of writing; records are length, checksum, data, checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_rows_are_readable_before_close(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": 0.5, "pairs": 3})
        assert read_metrics(writer.path) == [{"step": 1, "loss": 0.5, "pairs": 3}]


def test_every_kind_of_scalar_becomes_a_json_number(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        scalars = {"jax": jnp.float32(0.25), "numpy": np.float64(2), "count": np.int64(7), "flag": True}
        writer.write(3, scalars)
    assert read_metrics(writer.path) == [{"step": 3, "jax": 0.25, "numpy": 2.0, "count": 7, "flag": 1}]


def test_values_that_are_not_finite_become_null(tmp_path):
    """Python's own NaN literal would make the file unreadable for every other JSON reader."""
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"a": float("nan"), "b": jnp.inf, "c": 1.0})
    line = writer.path.read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {"step": 1, "a": None, "b": None, "c": 1.0}


def test_a_resumed_run_has_neither_gaps_nor_duplicates(tmp_path):
    """Killed in the middle of step 4 with a checkpoint at step 2: row 3 and the cut-off row 4 are written again."""
    with MetricsWriter(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": step, "nan": float("nan")})
    with writer.path.open("a") as file:
        file.write('{"step": 4, "lo')
    with MetricsWriter(tmp_path, resume_step=2) as writer:
        assert [row["step"] for row in read_metrics(writer.path)] == [1, 2]
        writer.write(3, {"loss": 30})
    assert [(row["step"], row["loss"]) for row in read_metrics(writer.path)] == [(1, 1), (2, 2), (3, 30)]


def test_values_join_the_latest_row_or_become_one(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": 0.5})
        writer.extend(1, {"score": 2.0})
        writer.extend(2, {"score": 3.0})  # the curves of the batch were lost
        writer.write(3, {"loss": 0.25})
    rows = [{"step": 1, "loss": 0.5, "score": 2.0}, {"step": 2, "score": 3.0}, {"step": 3, "loss": 0.25}]
    assert read_metrics(writer.path) == rows


def test_tensorboard_hides_rows_that_are_written_again(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": 1})
    with MetricsWriter(tmp_path, resume_step=1) as writer:
        writer.write(2, {"loss": 2})
    assert [event.step for event in events(tmp_path) if event.HasField("session_log")] == [0, 2]


def test_tensorboard_gets_scalars_and_images(tmp_path):
    image = np.zeros((4, 6, 3), np.uint8)
    with MetricsWriter(tmp_path) as writer:
        writer.write(5, {"loss": 0.5})
        writer.write_images(5, {"grid": image})
    values = {value.tag: (event.step, value) for event in events(tmp_path) for value in event.summary.value}
    assert values["loss"][0] == 5 and values["loss"][1].simple_value == 0.5
    assert values["grid"][0] == 5 and (values["grid"][1].image.height, values["grid"][1].image.width) == (4, 6)


def test_a_new_run_starts_new_curves(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": 1})
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": 9})
    assert read_metrics(writer.path) == [{"step": 1, "loss": 9}]


@pytest.mark.parametrize("damage", ["not json", "[1]", '{"loss": 1}', '{"step": "1"}'])
def test_a_damaged_line_is_named_and_nothing_is_lost(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{damage}\n{{"step": 3}}\n')
    with pytest.raises(UserError, match="line 2"):
        MetricsWriter(tmp_path, resume_step=1)
    assert len(path.read_text().splitlines()) == 3


def test_missing_file_and_unwritable_folder_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="metrics.jsonl"):
        read_metrics(tmp_path / "metrics.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        MetricsWriter(tmp_path / "file" / "run")


@pytest.mark.parametrize("full", ["metrics.jsonl", "tensorboard"])
def test_a_full_disk_is_reported_once_and_earlier_rows_stay(tmp_path, full):
    """The limit on file size makes the operating system refuse the bytes; the rest of the buffers is not reported."""
    scalars = {f"group/series_{number}": 1.0 for number in range(50)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(UserError, match="cannot write curves in .*: File too large"):
        with MetricsWriter(tmp_path) as writer:
            writer.write(1, scalars)
            [board] = (tmp_path / "tensorboard").iterdir()
            file = writer.path if full == "metrics.jsonl" else board
            assert 2 * writer.path.stat().st_size < board.stat().st_size  # there is room for the other's second row
            resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 10, limits[1]))
            try:
                writer.write(2, scalars)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_metrics(writer.path)[0] == {"step": 1} | scalars
