"""Lists of prompts are fetched from where a user finds them, checked, and written whole or not at all."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from spo_jax import prepare as prepare_module
from spo_jax.core.errors import UserError
from spo_jax.data.prompts import load_prompts
from spo_jax.prepare import prepare

ENTRIES = [{"caption": "a red star", "trainset_idx": 7}, {"caption": "ein grüner Mond", "trainset_idx": 2}]
PROMPTS = ["a red star", "ein grüner Mond"]
REPEATED = json.dumps([*ENTRIES, ENTRIES[0]])


@pytest.fixture
def web() -> Iterator[SimpleNamespace]:
    """A server on the loopback: ``pages`` maps a path to its body, or to a body and headers."""
    pages = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.split("?")[0] not in pages:
                return self.send_error(404)
            page = pages[self.path.split("?")[0]]
            body, headers = page if isinstance(page, tuple) else (page, {})
            self.send_response(200)
            for name, value in {"Content-Length": str(len(body)), "Content-Type": "text/plain", **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield SimpleNamespace(pages=pages, at=f"http://127.0.0.1:{server.server_address[1]}")
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(tmp_path, monkeypatch) -> SimpleNamespace:
    """A stand-in for the hub: ``folder`` is the repository acme/pairs, and ``asked`` lists what was fetched."""
    folder = tmp_path / "hub"
    asked = []

    def resolve(name, revision, allow_patterns, repo_type):
        if Path(name).exists():
            return Path(name)
        asked.append((name, revision, repo_type, allow_patterns))
        if name != "acme/pairs":
            raise UserError(f"{name} is neither a local path nor a repository on the hub")
        return folder

    monkeypatch.setattr(prepare_module, "resolve", resolve)
    return SimpleNamespace(folder=folder, asked=asked)


def test_a_list_on_the_web_is_fetched_and_used(web, tmp_path, capsys):
    """The published list is one of objects; repeated prompts stay, because the recipe counts them."""
    web.pages["/a/list%20one.json"] = REPEATED.encode()
    done = prepare("prompts", tmp_path / "out", source=f"{web.at}/a/list%20one.json?raw=true")
    path = tmp_path / "out" / "list one.json"
    assert done == {"list one": (path, 3, 1, 0, False, "")}
    assert load_prompts(path) == [*PROMPTS, PROMPTS[0]] and "grüner" in path.read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert f"{path}: 3 prompts, 1 of them repeated, 0 entries left out; use it as --config.prompts={path}" in printed


def test_a_list_is_kept_and_another_one_does_not_replace_it(web, tmp_path):
    web.pages["/p.txt"] = b"a red star\n"
    prepare("prompts", tmp_path, source=f"{web.at}/p.txt")
    assert prepare("prompts", tmp_path, source=f"{web.at}/p.txt")["p"].kept
    web.pages["/p.txt"] = b"a blue star\n"
    with pytest.raises(UserError, match=f"{tmp_path}/p.json exists with other prompts: delete it, or choose another"):
        prepare("prompts", tmp_path, source=f"{web.at}/p.txt")
    assert load_prompts(tmp_path / "p.json") == ["a red star"]


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (None, "cannot fetch .*/p.json: HTTP Error 404: Not Found; check the address and the network"),
        ((b"<html>", {"Content-Type": "text/html; charset=utf-8"}), "is a web page: expected the address of the file"),
        ((b'["a"]', {"Content-Length": "90"}), "only 5 of 90 bytes arrived; try again"),
        (b'["a', "p.json: not JSON: "),
        (b'["\xff"]', r"p.json, line 1: byte 3 \(0xff\) is not UTF-8"),
        (b"[]", "holds no prompts: expected at least one"),
        (b'["a", "", 3]', r"2 of 3 entries are no prompts \(the first is entry 2\).*raise --max-bad"),
        (rb'["a", "\ud83d"]', r"1 of 2 entries are no prompts \(the first is entry 2\)"),
        (b'{"a": 1}', "p.json: expected a JSON list of prompts, found dict"),
    ],
)
def test_what_is_no_list_of_prompts_is_refused_and_nothing_is_written(web, tmp_path, page, message):
    if page is not None:
        web.pages["/p.json"] = page
    with pytest.raises(UserError, match=message):
        prepare("prompts", tmp_path / "out", source=f"{web.at}/p.json")
    assert not (tmp_path / "out").exists()


def test_a_few_unusable_entries_are_left_out_if_the_user_says_so(tmp_path):
    (tmp_path / "p.jsonl").write_text('"a"\n{"caption": null}\n"b"\n"c"\n')
    done = prepare("prompts", tmp_path / "out", max_bad=0.25, limit=2, source=str(tmp_path / "p.jsonl"))
    assert load_prompts(done["p"].path) == ["a", "b"] and done["p"].left_out == 1


def test_captions_of_a_split_are_taken_once_each(hub, tmp_path):
    """As Pick-a-Pic's: the split of 500 unique prompts has them with images, or in a copy without images."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (hub.folder / "data").mkdir(parents=True)
    for part, captions in enumerate((["a", "b", "a"], ["c", "b"])):
        table = pyarrow.table({"caption": captions, "image_0_uid": ["x"] * len(captions)})
        parquet.write_table(table, hub.folder / "data" / f"validation_unique-0000{part}-of-00002-ab.parquet")
    arguments = ("prompts", tmp_path / "out", ["validation_unique"])
    done = prepare(*arguments, source="acme/pairs", revision="v1")
    assert load_prompts(tmp_path / "out" / "validation_unique.json") == ["a", "b", "c"]
    assert done["validation_unique"].prompts == 3
    ((name, revision, kind, patterns),) = hub.asked
    assert (name, revision, kind) == ("acme/pairs", "v1", "dataset")
    assert all("validation_unique" in pattern for pattern in patterns)
    assert prepare(*arguments, source=str(hub.folder))["validation_unique"].kept  # a local copy
    with pytest.raises(UserError, match="no parquet files of split train in --source=acme/pairs, only of: valid"):
        prepare("prompts", tmp_path / "out", ["train"], source="acme/pairs")
    (hub.folder / "data" / "validation_unique-00001-of-00002-ab.parquet").unlink()
    with pytest.raises(UserError, match="1 of its 2 parquet files are missing"):
        prepare(*arguments, source="acme/pairs")


def test_without_pyarrow_nothing_is_fetched(hub, tmp_path, monkeypatch):
    for module in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match="reading parquet files needs pyarrow: run pip install pyarrow"):
        prepare("prompts", tmp_path / "out", ["train"], source="acme/pairs")
    assert hub.asked == []


def test_one_file_of_a_repository_is_fetched(hub, tmp_path):
    (hub.folder / "lists").mkdir(parents=True)
    (hub.folder / "lists" / "p[1].json").write_text(REPEATED)
    prepare("prompts", tmp_path / "out", source="acme/pairs/lists/p[1].json")
    assert load_prompts(tmp_path / "out" / "p[1].json") == [*PROMPTS, PROMPTS[0]]
    assert hub.asked == [("acme/pairs", None, "dataset", ["lists/p[[]1].json"])]
    with pytest.raises(UserError, match="there is no such file here, and no other.json in acme/pairs"):
        prepare("prompts", tmp_path / "out", source="acme/pairs/other.json")
    with pytest.raises(UserError, match="--source=data/typo/p.json is not here: data/typo is neither"):
        prepare("prompts", tmp_path / "out", source="data/typo/p.json")


@pytest.mark.parametrize(
    ("splits", "options", "message"),
    [
        ([], {}, "--source = '': expected a file, a URL, a folder of parquet files, a hub id"),
        ([], {"source": "acme/pairs"}, "--source=acme/pairs is not a file: .* such as --splits=validation_unique"),
        (["train"], {"source": "http://127.0.0.1:9/p.json"}, "--splits=train: --source=http.* is one file"),
        ([], {"source": "http://127.0.0.1:9/p.json"}, "cannot fetch http://127.0.0.1:9/p.json: .Errno.*refused"),
        ([], {"source": "http://127.0.0.1:9/p.json", "revision": "v1"}, "--revision=v1 is for hub ids"),
        ([], {"source": "typo.json"}, "no such file or folder: typo.json"),
        ([], {"source": "/nonexist/b/missing.json"}, "no such file or folder: /nonexist/b/missing.json"),
        ([], {"source": "tests/data/p.json"}, "no such file or folder: tests/data/p.json"),
        (["train"], {"source": "data/pick/a_pic"}, "no such file or folder: data/pick/a_pic"),
        ([], {"source": "typo.json", "limit": -1}, "--limit=-1: expected 0 or more"),
    ],
)
def test_wrong_options_are_refused(hub, tmp_path, splits, options, message):
    with pytest.raises(UserError, match=message):
        prepare("prompts", tmp_path / "out", splits, **options)
    assert not (tmp_path / "out").exists()
