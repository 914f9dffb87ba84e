"""The published page in headless Chromium; skipped where there is none."""

import importlib.util
import json
from pathlib import Path

import pytest
from bundles_factory import make_bundle
from test_publish import HOSTILE, hostile_bundle

from harness.leaderboard.bundle import write_bundle
from harness.leaderboard.publish import publish, write_publication

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "drive_page.py"
SPEC = importlib.util.spec_from_file_location("drive_page", SCRIPT)
driver = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(driver)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(driver.find_chromium() is None, reason="there is no Chromium"),
]
ROWS = f"[...{driver.PANEL}.querySelectorAll('table.runs tbody tr:not([hidden])')]"
SETTLED = "new Promise((done) => setTimeout(done, 150))"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    for draw in range(6):
        bundle = make_bundle(
            dataset="trashnet",
            classes=6,
            n=300,
            seeds=(1,),
            draw=draw,
            backbone=f"net{draw}",
            quality=0.5 + 0.07 * draw,
            seconds=10.0 * 2**draw,
            optimizer="sgd" if draw % 2 else "adamw",
        )
        write_bundle(folder / "records", bundle)
    write_bundle(folder / "records", make_bundle(dataset="many", classes=40, n=80, seeds=(1, 2)))
    for text in HOSTILE:
        write_bundle(folder / "records", hostile_bundle(text))
    write_publication(publish(folder / "records"), folder)
    return (folder / "index.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    with driver.chromium(driver.find_chromium()) as page:
        yield page


@pytest.fixture
def page(browser, address):
    browser.resize(1440, 900)
    browser.open(f"{address}#data-trashnet")
    yield browser
    assert browser.complaints() == []
    assert [url for url in browser.requests() if not url.startswith((address, "about:", "data:"))] == []


def cells(page, column):
    return page.run(f"{ROWS}.map((row) => row.cells[{column}].textContent)")


def click(page, column):
    head = f"{driver.PANEL}.querySelectorAll('table.runs thead th')[{column}]"
    page.run(f"{head}.querySelector('button').click()")
    return page.run(f"{head}.getAttribute('aria-sort')")


def test_a_click_on_a_header_sorts_and_says_so(page):
    for column in (2, 10):
        first = click(page, column)
        one = cells(page, 1)
        second = click(page, column)
        assert {first, second} == {"ascending", "descending"}
        assert cells(page, 1) == one[::-1]
    assert cells(page, 1) == [f"net{n}" for n in range(6)][::-1]
    sorted_heads = page.run(f"{driver.PANEL}.querySelectorAll('[aria-sort]').length")
    assert sorted_heads == 1
    assert "Train" in page.run("document.getElementById('status').textContent")


def test_a_filter_leaves_what_holds_all_words(page):
    page.run("document.getElementById('filter').value = 'SGD net'")
    page.run("document.getElementById('filter').dispatchEvent(new Event('input'))")
    assert sorted(cells(page, 1)) == ["net1", "net3", "net5"]
    assert page.run("document.getElementById('status').textContent") == "3 of 6 runs shown."
    assert page.run(f"{driver.PANEL}.querySelectorAll('.plot a:not(.off)').length") == 3


def test_the_other_metric_ranks_anew(page):
    page.run("document.querySelector('[name=metric][value=accuracy]').click()")
    scores = [float(text.split()[0]) for text in cells(page, 4)]
    assert scores[0] == max(scores)
    assert page.run(f"getComputedStyle({driver.PANEL}.querySelector('caption .f')).display") == "none"


def test_a_run_opens_from_its_row_and_closes_by_the_keyboard(page):
    page.run(f"{ROWS}[0].querySelector('a').click()")
    page.run(SETTLED)
    assert page.run("document.getElementById('run').open")
    heads = page.run("[...document.querySelectorAll('#run h3')].map((head) => head.textContent)")
    for head in ("Configuration", "Confusion matrix", "F1 by class", "Calibration", "Provenance"):
        assert head in heads
    assert page.run("document.activeElement.closest('dialog') !== null")
    page.press("Escape", 27)
    page.run(SETTLED)
    assert not page.run("document.getElementById('run').open")
    assert page.run("location.hash") == "#data-trashnet"


def test_every_run_opens_without_a_complaint(page):
    heads = "document.querySelectorAll('#run h3').length"
    shown = page.run(f"Object.keys(data.runs).map((id) => {{ showRun(id); return {heads}; }})")
    assert len(shown) == 7 + len(HOSTILE)
    assert min(shown) >= 9


def test_a_link_opens_its_run(page, address):
    run = page.run(f"{ROWS}[2].dataset.run")
    page.open(f"{address}#run={run}")
    assert page.run("document.getElementById('run').open")
    name = page.run("document.getElementById('run-title').textContent")
    assert name == page.run(f"data.runs[{json.dumps(run)}].config[0]")
    page.open(f"{address}#run=nothing")
    assert not page.run("document.getElementById('run').open")
    assert "no run" in page.run("document.getElementById('status').textContent")


def test_tabs_and_points_follow_the_arrow_keys(page):
    page.run("document.getElementById('tab-data-trashnet').focus()")
    page.press("Home", 36)
    assert page.run("location.hash") == "#overview"
    assert page.run("document.activeElement.getAttribute('aria-selected')") == "true"
    page.press("ArrowRight", 39)
    assert page.run("location.hash") != "#overview"
    page.run("go('#data-trashnet')")
    page.run(f"{driver.PANEL}.querySelector('.plot a[tabindex=\"0\"]').focus()")
    first = page.run("document.activeElement.dataset.run")
    page.press("ArrowRight", 39)
    assert page.run("document.activeElement.dataset.run") != first
    assert page.run("document.activeElement.getAttribute('aria-label')").startswith("net1: ")
    page.press("Enter", 13, "\r")
    page.run(SETTLED)
    assert page.run("document.getElementById('run').open")


@pytest.mark.parametrize("width", driver.WIDTHS)
def test_the_page_is_as_wide_as_its_window(page, width):
    page.resize(width, 900)
    for tab in page.run("[...document.querySelectorAll('#tabs a')].map((tab) => tab.hash)"):
        page.run(f"go({json.dumps(tab)})")
        assert page.run("document.documentElement.scrollWidth") <= width, tab
    page.run("showRun(Object.keys(data.runs)[0])")
    assert page.run("document.getElementById('run').scrollWidth") <= width


def test_both_colour_schemes_have_contrast(page):
    contrast = """
    (() => {
      const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
      const light = (parts) => {
        const linear = (c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
        const [r, g, b] = parts.map((part) => linear(part / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const value = (name, property) => {
        const probe = document.body.appendChild(document.createElement("i"));
        probe.style[property] = `var(${name})`;
        const found = light(rgb(getComputedStyle(probe)[property]));
        probe.remove();
        return found;
      };
      const inks = ["--ink", "--muted", "--accent", "--second", "--warn"];
      return inks.flatMap((ink) => ["--paper", "--sunken", "--raised"].map((paper) => {
        const pair = [value(ink, "color"), value(paper, "backgroundColor")];
        pair.sort((a, b) => b - a);
        return (pair[0] + 0.05) / (pair[1] + 0.05);
      }));
    })()
    """
    for theme in ("light", "dark"):
        page.run(f"document.documentElement.dataset.theme = {json.dumps(theme)}")
        assert min(page.run(contrast)) >= 4.5


def test_no_name_runs_or_adds_an_element(page):
    page.run("window.alert = () => { window.struck = true; }")
    for tab in page.run("[...document.querySelectorAll('#tabs a')].map((tab) => tab.hash)"):
        page.run(f"go({json.dumps(tab)})")
    page.run("Object.keys(data.runs).forEach(showRun)")
    page.run(SETTLED)
    assert page.run("window.struck") is None
    foreign = "img, iframe, object, script[src], link[href^=http], a:not([href^='#'])"
    assert page.run(f'document.querySelectorAll("{foreign}").length') == 0
