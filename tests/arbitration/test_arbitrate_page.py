"""The verb, the page that it writes and the document behind it: self-contained, described key by key, readable at two widths."""

import itertools
import json
import os
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import chromium
import jsonschema
import numpy as np
import pytest
from rivals import N, bench_model, rows, top, turned
from schemas import closed
from typer.testing import CliRunner

import jaxdict as jd
from jaxdict.commands import app
from jaxdict.reporting.arbitration_page import arbitration_html
from jaxdict.reporting.arbitration_table import arbitration_table

SCHEMA = json.loads((files("jaxdict.arbitration") / "arbitration.schema.json").read_text(encoding="utf-8"))


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Activations, SAEs of two sparsities and one with a turned atom, and the truth."""
    folder = tmp_path_factory.mktemp("arbitration")
    np.save(folder / "acts.npy", rows().astype(np.float32))
    for name, sae in {"k1": top(1), "k3": top(3), "turned": top(2, turned())}.items():
        jd.sae.save(sae, folder / name)
    jd.synthetic.save_bench_model(bench_model(), folder / "truth")
    np.save(folder / "documents.npy", np.arange(N) // 10)
    return folder


@pytest.fixture(scope="module")
def done(folder):
    options = [
        "--out",
        folder / "out" / "page.html",
        "--json",
        folder / "out" / "document.json",
        "--truth",
        folder / "truth",
    ]
    options += ["--documents", folder / "documents.npy"]
    saes = [f"topk={folder / 'k1'}", f"topk={folder / 'k3'}", folder / "turned"]
    return run("arbitrate", *saes, folder / "acts.npy", *options)


@pytest.fixture(scope="module")
def document(done, folder):
    assert done.exit_code == 0, done.output
    return json.loads((folder / "out" / "document.json").read_text())


def test_the_verb_tells_the_verdict_and_writes_page_and_document(done, document, folder):
    told = " ".join(done.stdout.split())
    for sentence in (*document["verdict"], *document["limits"]):
        assert " ".join(sentence.split()) in told
    assert arbitration_table(document).splitlines()[2].split()[0] in told
    assert document["match"]["interpolated"]
    assert document["data"]["documents"] == 12
    assert document["data"]["path"] == str(folder / "acts.npy")
    assert [one["name"] for one in document["entries"]] == ["topk", "turned"]
    assert document["entries"][1]["recovery"]["mcc"] < 1
    assert (document["truth"]["features"], document["truth"]["edges"]) == (6, 1)
    assert sorted(file.name for file in (folder / "out").iterdir()) == ["document.json", "page.html"]


@pytest.mark.slow
def test_json_on_stdout_and_float32(folder):
    both = run("arbitrate", folder / "k3", folder / "turned", folder / "acts.npy", "--json", "-", "--float32", "--l0", 2, "--sample", 40,
               "--held-out", folder / "acts.npy")  # fmt: skip
    assert both.exit_code == 2  # 3 features and 2 are no common L0
    assert "l0=2 is reached by fewer than two" in both.output
    both = run(
        "arbitrate", folder / "k3", folder / "turned", folder / "acts.npy", "--json", "-", "--float32", "--sample", 40
    )
    assert both.exit_code == 0, both.output
    printed = json.loads(both.stdout)
    assert (printed["command"], printed["data"]["fresh_rows"], printed["match"]["how"]) == ("arbitrate", 40, "none")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["k1", "acts.npy"], "1 SAE before the activations"),
        (["k1", "k1", "acts.npy"], "all SAEs have the name 'k1'"),
        (["k1", "missing", "acts.npy"], "missing"),
        (["k1", "k3", "none.npy"], "none.npy"),
        (["k1", "k3", "narrow.npy"], "d_in = 8"),
        (["k1", "k3", "nan.npy"], "of X holds NaN or infinity"),
        (["k1", "k3", "acts.npy", "--truth", "k1"], "k1: holds nothing; a truth is atoms.npy"),
        (["k1", "k3", "acts.npy", "--documents", "narrow.npy"], "there are 240 rows"),
        (["k1", "k3", "acts.npy", "--l0", "-2"], "l0 is -2"),
        (["k1", "k3", "acts.npy", "--part", "width"], "the further parts of an error are 'dictionary' and 'atoms'"),
    ],
)
def test_bad_input_is_one_line(folder, arguments, message):
    np.save(folder / "narrow.npy", np.ones((20, 3), np.float32))
    np.save(folder / "nan.npy", np.full((60, 8), np.nan, np.float32))
    paths = [word if word.startswith("-") or word == "-2" else folder / word for word in arguments]
    ended = run("arbitrate", *paths)
    assert ended.exit_code == 2, ended.output
    lines = [line for line in ended.output.splitlines() if line.strip()]
    assert len(lines) == 1, ended.output
    assert lines[0].startswith("jaxdict: error:")
    assert message in lines[0]


def test_the_document_is_as_its_schema_says(document):
    strict = jsonschema.Draft202012Validator(closed(SCHEMA))
    assert [f"{error.json_path}: {error.message[:200]}" for error in strict.iter_errors(document)] == []
    assert len(list(strict.iter_errors({**document, "colour": "blue"}))) == 1
    with pytest.raises(ValueError, match="not an arbitration's document"):
        arbitration_html({"schema": "jaxdict-audit-1"})


class Page(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.inside = [], [], None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag

    def handle_data(self, data):
        if self.inside != "style":
            self.text.append(data)


def test_the_page_needs_nothing_else(folder, document):
    html = (folder / "out" / "page.html").read_text()
    page = Page(html)
    names = [tag for tag, _ in page.tags]
    assert not {"script", "img", "iframe", "object"} & set(names)
    links = [attributes[key] for _, attributes in page.tags for key in ("href", "src") if key in attributes]
    assert all(link.startswith("#") or link == "data:," for link in links)
    assert not re.search(r"url\(|@import|https?://", html)
    assert "default-src 'none'" in html
    assert re.search(r"<title>topk, turned: an arbitration", html)
    text = " ".join(" ".join(page.text).split())
    assert text.index(document["verdict"][0]) < text.index(document["limits"][0].replace("+-", "±"))
    for sentence in (*document["verdict"], *document["limits"]):
        assert " ".join(sentence.replace(" +- ", " ± ").split()) in text
    pictures = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert len(pictures) == 2
    assert all(re.search(r"squared error .*Values .*Decoder .*The rest", one["aria-label"]) for one in pictures)
    assert names.count("h1") == 1


def test_bars_are_on_one_scale_and_end_at_the_error(folder, document):
    html = (folder / "out" / "page.html").read_text()
    longest = max(one["own"] for one in document["entries"])
    bars = re.findall(r'<div class="stack".*?</div>', html, re.DOTALL)
    for bar, one in zip(bars, sorted(document["entries"], key=lambda one: one["own"]), strict=True):
        width = sum(map(float, re.findall(r"width:([\d.]+)%", bar)))
        assert width == pytest.approx(100 * one["own"] / longest, abs=0.02)


def test_names_are_escaped(document):
    evil = json.loads(json.dumps(document).replace("turned", "<b onload=x>[red]"))
    html = arbitration_html(evil)
    assert "<b onload" not in html
    assert "&lt;b onload=x&gt;" in html


def test_many_pairs_are_folded_below_the_picture_and_the_table(document):
    """Four names stand with their six pairs open; of five all ten are there, folded, after picture and table."""
    for count, folded in ((4, False), (5, True)):
        names = [f"sae{k}" for k in range(count)]
        first, pair = document["entries"][0], document["pairs"][0]
        pairs = [
            pair | {"first": one, "second": other, "sentence": f"{one} and {other}."}
            for one, other in itertools.combinations(names, 2)
        ]
        many = document | {"entries": [first | {"name": name} for name in names], "pairs": pairs, "truth": None}
        html = arbitration_html(many)
        listed = html.index('<ul class="verdict">')
        assert html.index('class="headline"') < html.index('class="bars"') < html.index("</table>") < listed
        assert all(html.count(row["sentence"]) == 1 for row in pairs)
        before = html[:listed]
        assert (before.count("<details>") > before.count("</details>")) == folded
        assert "of them, with their weights" not in html
    many["entries"][0]["saes"] = 21 * first["saes"][:1]
    assert f"All {21 + 4 * len(first['saes'])} of them, with their weights" in arbitration_html(many)


OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.mark.parametrize("width", [pytest.param(1280, marks=pytest.mark.slow), 500])
def test_the_page_in_a_browser(folder, document, width):
    browser = chromium.started()
    try:
        browser.open((folder / "out" / "page.html").as_uri(), width, 900)
        assert browser.run(OVERFLOW) <= 0
        assert browser.complaints() == []
        kept = Path(os.environ.get("JAXDICT_SCREENSHOTS") or folder)
        (kept / f"arbitration-{width}.png").write_bytes(browser.screenshot(whole=True))
    finally:
        browser.close()
