"""Torch's zip files are read without torch, and no code in a pickle is ever run."""

import collections
import io
import os
import pickle
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from spo_jax.core.errors import UserError
from spo_jax.weights import torch_pickle
from spo_jax.weights.store import read_file
from spo_jax.weights.torch_zip import read_torch_modules, read_torch_zip
from tests.support import fuzzing
from tests.weights import hostile_zips


def test_every_type_and_layout_is_read_as_in_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    state = collections.OrderedDict(
        plain=base,
        transposed=base.T,
        strided=base[1:, ::2],
        permuted=torch.randn(2, 3, 4, 5).permute(3, 1, 0, 2),
        half=base.half(),
        bfloat=base.bfloat16().T,
        ids=torch.arange(5)[None],
        scalar=torch.tensor(4.6),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(base + 1),
    )
    torch.save(state, tmp_path / "x.bin")
    read = read_torch_zip(tmp_path / "x.bin")
    assert list(read) == list(state)
    assert read["bfloat"].dtype == ml_dtypes.bfloat16
    for name, tensor in state.items():
        expected = tensor.detach().float().numpy()
        assert read[name].shape == expected.shape and read[name].flags.c_contiguous, name
        assert np.array_equal(read[name].astype(np.float32), expected), name
    assert [read[name].dtype.name for name in ("plain", "half", "ids")] == ["float32", "float16", "int64"]


def test_state_dicts_of_several_modules_and_numbers_are_read(tmp_path: Path) -> None:
    weight = torch.randn(2, 3)
    content: dict[str, Any] = {"one": {"weight": weight, "bias": weight[0]}, "scale": 2.5, "other": torch.tensor(1.5)}
    torch.save(content, tmp_path / "x.pt")
    read = read_torch_modules(tmp_path / "x.pt")
    assert read.keys() == {"one.weight", "one.bias", "scale", "other"}
    assert np.array_equal(read["one.weight"], weight.numpy()) and np.array_equal(read["one.bias"], weight[0].numpy())
    assert (read["scale"], read["other"]) == (np.float32(2.5), np.float32(1.5))
    for wrong, named in (
        ({"name": "a text"}, "name"),
        ({"one": {"two": {"weight": weight}}}, "two"),
        ([weight], "list"),
    ):
        torch.save(wrong, tmp_path / "x.pt")
        with pytest.raises(UserError, match=named):
            read_torch_modules(tmp_path / "x.pt")


def test_the_state_dict_of_a_module_with_its_metadata_attribute_is_read(tmp_path: Path) -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    torch.save(layer.state_dict(), tmp_path / "x.pt")
    read = read_file(tmp_path / "x.pt")
    assert read.keys() == layer.state_dict().keys()
    assert np.array_equal(read["0.weight"], layer[0].weight.detach().numpy())


def test_a_state_dict_inside_a_checkpoint_is_read(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "name": "x", "state_dict": {"a": torch.ones(2)}}, tmp_path / "x.ckpt")
    assert np.array_equal(read_file(tmp_path / "x.ckpt")["a"], np.ones(2, np.float32))


class _Callback:
    """A class as trainers have them, whose objects and names are entries of a checkpoint."""

    __slots__ = ("best",)

    def __init__(self):
        self.best = torch.ones(2, dtype=torch.float64)


def test_what_trainers_save_beside_a_state_dict_is_not_looked_at(tmp_path: Path) -> None:
    """Lightning's checkpoints have classes as keys, objects, numpy's scalars, bytes and sets."""
    marker = tmp_path / "ran"
    beside = {
        "callbacks": {_Callback: {"best": np.float64(0.5)}, "x": _Callback()},
        "global_step": np.int64(7),
        "seen": {1, 2},
        "frozen": frozenset("a"),
        "rng": (torch.get_rng_state(), b"bytes", bytearray(b"more"), 2**64 - 5, 2**3000),
        "scales": {0.5: 1, None: 2, (1, (2, 3)): [4]},
        "default": collections.defaultdict(list, a=[1]),
        "counts": collections.Counter("aab"),
        "path": Path("x"),
        "type": torch.float16,
        "size": torch.Size([2]),
        "double": torch.nn.Parameter(torch.ones(2).double()),
        "attack": _Touch(os.system, f"touch {marker}"),
    }
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        state = collections.OrderedDict(a=torch.arange(3.0))
        torch.save({**beside, "state_dict": state, **{f"{name} again": beside[name] for name in beside}},
                   tmp_path / "x.ckpt", pickle, protocol)  # fmt: skip
        assert read_torch_zip(tmp_path / "x.ckpt")["a"].tolist() == [0, 1, 2]
    assert not marker.exists()


def test_a_pickle_that_names_modules_imports_none(tmp_path: Path) -> None:
    module = tmp_path / "hostile_module.py"
    module.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    _save_pickle(tmp_path / "x.bin", b"\x80\x02}X\x01\0\0\0achostile_module\nrun\n)\x81}bs.")
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(UserError, match="it names hostile_module.run in the place of the tensor a"):
            read_torch_zip(tmp_path / "x.bin")
    finally:
        sys.path.remove(str(tmp_path))
    assert "hostile_module" not in sys.modules and not (tmp_path / "ran").exists()


def test_the_legacy_format_is_refused_and_the_message_says_how_to_convert_it(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"x.pth is not a torch zip file: .*legacy format.*torch.save\(torch.load"):
        read_file(path)


class _Touch:
    """Runs a command if Python's own pickle unpickles it."""

    def __init__(self, function: Callable, *args: Any):
        self.call = (function, args)

    def __reduce__(self) -> tuple:
        return self.call


def _save_pickle(path: Path, value: Any, records: dict[str, bytes] | None = None) -> None:
    """Writes a pickle (given as bytes, or made from a value) and its storages as torch's zip files have them."""
    content = value if isinstance(value, bytes) else pickle.dumps(value, protocol=2)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for name, data in (records or {}).items():
            archive.writestr(f"archive/data/{name}", data)


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, "touch {marker}", r"(posix|nt)\.system"),
        (eval, "open('{marker}', 'w')", "builtins.eval|__builtin__.eval"),
        (getattr, "x", "getattr"),
        (Path.touch, "{marker}", "builtins.getattr|__builtin__.getattr|pathlib"),
        (torch.load, "{marker}", "torch.serialization.load"),
        (np.load, "{marker}", "numpy.load"),
    ],
)
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path, function: Callable, arguments: str, name: str) -> None:
    marker = tmp_path / "ran"
    path = tmp_path / "x.bin"
    _save_pickle(path, {"a": _Touch(function, arguments.format(marker=marker))})
    with pytest.raises(UserError, match=rf"cannot read {path}.*it names .*({name}).*no code was run"):
        read_torch_zip(path)
    assert not marker.exists()
    torch.save({"a": torch.ones(2), "b": _Touch(function, arguments.format(marker=marker))}, path)
    with pytest.raises(UserError, match="no code was run"):
        read_torch_zip(path)
    assert not marker.exists()


def test_a_name_below_an_allowed_one_is_refused(tmp_path: Path) -> None:
    # Protocol 4 lets a pickle ask for attributes of a name, such as collections.OrderedDict.__init__.__globals__.
    for module, name in (("collections", "OrderedDict.__class__"), ("torch", "FloatStorage.__class__")):
        stack = b"\x80\x04\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(name)]) + name.encode()
        _save_pickle(tmp_path / "x.bin", stack + b"\x93.")
        with pytest.raises(UserError, match="no code was run"):
            read_torch_zip(tmp_path / "x.bin")


def test_a_pickle_cannot_change_the_state_of_the_helpers(tmp_path: Path) -> None:
    # BUILD sets attributes of the object that a name resolved to: it must not reach any that outlives the file.
    for name in (b"torch._utils\n_rebuild_tensor_v2", b"torch\nFloatStorage", b"collections\nOrderedDict"):
        _save_pickle(tmp_path / "x.bin", b"\x80\x02c" + name + b"\n}X\x08\x00\x00\x00__call__K\x01sb.")
        with pytest.raises(UserError, match=r"x.bin"):
            read_torch_zip(tmp_path / "x.bin")
    test_a_state_dict_inside_a_checkpoint_is_read(tmp_path)


def _tensor_pickle(offset: int, size: tuple, stride: tuple, count: int, storage: str = "FloatStorage") -> bytes:
    """A pickled state dict of one tensor, a view of storage "0", as torch writes it."""

    class _Tensor:
        def __reduce__(self) -> tuple:
            arguments = (_Storage(), offset, size, stride, False, collections.OrderedDict())
            return torch._utils._rebuild_tensor_v2, arguments

    class _Storage:
        pass

    class _Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> tuple | None:
            if isinstance(value, _Storage):
                return ("storage", getattr(torch, storage), "0", "cpu", count)
            return None

    stream = io.BytesIO()
    _Pickler(stream, protocol=2).dump({"a": _Tensor()})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("offset", "size", "stride", "count"),
    [
        (0, (5,), (1,), 4),
        (1, (4,), (1,), 4),
        (0, (2, 2), (3, 1), 4),
        (-1, (2,), (1,), 4),
        (3, (2,), (-1,), 4),
        (0, (10**9,), (0,), 4),
        (0, (2,), (1, 1), 4),
        (0, (4,), (1,), 5),
        (0, (), (), 0),
    ],
)
def test_a_tensor_that_does_not_fit_its_storage_is_refused(
    tmp_path: Path, offset: int, size: tuple, stride: tuple, count: int
) -> None:
    good = tmp_path / "good.bin"
    _save_pickle(good, _tensor_pickle(1, (3,), (1,), 4), {"0": np.arange(4, dtype=np.float32).tobytes()})
    assert np.array_equal(read_torch_zip(good)["a"], [1, 2, 3])
    records = {"0": np.arange(min(count, 4), dtype=np.float32).tobytes()}
    _save_pickle(tmp_path / "x.bin", _tensor_pickle(offset, size, stride, count), records)
    with pytest.raises(UserError, match=r"cannot read .*x.bin as a torch state dict: (a tensor|storage|the storage)"):
        read_torch_zip(tmp_path / "x.bin")


@pytest.mark.parametrize("compressed", ["archive/data.pkl", "archive/data/0"])
def test_compressed_records_are_refused(tmp_path: Path, compressed: str) -> None:
    records = {"archive/data.pkl": _tensor_pickle(0, (10**6,), (1,), 10**6), "archive/data/0": bytes(4 * 10**6)}
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content, zipfile.ZIP_DEFLATED if name == compressed else zipfile.ZIP_STORED)
    with pytest.raises(UserError, match=f"record {compressed} is compressed"):
        read_torch_zip(tmp_path / "x.bin")


def test_a_dict_whose_methods_are_shadowed_is_read_as_a_dict(tmp_path: Path) -> None:
    """Torch's own state dicts have an attribute, so a pickle may set any attribute."""

    class _Shadowed:
        def __reduce__(self) -> tuple:
            return collections.OrderedDict, (), {"items": 3, "get": 3}, None, iter([("a", torch.ones(2))])

    torch.save(_Shadowed(), tmp_path / "x.bin")
    assert read_torch_zip(tmp_path / "x.bin")["a"].tolist() == [1, 1]


def test_tied_weights_are_read_and_a_thousand_names_of_one_storage_are_refused(tmp_path: Path) -> None:
    weight = torch.arange(10_000.0).reshape(100, 100)
    torch.save({"in": weight, "out": weight.T}, tmp_path / "tied.bin")
    tied = read_torch_zip(tmp_path / "tied.bin")
    assert np.array_equal(tied["in"], tied["out"].T)
    torch.save({str(number): weight for number in range(1000)}, tmp_path / "x.bin")
    with pytest.raises(
        UserError, match="x.bin has too many names for the same storage: its tensors take 40000000 bytes"
    ):
        read_torch_zip(tmp_path / "x.bin")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": torch.ones(2, dtype=torch.float64)}, "it names torch.DoubleStorage"),
        ({"a": torch.ones(2, dtype=torch.int8)}, "it names torch.CharStorage"),
        ({"a": torch.ones(2), "step": 3}, "not a plain state dict: these entries are not tensors: step"),
        ({"a": {"b": torch.ones(2)}}, "not a plain state dict: these entries are not tensors: a"),
        ({7: torch.ones(2)}, "not a plain state dict: these entries are not tensors: 7"),
        ([torch.ones(2)], "holds a list: expected a state dict"),
        (3, "holds an integer: expected a state dict"),
        (None, "holds None: expected a state dict"),
        ({"a": torch.ones(2), None: 3}, "it has a key that is None: expected texts"),
        ({"a": torch.ones(2), (1, 2): 3}, "it has a key that is a tuple: expected texts"),
        ({"a": np.float64(3)}, r"it names numpy\.(_core|core)\.multiarray\.scalar in the place of the tensor a"),
        ({"state_dict": {"a": {1, 2}}, "b": 3}, "it names (builtins|__builtin__).set in the place of the tensor a"),
        (torch.nn.Linear(2, 2), "it names torch.nn.modules.linear.Linear"),
    ],
)
def test_anything_except_a_state_dict_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    torch.save(value, tmp_path / "x.bin")
    with pytest.raises(UserError, match=rf"x.bin.*{message}"):
        read_torch_zip(tmp_path / "x.bin")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    torch.save({"a": torch.ones(1000)}, path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(np.ones(4, np.float32).tobytes()) + 64] ^= 1
    for damaged in (whole[:-30], whole[:100], b"", b"<html>", bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"x.bin is not a torch zip file: it is damaged or cut off; fetch it again"):
            read_torch_zip(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match=r"is a zip file but not from torch: expected one data.pkl, found 0"):
        read_torch_zip(path)
    _save_pickle(path, _tensor_pickle(0, (4,), (1,), 4))
    with pytest.raises(UserError, match="There is no item named 'archive/data/0'"):
        read_torch_zip(path)
    _save_pickle(path, _tensor_pickle(0, (4,), (1,), 4)[:-9], {"0": bytes(16)})
    with pytest.raises(UserError, match=r"cannot read .*x.bin as a torch state dict"):
        read_torch_zip(path)


_READ = """
import resource, sys
from pathlib import Path
from spo_jax.core.errors import UserError
from spo_jax.weights.torch_zip import read_torch_modules, read_torch_zip

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    print(len(read_torch_zip(Path(sys.argv[1]))), "tensors")
except UserError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (hostile_zips.memo_of_gigabytes, "0 tensors"),
        (hostile_zips.nested_tuples, "it has a key that is a tuple: expected texts"),
        (hostile_zips.tuples_of_twins, "it has a key that is a tuple: expected texts"),
        (hostile_zips.names_of_long_texts, "0 tensors"),
        (hostile_zips.overlapping_records, "record a/data/0000000 overlaps the next one"),
    ],
)
def test_small_files_cannot_exhaust_memory_time_or_the_stack(tmp_path: Path, attack: Callable, message: str) -> None:
    """Python's unpickler takes 4 GiB for the first, dies of the second, never ends the third; the last took 580 MB."""
    path = tmp_path / "x.bin"
    attack(path)
    ran = subprocess.run([sys.executable, "-c", _READ, path], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    *found, megabytes = ran.stdout.splitlines()
    assert message in found[0] and int(megabytes) < 100


def test_a_deep_or_long_pickle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_pickle, "_OPCODES", 1000)
    deep = b"\x80\x02" + (b"}X\x01\0\0\0a" * 60) + b"}" + b"s" * 60 + b"."
    placed = b"\x80\x02}q\0X\x01\0\0\0a}q\1sh\1X\x01\0\0\0bh\0s."
    for pickled, message in (
        (deep, "is more than 50 dicts deep"),
        (placed, "it changes a dict that is in use already"),
        (b"\x80\x02" + b"N" * 1001 + b".", "more than 1000 opcodes"),
        (b"\x80\x02}" + b"(I1\n", "it uses the opcode INT"),
        (b"\x80\x02}\x8a\x09" + b"\1" * 9 + b"K\1s.", "an integer of more than 64 bits"),
        (b"\x80\x02}X" + (2**24).to_bytes(4, "little") + bytes(2**24) + b".", "more than any state dict"),
    ):
        _save_pickle(tmp_path / "x.bin", pickled)
        with pytest.raises(UserError, match=rf"x.bin as a torch state dict: .*{message}"):
            read_torch_zip(tmp_path / "x.bin")


def test_every_protocol_of_pickle_is_read(tmp_path: Path) -> None:
    state = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.nn.Parameter(torch.ones(3).half())}
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        torch.save(
            {"epoch": 1, "betas": [(0.9, 0.99)], 3: None, "state_dict": state}, tmp_path / "x.pt", pickle, protocol
        )
        read = read_torch_zip(tmp_path / "x.pt")
        assert read["a"].tolist() == [[0, 3], [1, 4], [2, 5]] and read["b"].dtype == np.float16


def test_what_is_read_can_be_changed_without_changing_anything_else(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    torch.save({"a": base, "b": base[1:3], "c": torch.ones(3)}, tmp_path / "x.bin")
    read = read_torch_zip(tmp_path / "x.bin")
    for array in read.values():
        array += 1
    assert [array.tolist() for array in read.values()] == [[1, 2, 3, 4, 5, 6], [2, 3], [2, 2, 2]]


# Opcodes and what they are followed by, from which random programs are made.
_OPCODES = [bytes([code]) for code in b")}](tsuabR.0N2\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92Q\x93\x94"] + [
    b"K\x01", b"K\x04", b"M\x00\x01", b"J\xff\xff\xff\xff", b"q\x00", b"q\x01", b"h\x00", b"h\x01", b"X\x01\0\0\0a",
    b"X\x01\0\0\0" + b"0", b"X\x07\0\0\0storage", b"X\x03\0\0\0cpu", b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_parameter\n",
    b"cos\nsystem\n", b"ctorch\nDoubleStorage\n", b"C\x01a",
]  # fmt: skip


def _fuzzed_pickle(case: random.Random, good: bytes) -> bytes:
    if case.random() < 0.3:
        return b"\x80\x02" + b"".join(case.choices(_OPCODES, k=case.randint(1, 60))) + b"."
    if case.random() < 0.5:  # opcodes in the place of others
        at = case.randrange(len(good))
        return good[:at] + b"".join(case.choices(_OPCODES, k=case.randint(1, 5))) + good[at + case.randint(0, 3) :]
    return fuzzing.damaged(case, good)


def test_files_damaged_at_random_are_read_or_refused(tmp_path: Path) -> None:
    """Whatever the bytes are: no crash, no other error, no memory or time beyond what the file's size explains."""
    path = tmp_path / "x.bin"
    state = {"a": torch.ones(4, 6).T, "b": torch.arange(3), "c": torch.nn.Parameter(torch.ones(2).half())}
    torch.save({"epoch": 3, "state_dict": collections.OrderedDict(state)}, path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        records = {name.removeprefix("x/"): archive.read(name) for name in archive.namelist()}
    pickled = records.pop("data.pkl")
    read = 0
    for case in fuzzing.cases(200):
        if case.random() < 0.3:  # the zip file's own structures
            path.write_bytes(
                fuzzing.damaged(case, whole[-1500:]) if case.random() < 0.1 else fuzzing.damaged(case, whole)
            )
        else:
            _save_pickle(
                path, _fuzzed_pickle(case, pickled), {name.removeprefix("data/"): records[name] for name in records}
            )
        read += fuzzing.read_or_refused(case, lambda: read_torch_zip(path)) is not None
    assert read, "every case was refused: the harness makes nothing that is nearly right"
