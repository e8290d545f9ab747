"""The page in a browser: leafing, drawing, blind votes by keys, a reload, what is saved, narrow and dark."""

import re

import pytest
import scipy.stats

from spo_jax.core.tally import Tally
from spo_jax.data.preferences.check import Pair, check
from spo_jax.data.preferences.sources.folder import open_form
from spo_jax.work.evaluate.compare import compare
from spo_jax.work.evaluate.outputs import write_results
from tests.run.report.test_page import contrast
from tests.work.evaluate.made_up import HOSTILE, made_up

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    evaluation = made_up(folder, prompts=9)
    evaluation.prompts[0] = HOSTILE
    write_results(compare(evaluation), folder)
    return folder


@pytest.fixture
def visit(browser, written):
    """Opens the page from disk as a new person; it asks nobody for anything, and has no errors."""
    contexts, wrong = [], []

    def opened(**how):
        contexts.append(browser.new_context(**how))
        tab = contexts[-1].new_page()
        tab.set_default_timeout(20_000)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("console", lambda said: said.type == "error" and wrong.append(said.text))
        tab.on(
            "request", lambda request: request.url.startswith(("file:", "data:", "blob:")) or wrong.append(request.url)
        )
        tab.goto((written / "index.html").as_uri())
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert not wrong


def test_a_table_that_is_too_wide_says_so(visit):
    table = "#scores .card.wide"
    wide, narrow = (visit(viewport={"width": width, "height": 800}) for width in (2400, 390))
    assert not wide.locator("#scores .scroll-hint").is_visible()
    narrow.wait_for_selector("#scores .scroll-hint", state="visible")
    narrow.wait_for_selector(f"{table}.more")
    narrow.eval_on_selector(table, "table => table.scrollTo(table.scrollWidth, 0)")
    narrow.wait_for_selector(f"{table}:not(.more)")


def sides(tab):
    return [tab.get_attribute(f"#vote-{side}", "src") for side in ("left", "right")]


def vote_for(tab, name):
    """Votes for a contestant, whose images the test knows from the page's data; None for a tie."""
    shown = tab.evaluate("DATA.items.map((item) => item.shown)")
    left = sides(tab)[0]
    is_left = name is not None and any(item[name]["source"] == left for item in shown)
    tab.keyboard.press("0" if name is None else "1" if is_left else "2")


def test_the_page_is_alive_and_texts_are_texts(visit):
    tab = visit()
    assert tab.inner_text("#prompt") == HOSTILE
    assert tab.locator("#shots img").count() == 5 and tab.locator("#plot svg .front").count() == 1
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    assert tab.inner_text("#prompt") == "a panda number 1" and "3 of 18: prompt 2, image 1" in tab.inner_text(
        "#position"
    )
    tab.keyboard.press("ArrowLeft")
    assert "image 2" in tab.inner_text("#position")
    tab.select_option("#wins-by", "hpsv21")
    assert tab.locator(".matrix:visible").count() == 1 and "theirs" not in tab.inner_text(".matrix:visible")
    tab.select_option("#across", "saturation")
    assert tab.locator("#plot svg .front").count() == 0  # a sign has no better direction
    assert tab.locator("#plot .knee-ring").count() == 1


@SLOW
def test_blind_votes_by_keys_outlive_a_reload(visit):
    tab = visit()
    tab.select_option("#vote-first", "base")
    tab.select_option("#vote-second", "spo@1")
    tab.click("#start")
    assert not tab.is_visible("#images")  # it names who made what
    booth = tab.locator("#voting").evaluate("booth => booth.outerHTML")
    assert "base<" not in booth and "spo@1" not in booth
    for name in ("spo@1", "spo@1", "base", None, "spo@1"):
        vote_for(tab, name)
    before = sides(tab)
    tab.keyboard.press("u")
    vote_for(tab, "spo@1")
    assert sides(tab) == before
    tab.reload()
    assert tab.inner_text("#vote-message") == "5 votes on this pair are kept in this browser."
    assert [tab.input_value(f"#vote-{which}") for which in ("first", "second")] == ["base", "spo@1"]
    assert tab.is_visible("#save-jsonl") and tab.is_visible("#forget") and tab.inner_text("#start") == "Continue"
    tab.select_option("#vote-second", "spo@2")
    assert tab.inner_text("#vote-message") == "5 votes on other pairs are kept in this browser."
    assert tab.is_visible("#save-jsonl") and not tab.is_visible("#forget") and tab.inner_text("#start") == "Start"
    tab.select_option("#vote-second", "spo@1")
    tab.click("#start")
    assert sides(tab) == before and tab.inner_text("#vote-message") == "5 voted, 13 to go."
    tab.click("#end")
    text = tab.inner_text("#tally-text")
    assert text.startswith("base 1, spo@1 3, ties 1.")
    tally = Tally(first=3, second=1, ties=1)
    assert tally.p_value() == 0.625 and "p = 0.63" in text
    row = tab.locator("#tally tbody tr").first.inner_text()
    low, high = (round(100 * end) for end in tally.interval())
    assert "25 %" in row and f"{low} to {high} %" in row
    judged = tab.locator("#tally tbody tr", has_text="pickscore").inner_text()
    assert "0 %" in judged and "75 % of 4" in judged  # the reward always prefers the LoRA
    # Once the names have been shown, votes are no longer blind.
    tab.click("#start")
    assert "so further votes do not count as blind" in tab.inner_text("#vote-message")
    vote_for(tab, "base")
    tab.click("#end")
    assert "Not counted: 1 after the names were shown." in tab.inner_text("#tally-text")
    tab.click("#forget")
    tab.reload()
    tab.select_option("#vote-second", "spo@1")
    tab.click("#start")
    assert tab.inner_text("#vote-message") == "0 voted, 18 to go."


@SLOW
def test_the_same_votes_in_all_orders_and_all_pairs_of_sides(visit):
    tab = visit()
    tab.click("#start")
    shown = tab.evaluate("DATA.items.map((item) => [item.shown.base.source, item.shown['spo@0.5'].source])")
    order, on_the_left = [], 0
    while tab.is_visible("#vote-left"):
        left, right = sides(tab)
        (place,) = (number for number, pair in enumerate(shown) if {left, right} == set(pair))
        order.append(place)
        on_the_left += left == shown[place][0]
        tab.click("#voting .choices [data-vote='1']")
    assert sorted(order) == list(range(18)) and order != sorted(order)
    assert 3 <= on_the_left <= 15
    last = sides(tab)
    tab.keyboard.press("1")  # there is nothing to vote on
    assert tab.inner_text("#vote-message").startswith("All 18 are voted on.")
    tab.keyboard.press("u")
    assert tab.is_visible("#vote-left") and sides(tab) == last
    tab.keyboard.press("2")
    assert not tab.is_visible("#tally")  # which names the two
    tab.click("#end")
    assert tab.inner_text("#start") == "Show the result"
    tab.click("#start")
    assert "0 to go" not in tab.inner_text("#vote") and "18 decided" in tab.inner_text("#tally")


@SLOW
def test_saved_votes_are_preference_pairs(visit, written):
    tab = visit()
    tab.click("#start")
    for name in ("spo@0.5", "base", None):
        vote_for(tab, name)
    tab.click("#end")
    for button, name in (("#save-jsonl", "train.jsonl"), ("#save-csv", "train.csv")):
        with tab.expect_download() as download:
            tab.click(button)
        assert download.value.suggested_filename == name
        file = written / "images" / name  # where the page says
        download.value.save_as(file)
        pairs = [check(raw) for raw in open_form(file.parent).rows("train")]
        assert len(pairs) == 3 and all(isinstance(pair, Pair) for pair in pairs)
        wins = [
            (raw.images[raw.labels.index(1)].name if 1 in raw.labels else "")
            for raw in open_form(file.parent).rows("train")
        ]
        assert [name.partition("/")[0] for name in wins] == ["spo@0.5", "base", ""]
        file.unlink()
    assert f"--source={written / 'images'} " in tab.inner_text("#export-hint pre")


@SLOW
@pytest.mark.parametrize(("wins", "count"), [(0, 0), (0, 5), (7, 10), (480, 1000), (1200, 2000)])
def test_the_page_counts_as_python_does(visit, wins, count):
    script = (visit().locator("script").last.inner_text()).partition("function wilson")[2].partition("const percent")[0]
    tab = visit()
    low, high, p = tab.evaluate(
        f"(() => {{ function wilson{script}; return [...wilson({wins}, {count}), signTest({wins}, {count})]; }})()"
    )
    tally = Tally(first=count - wins, second=wins, ties=0)
    assert (low, high) == pytest.approx(tally.interval(), abs=1e-9)
    assert p == pytest.approx(tally.p_value(), rel=1e-6)
    assert not count or p == pytest.approx(scipy.stats.binomtest(wins, count).pvalue, rel=1e-6)


@SLOW
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_telephone_and_can_be_read(visit, scheme):
    tab = visit(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    colours = "cell => [getComputedStyle(cell).color, getComputedStyle(cell).backgroundColor]"
    grounds = tab.evaluate(f"[...document.querySelectorAll('.wins .win, .wins .loss')].map({colours})")
    assert len(grounds) > 10
    assert all(contrast(*map(as_hex, pair)) >= 4.5 for pair in grounds)
    tab.click("#start")
    left, right = (tab.locator(f"#vote-{side}").bounding_box() for side in ("left", "right"))
    assert left["y"] == right["y"] and left["width"] > 140
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


def as_hex(colour):
    """Returns a computed colour, which is rgb(…) in 0 to 255 or color(srgb …) in 0 to 1, as #rrggbb."""
    numbers = [float(number) for number in re.findall(r"[\d.]+", colour)][:3]
    scale = 255 if "srgb" in colour else 1
    return "#" + "".join(f"{round(number * scale):02x}" for number in numbers)


@SLOW
def test_without_scripts_the_tables_are_there(visit):
    tab = visit(java_script_enabled=False)
    assert tab.locator(".matrix:visible").count() == 2 and tab.locator(".values").is_visible()
    assert "needs JavaScript" in tab.inner_text("#vote") and not tab.is_visible("#start")
