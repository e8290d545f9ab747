"""The page in a browser: votes by keys, a reload in the middle, two people at once, narrow and dark."""

import functools
import json

import pytest

from spo_jax.work.demo.ballot import COLLECT, COMPARE
from tests.work.demo.serving import serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("page")) as page_and_address:
        yield page_and_address


@pytest.fixture
def visit(open_tab, served):
    return functools.partial(open_tab, served[1], "Vote", "#start-voting")


def lines(served, kind):
    file = served[0].out / kind / "train.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def press(tab, key, seen):
    """Presses a key, and waits until the status counts ``seen`` votes and there is another pair."""
    images = "[...document.querySelectorAll('.pair img')].map((image) => image.src).join()"
    before = tab.evaluate(images)
    tab.keyboard.press(key)
    tab.wait_for_function(f"{images} !== {json.dumps(before)}")
    tab.wait_for_function(f"document.querySelector('#vote-status').innerText.startsWith('{seen} vote')")
    tab.wait_for_timeout(250)  # bounces of a key are no votes


def test_votes_by_keys_a_reload_and_two_people(visit, served):
    first = visit()
    first.click("#start-voting")
    first.wait_for_selector("#vote-left")
    for number, key in enumerate(["1", "2", "0", " "], 1):
        press(first, key, min(number, 3))
    assert [line["label"] for line in lines(served, COLLECT)] == [0, 1, 0.5]
    twice = "new KeyboardEvent('keydown', {key: '1', bubbles: true})"  # nobody has seen the next pair
    first.evaluate(f"for (let i = 0; i < 2; i++) document.body.dispatchEvent({twice})")
    first.wait_for_function("document.querySelector('#vote-status').innerText.startsWith('4 votes')")
    first.wait_for_timeout(500)
    assert len(lines(served, COLLECT)) == 4

    # After a reload the voting goes on; a second person votes in between.
    first.reload()
    first.wait_for_selector("#vote-left")
    second = visit()
    second.click("#start-voting")
    second.wait_for_selector("#vote-left")
    press(second, "2", 5)
    press(first, "2", 6)
    assert [line["label"] for line in lines(served, COLLECT)] == [0, 1, 0.5, 0, 1, 1]


def test_names_are_hidden_until_the_end(visit, served):
    tab = visit()
    tab.get_by_label("Two LoRAs, without their names").check()
    for name, lora in (("first", "dark"), ("second", "light")):
        tab.locator(f"#vote-{name} input").fill(lora)
        tab.locator(f"#vote-{name} input").press("Enter")
    tab.click("#start-voting")
    tab.wait_for_selector("#vote-left")
    booth = tab.locator("#vote-prompt, .pair, #vote-status")
    for number in range(1, 4):
        assert not any(
            "dark" in html or "light" in html for html in booth.evaluate_all("all => all.map(e => e.outerHTML)")
        )
        press(tab, "1", number)
    tab.click("#vote-end")
    tab.wait_for_selector("text=3 decided votes")
    assert len(lines(served, COMPARE)) == 3 and all(line["blind"] for line in lines(served, COMPARE))
    assert not tab.is_visible("#vote-left")
    tab.keyboard.press("1")  # the comparison is closed
    tab.reload()
    tab.get_by_role("tab", name="Vote").click()
    tab.get_by_label("Two LoRAs, without their names").check()
    for name, lora in (("first", "dark"), ("second", "light")):
        tab.locator(f"#vote-{name} input").fill(lora)
        tab.locator(f"#vote-{name} input").press("Enter")
    tab.click("#start-voting")
    tab.wait_for_selector("text=no longer counted as blind")
    press(tab, "1", 4)
    assert [line["blind"] for line in lines(served, COMPARE)] == [True, True, True, False]
    tab.click("#vote-end")
    tab.wait_for_selector("text=Not counted: 1 vote")
    tab.click("#vote-go-on")
    tab.wait_for_selector("#vote-left")


def test_voting_can_be_started_again_after_a_mistake(visit):
    tab = visit()
    tab.get_by_label("Two LoRAs, without their names").check()
    tab.wait_for_selector("#vote-second input")
    tab.wait_for_function("document.querySelector('#vote-second input').value !== 'no LoRA'")
    for lora in ("dark", "light"):
        tab.locator("#vote-first input").fill("dark")
        tab.locator("#vote-first input").press("Enter")
        tab.locator("#vote-second input").fill(lora)
        tab.locator("#vote-second input").press("Enter")
        tab.click("#start-voting")
        if lora == "dark":
            tab.wait_for_selector("text=both sides are the same")
            tab.wait_for_selector("#start-voting:enabled:has-text('Start voting')")
    tab.wait_for_selector("#vote-left")


def test_keys_in_a_field_are_no_votes(visit, served):
    tab = visit()
    tab.click("#start-voting")
    tab.wait_for_selector("#vote-left")
    tab.get_by_text("What to vote on").click()
    tab.get_by_text("Prompts and settings").click()
    before = len(lines(served, COLLECT))
    tab.get_by_label("Your name").fill("")
    tab.get_by_label("Your name").press_sequentially("Ann 1 2 0")
    tab.get_by_role("tab", name="My taste").click()
    tab.keyboard.press("1")  # the buttons are hidden
    tab.wait_for_timeout(500)
    assert len(lines(served, COLLECT)) == before


def test_the_page_fits_a_telephone(visit):
    tab = visit(viewport={"width": 390, "height": 844}, color_scheme="dark")
    tab.click("#start-voting")
    tab.wait_for_selector("#vote-left")
    for name in ("Vote", "My taste"):
        tab.get_by_role("tab", name=name).click()
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.get_by_role("tab", name="Vote").click()
    left, right = (tab.locator(f"#image-{side}").bounding_box() for side in ("left", "right"))
    assert left["y"] == right["y"] and left["width"] > 140
