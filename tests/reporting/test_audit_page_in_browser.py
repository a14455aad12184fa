"""The audit's page in a real browser: phone and desktop, light and dark; sorting, searching, cards; no network, no error.

`JAXDICT_SCREENSHOTS=folder` keeps the pictures. Skipped where there is no Chromium.
"""

import itertools
import json
import os
import struct
from pathlib import Path

import audit_document
import chromium
import pytest

from jaxdict.reporting.audit_page import audit_html

SECTIONS = ["verdict", "about", "gaps", "pairs", "features", "residual", "twins", "cards", "reading", "machines"]


@pytest.fixture(scope="module")
def document():
    return audit_document.audit_document()


@pytest.fixture(scope="module")
def browser():
    path = chromium.find()
    if path is None:
        pytest.skip("no Chromium on the PATH (apt-get install chromium)")
    try:
        browser = chromium.Chromium(path)
    except (AssertionError, OSError) as error:
        pytest.skip(f"{path} does not start: {error}")
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def folder(document, tmp_path_factory):
    folder = Path(os.environ.get("JAXDICT_SCREENSHOTS") or tmp_path_factory.mktemp("page"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "audit.html").write_text(audit_html(document), encoding="utf-8")
    (folder / "empty.html").write_text(audit_html(audit_document.empty_document()), encoding="utf-8")
    return folder


def cells(browser, table, column):
    rows = f"[...document.querySelectorAll('[data-table={table}] tbody tr')]"
    return browser.run(f"{rows}.map((row) => row.children[{column}].innerText)")


def picture(browser, folder, name):
    png = browser.screenshot()
    (folder / f"{name}.png").write_bytes(png)
    return struct.unpack(">II", png[16:24]), len(png)


OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
VIEWS = [(1280, 900, False), (390, 844, False), (1280, 900, True), (390, 844, True)]


@pytest.mark.parametrize(("width", "height", "dark"), VIEWS)
def test_page_in_a_browser(browser, folder, width, height, dark):
    browser.open((folder / "audit.html").as_uri(), width, height, dark)
    name = f"{width}-{'dark' if dark else 'light'}"
    assert browser.run(OVERFLOW) <= 0
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    size, weight = picture(browser, folder, name)
    assert size == (width, height)
    assert weight > 15_000
    for section in SECTIONS[1:]:
        browser.run(f"document.getElementById('{section}').scrollIntoView()")
        picture(browser, folder, f"{name}-{section}")
    browser.click("[data-pair='3-7']")
    assert browser.run("document.getElementById('card-title').textContent") == "Parent 3, child 7"
    assert browser.run("document.querySelectorAll('#card-body svg').length") == 2
    assert browser.run("document.querySelectorAll('#card-body .star.outside').length") == 2
    picture(browser, folder, f"{name}-pair")
    assert browser.run(OVERFLOW) <= 0
    assert (
        browser.run(
            "(() => { const b = document.getElementById('card-body'); return b.scrollWidth - b.clientWidth; })()"
        )
        <= 0
    )
    browser.click("#card-body [data-feature='7']")
    assert browser.run("document.getElementById('card-title').textContent") == "Feature 7"
    picture(browser, folder, f"{name}-feature")
    assert browser.run("location.hash") == "#feature-7"
    browser.press("Escape")
    assert browser.run("document.getElementById('card').open") is False
    assert browser.run("document.title") == "Audit of minilm-l5-512 · jaxdict"
    assert browser.complaints() == []


def test_tables_sort_search_and_turn_pages(browser, folder, document):
    browser.open((folder / "audit.html").as_uri())
    costs = browser.run("tables.pairs.order.map((row) => page.tables.pairs.values.cost[row])")
    assert costs == sorted(costs, reverse=True)
    assert len(cells(browser, "pairs", 0)) == 25
    # the keyboard sorts: Enter, then Space the other way
    head = "[data-table=pairs] th[data-key=cosine]"
    for key, way in (("Enter", "descending"), (" ", "ascending")):
        browser.run(f"document.querySelector('{head} button').focus()")
        browser.press(key, "Space" if key == " " else None)
        assert browser.run(f"document.querySelector('{head}').getAttribute('aria-sort')") == way
        order = browser.run("tables.pairs.order.map((row) => page.tables.pairs.values.cosine[row])")
        assert order == sorted(order, reverse=way == "descending")
        assert browser.run("document.querySelectorAll('[data-table=pairs] [aria-sort]').length") == 1
    # what is missing comes last in both directions
    for way in ("descending", "ascending"):
        browser.click("[data-table=features] th[data-key=residual] button")
        values = browser.run("tables.features.order.map((row) => page.tables.features.values.residual[row])")
        known = [value for value in values if value is not None]
        assert values[: len(known)] == sorted(known, reverse=way == "descending")
        assert 0 < len(known) < len(values)
    assert browser.run("shown(null)") == "–"

    def search(table, text):
        field = f"document.querySelector('[data-table={table}] input')"
        browser.run(f"{field}.value = {json.dumps(text)}; {field}.dispatchEvent(new Event('input'))")
        browser.run("new Promise((done) => setTimeout(done, 30))")
        return browser.run(f"tables.{table}.order")

    n_overlaps = sum(pair["kind"] == "overlap" for pair in document["pairs"])
    assert len(search("pairs", "overlap")) == n_overlaps
    picture(browser, folder, "searched")
    assert cells(browser, "pairs", 3) == ["overlap"] * min(25, n_overlaps)
    assert search("pairs", "3 7") == [0]
    assert search("features", "<SCRIPT>alert") == [0]
    assert search("features", "211") == [211]
    assert search("features", "no such label") == []
    assert "Nothing matches" in browser.run("document.querySelector('[data-table=features] tbody').innerText")
    search("features", "")
    browser.click("[data-table=features] th[data-key=feature] button")
    browser.run("[...document.querySelectorAll('[data-table=features] .pages button')][1].click()")
    assert cells(browser, "features", 0)[0] == "25"
    assert browser.complaints() == []


def test_the_theme_button_and_a_shared_card(browser, folder):
    browser.open((folder / "audit.html").as_uri() + "#pair-3-7")
    assert browser.run("document.getElementById('card').open")
    browser.run("document.getElementById('card-next').click()")
    assert browser.run("document.getElementById('card-place').textContent") == "2 of 60"
    browser.click("#card-close")
    browser.click("#theme")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    assert browser.run("document.getElementById('theme').textContent") == "Light"
    browser.click("#theme")
    browser.run("localStorage.clear()")
    levels = browser.run(
        "[...document.querySelectorAll('main :is(h1, h2, h3)')].map((node) => Number(node.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert browser.complaints() == []


def test_an_empty_page_in_a_browser(browser, folder):
    browser.open((folder / "empty.html").as_uri(), 390, 844)
    picture(browser, folder, "empty")
    assert browser.run(OVERFLOW) <= 0
    assert browser.complaints() == []


def test_sixty_five_thousand_rows_stay_quick(browser, folder, document):
    features = audit_document.many_features(document)
    (folder / "large.html").write_text(audit_html(document | {"features": features}), encoding="utf-8")
    browser.open((folder / "large.html").as_uri())
    assert browser.run("document.querySelectorAll('[data-table=features] tbody tr').length") == 25
    sort = "document.querySelector('[data-table=features] th[data-key=residual] button').click()"
    spent = browser.run(f"(() => {{ const start = performance.now(); {sort}; return performance.now() - start; }})()")
    assert spent < 2000  # about 100 ms on an idle machine
    (folder / "large.html").unlink()
