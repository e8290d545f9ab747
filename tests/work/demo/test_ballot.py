"""A ballot: blind and balanced pairs, each voted on once, and tallies that know which side was which."""

import collections
import dataclasses
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from spo_jax.core.errors import UserError
from spo_jax.core.tally import Tally
from spo_jax.work.demo.ballot import COLLECT, COMPARE, Ballot, Setup, result
from spo_jax.work.demo.votes import VoteFolder
from tests.work.demo.fakes import fake_page

BLIND = Setup(kind=COMPARE, first="dark", second="light")


@pytest.fixture
def page(tmp_path):
    return fake_page(tmp_path)


def brightness(image):
    """The LoRA that drew an image, by the image alone."""
    return {0: "dark", 64: "", 255: "light"}[image[5, 5, 0]]


def noise(image):
    """The noise of an image, by the image alone."""
    return image[0, 0, 0]


def test_blind_pairs_come_in_both_orders_with_equal_noise(page):
    ballot = Ballot(page)
    pairs = [ballot.next_pair(BLIND) for _ in range(64)]
    orders = collections.Counter(tuple(map(brightness, pair.images)) for pair in pairs)
    assert set(orders) == {("dark", "light"), ("light", "dark")}
    assert min(orders.values()) > 10  # fewer happen once in 10 million times
    assert all(noise(pair.images[0]) == noise(pair.images[1]) for pair in pairs)
    assert len({pair.token for pair in pairs}) == 64
    assert not any("dark" in pair.token or "light" in pair.token for pair in pairs)


def test_pairs_of_one_model_differ_in_noise_alone(page):
    ballot = Ballot(page)
    pairs = [ballot.next_pair(Setup(first="light", prompts="a pink cross\n\n")) for _ in range(20)]
    assert {brightness(image) for pair in pairs for image in pair.images} == {"light"}
    assert sum(noise(pair.images[0]) != noise(pair.images[1]) for pair in pairs) > 15
    assert {pair.prompt for pair in pairs} == {"a pink cross"}


def test_pairs_are_drawn_ahead_and_in_batches_of_one_size(page):
    ballot = Ballot(page)
    for _ in range(12):
        ballot.next_pair(BLIND)
        ballot.next_pair(Setup())
    assert {len(prompts) for prompts, _, _ in page.studio.calls} == {16}
    assert len(page.studio.calls) < 12


def test_many_people_who_vote_on_different_things_wait_for_one_batch_each(page, monkeypatch):
    """More of them at a time than there are stocks: nobody's images are drawn for nothing."""
    monkeypatch.setattr("spo_jax.work.demo.pairs._MOST_STOCKS", 1)
    ballot = Ballot(page)
    people = [Setup(prompts=f"prompt {number}") for number in range(6)]
    with page.device, ThreadPoolExecutor(len(people)) as pool:
        waiting = [pool.submit(ballot.next_pair, person) for person in people]
        end = time.monotonic() + 60
        while ballot._stock._drawer._work_queue.qsize() < len(people) - 1:  # the first is about to draw
            assert time.monotonic() < end
            time.sleep(0.01)
        page.device.__exit__()
        shown = [future.result(timeout=120) for future in waiting]
        page.device.__enter__()
    assert [pair.prompt for pair in shown] == [person.prompts for person in people]
    assert len(page.studio.calls) == len(people)


def test_a_tally_knows_which_side_was_which(page):
    """Always votes for the light image, wherever it is shown, but for two ties and a vote for the dark one."""
    ballot = Ballot(page)
    for number in range(12):
        pair = ballot.next_pair(BLIND)
        light = "left" if brightness(pair.images[0]) == "light" else "right"
        other = {"left": "right", "right": "left"}[light]
        assert ballot.vote(pair.token, {3: "tie", 4: "tie", 5: other}.get(number, light))
    matchup = ballot.matchup(BLIND)
    assert ballot.tally(matchup) == Tally(first=1, second=9, ties=2)
    swapped = Setup(kind=COMPARE, first="light", second="dark")
    assert Ballot(page).tally(ballot.matchup(swapped)) == Tally(first=9, second=1, ties=2)  # after a restart as well
    # A LoRA that was trained again under the same name is another one.
    (page.runs / "light" / "lora.safetensors").write_bytes(b"trained again")
    assert ballot.tally(ballot.matchup(BLIND)) == Tally(0, 0, 0)


def test_no_pair_is_drawn_with_a_lora_that_has_just_changed(page):
    """Its votes would count for the LoRA that was there before."""
    ballot = Ballot(page)
    matchup = ballot.matchup(BLIND)
    (page.runs / "light" / "lora.safetensors").write_bytes(b"trained again")
    with pytest.raises(UserError, match="the file of a LoRA has just changed: start voting again"):
        ballot._stock.take(matchup)
    assert ballot.next_pair(BLIND).matchup.versions != matchup.versions


def test_a_vote_counts_once_and_a_skip_leaves_nothing(page):
    ballot = Ballot(page)
    pair = ballot.next_pair(Setup())
    assert ballot.vote(pair.token, "right", "Ann\ud800") and not ballot.vote(pair.token, "left", "Ann")
    skipped = ballot.next_pair(Setup())
    assert ballot.vote(skipped.token, "skip") and not ballot.vote(skipped.token, "left")
    assert not ballot.vote("unknown", "left")
    (kept,) = VoteFolder(ballot.folder(COLLECT)).read()
    assert (kept["label"], kept["prompt"], kept["voter"]) == (1, pair.prompt, "Ann?")
    assert ballot.count(COLLECT) == 1 and ballot.count(COMPARE) == 0
    with pytest.raises(UserError, match="a vote is one of left, right, tie, skip, not 'up'"):
        ballot.vote(ballot.next_pair(Setup()).token, "up")


def test_a_vote_that_could_not_be_written_can_be_tried_again(page):
    ballot = Ballot(page)
    pair = ballot.next_pair(Setup())
    page.out.write_text("in the way")
    with pytest.raises(UserError, match="votes"):
        ballot.vote(pair.token, "left")
    page.out.unlink()
    assert ballot.vote(pair.token, "left") and ballot.count(COLLECT) == 1


def test_what_cannot_be_voted_on_is_refused(page, tmp_path):
    ballot = Ballot(page)
    with pytest.raises(UserError, match="both sides are the same"):
        ballot.next_pair(Setup(kind=COMPARE, first="dark", second="dark"))
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "lora.safetensors").write_bytes(b"")
    (page.runs / "link").symlink_to(tmp_path / "outside")
    for name in ("absent", str(tmp_path / "outside"), "../outside", "link", "/etc/passwd"):
        with pytest.raises(UserError, match="the page reads those below"):
            ballot.next_pair(Setup(first=name))
    with pytest.raises(UserError, match="--steps=2000"):
        ballot.next_pair(Setup(steps=2000))
    assert ballot.next_pair(Setup())  # and the page goes on


def test_a_lora_that_was_named_at_the_start_may_be_elsewhere_and_is_not_looked_for_again(page, tmp_path, monkeypatch):
    """A vote on a LoRA of the hub asks no other host."""
    file = tmp_path / "bright" / "lora.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"of the hub")
    page = dataclasses.replace(page, named_loras={"owner/bright": file})
    monkeypatch.setattr("spo_jax.work.demo.context.find_lora", None)
    assert ("owner/bright", "owner/bright") in page.lora_choices()
    assert page.lora_file("owner/bright") == file and page.lora("owner/bright") == "bright"
    assert len(page.lora_version("owner/bright")) == 16


def test_other_lines_in_the_folder_are_no_votes_of_a_comparison(page):
    ballot = Ballot(page)
    file = ballot.folder(COMPARE) / "train.jsonl"
    file.parent.mkdir(parents=True)
    lines = [{"label": 1}, {"label": 0, "loras": ["dark", "light"], "versions": 3}, [1], {"loras": [["dark"], "light"]}]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + "no JSON\n")
    assert ballot.tally(ballot.matchup(BLIND)) == Tally(0, 0, 0)


def test_the_result_in_words():
    won = result(("runs_a", ""), Tally(first=5, second=25, ties=4))
    assert "| `runs_a` | 5 |" in won and "| `no LoRA` | 25 |" in won and "| tie | 4 |" in won
    assert "`no LoRA` won 83% of 30 decided votes (95 % interval 66% to 93%)." in won
    assert "`no LoRA` is preferred" in won and "p = 0.00032" in won
    assert "votes of more people can tell (sign test, p = 0.39)" in result(("a", "b"), Tally(20, 14, 0))
    assert "| `a\\|'b` | 20 |" in result(("a|`b", "b"), Tally(20, 14, 0))
    assert "No vote is decided yet." in result(("a", "b"), Tally(0, 0, 2))
