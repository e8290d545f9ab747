"""Votes on disk: nothing that was confirmed is lost, nothing is overwritten, and `prepare` reads all of it."""

import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spo_jax.core.errors import UserError
from spo_jax.data.preferences.check import Pair, check
from spo_jax.data.preferences.sources.folder import Options, open_source
from spo_jax.work.demo import votes
from spo_jax.work.demo.votes import LEFT, RIGHT, TIE, Vote, VoteFolder


def vote(number: int, label: int | float = LEFT, voter: str = "") -> Vote:
    """A vote whose left image has the colour ``number``."""
    images = (np.full((8, 8, 3), number, np.uint8), np.full((8, 8, 3), 255, np.uint8))
    return Vote("a red star", images, label, {"voter": voter, "number": number})


def prepared(folder) -> list[Pair]:
    """What `prepare` makes of a folder; every row has to be a pair."""
    pairs = [check(raw) for raw in open_source(Options(source=str(folder)), (), Path).rows("train")]
    assert all(isinstance(pair, Pair) for pair in pairs), pairs
    return pairs


def test_prepare_reads_votes_with_all_that_they_say_besides(tmp_path):
    folder = VoteFolder(tmp_path / "votes")
    for number, label in enumerate([LEFT, RIGHT, TIE]):
        folder.add(vote(number, label, voter="Zoë"))
    assert [pair.labels for pair in prepared(folder.folder)] == [(1, 0), (0, 1), (0.5, 0.5)]
    assert [pair.caption for pair in prepared(folder.folder)] == ["a red star"] * 3
    for number, entry in enumerate(folder.read()):
        assert (entry["voter"], entry["number"]) == ("Zoë", number)
        assert np.asarray(Image.open(folder.folder / entry["image_0"]))[0, 0, 0] == number
        assert np.asarray(Image.open(folder.folder / entry["image_1"]))[0, 0, 0] == 255


def _vote_often(folder, voter, start):
    start.wait()
    for number in range(15):
        VoteFolder(folder).add(vote(number, voter=voter))


def test_two_processes_that_vote_at_once_overwrite_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    voters = [context.Process(target=_vote_often, args=(tmp_path, name, start)) for name in ("Ann", "Bob")]
    for process in voters:
        process.start()
    for process in voters:
        process.join()
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    for name in ("Ann", "Bob"):
        assert [entry["number"] for entry in kept if entry["voter"] == name] == list(range(15))
    files = {entry[key] for entry in kept for key in ("image_0", "image_1")}
    assert len(files) == 60 == len(list((tmp_path / "images").iterdir()))
    assert len(prepared(tmp_path)) == 30


def _die_before_the_line(folder):
    votes._append = lambda path, line: os._exit(9)
    VoteFolder(folder).add(vote(1))


def test_a_process_that_is_killed_between_image_and_line_leaves_no_half_of_a_vote(tmp_path):
    VoteFolder(tmp_path).add(vote(0))
    killed = multiprocessing.get_context("spawn").Process(target=_die_before_the_line, args=(tmp_path,))
    killed.start()
    killed.join()
    assert killed.exitcode == 9 and len(list((tmp_path / "images").iterdir())) == 4
    VoteFolder(tmp_path).add(vote(2))  # its lock is gone with the process
    assert [entry["number"] for entry in VoteFolder(tmp_path).read()] == [0, 2]
    assert len(prepared(tmp_path)) == 2


def test_half_of_a_line_is_removed_and_a_line_without_an_end_is_kept(tmp_path):
    folder = VoteFolder(tmp_path)
    folder.add(vote(0))
    file = tmp_path / "train.jsonl"
    file.write_bytes(file.read_bytes() + b'{"prompt": "a re')
    assert len(folder.read()) == 1
    folder.add(vote(1))
    file.write_bytes(file.read_bytes().rstrip(b"\n"))
    folder.add(vote(2))
    assert [entry["number"] for entry in folder.read()] == [0, 1, 2]
    assert len(prepared(tmp_path)) == 3


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    folder = VoteFolder(tmp_path)
    folder.add(vote(0))
    before = (tmp_path / "train.jsonl").read_bytes()
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:20]))
    with pytest.raises(UserError, match="cannot write the vote to .*train.jsonl: the disk is full"):
        folder.add(vote(1))
    monkeypatch.undo()
    assert (tmp_path / "train.jsonl").read_bytes() == before
    folder.add(vote(2))
    assert len(prepared(tmp_path)) == 2


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "votes").write_text("a file")
    with pytest.raises(UserError, match="votes"):
        VoteFolder(tmp_path / "votes").add(vote(0))
    assert VoteFolder(tmp_path / "absent").read() == []
