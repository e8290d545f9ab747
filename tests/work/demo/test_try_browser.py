"""The tab Try in a browser: draw, change the strength, stop, mistakes, narrow and dark."""

import functools

import pytest

from tests.work.demo.serving import serving
from tests.work.demo.test_try_tab import small_page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    with serving(folder, small_page(folder)) as (_, address):
        yield address


@pytest.fixture
def visit(open_tab, address):
    return functools.partial(open_tab, address, "Try", "#try-draw")


def fill(tab, name, value):
    field = tab.locator(f"#try-{name} input[type=number]").first
    field.fill(value)
    field.press("Tab")


def says(tab, text):
    tab.wait_for_function("text => document.querySelector('#try-status').innerText.includes(text)", arg=text)


def source(tab, name):
    return tab.locator(f"#try-{name} img").first.get_attribute("src")


def test_draw_then_another_strength_then_a_mistake(visit):
    tab = visit()
    tab.click("text=Steps and guidance")
    fill(tab, "steps", "4")
    tab.click("#try-draw")
    says(tab, "Drew 2 images of a red star from the same noise")
    assert tab.locator("#try-strip img").count() == 2 * (4 + 1)
    assert "Amplified" in tab.inner_text("#try-legend")
    base, tuned = source(tab, "base"), source(tab, "with")
    fill(tab, "strength", "0.3")
    tab.click("#try-draw")
    tab.wait_for_function("src => document.querySelector('#try-with img').getAttribute('src') !== src", arg=tuned)
    says(tab, "Drew 2 images")
    assert source(tab, "base") == base
    fill(tab, "seed", "-3")
    tab.click("#try-draw")
    says(tab, "--seed=-3: expected a number from 0 to")
    assert "Traceback" not in tab.inner_text("body")


def test_stop_ends_a_drawing_and_another_can_begin(visit):
    tab = visit()
    tab.click("text=Steps and guidance")
    fill(tab, "steps", "100")
    fill(tab, "seed", "7")
    tab.click("#try-draw")
    says(tab, " of 100")
    tab.click("#try-stop")
    says(tab, "Stopped.")
    fill(tab, "steps", "2")
    tab.click("#try-draw")
    says(tab, "Drew 2 images")


def test_the_tab_fits_a_telephone(visit):
    tab = visit(viewport={"width": 390, "height": 844}, color_scheme="dark")
    tab.click("#try-draw")
    says(tab, "Drew 2 images")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    base, tuned = (tab.locator(f"#try-{name}").bounding_box() for name in ("base", "with"))
    assert base["y"] == tuned["y"] and base["width"] > 140
