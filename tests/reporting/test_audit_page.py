"""The audit's page and summary show what the document says, whatever it says."""

import base64
import io
import json
import re
import sys
import time
from html.parser import HTMLParser

import audit_document
import numpy as np
import pytest
from rich.console import Console

from jaxdict.reporting import audit_data, audit_page, vocabulary
from jaxdict.reporting.audit_page import audit_html
from jaxdict.reporting.audit_summary import audit_summary

SECTIONS = ["verdict", "about", "gaps", "pairs", "features", "residual", "twins", "cards", "reading", "machines"]


class Page(HTMLParser):
    """Tags with their attributes, the sections' text, and the page's data."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.sections, self.section, self.inside, self.json = [], {}, None, None, ""
        self.feed(html)
        self.data = json.loads(self.json)
        self.text = {name: " ".join(" ".join(parts).split()) for name, parts in self.sections.items()}

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.inside = tag
        if tag == "section":
            self.section = attributes["id"]
            self.sections[self.section] = []
        if attributes.get("id") == "data":
            self.inside = "data"

    def handle_endtag(self, tag):
        self.section = None if tag == "section" else self.section
        self.inside = None

    def handle_data(self, data):
        if self.inside == "data":
            self.json += data
        elif self.section:
            self.sections[self.section].append(data)


@pytest.fixture(scope="module")
def document():
    return audit_document.audit_document()


@pytest.fixture(scope="module")
def html(document):
    return audit_html(document)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_a_full_document_has_every_section(page, document):
    assert list(page.sections) == SECTIONS
    for name, expected in {
        "verdict": [
            *document["verdict"],
            "A standard SAE of 512 features, for all-MiniLM-L6-v2 at encoder.layer.5.output. Audited on 20,000 rows; its error is "
            "split on 2,048 rows of 112 documents among them.",
            "84.1%",
            "4.10e−4",
        ],
        "about": [
            "minilm-l5-512",
            "saelens",
            "20,000",
            "float16",
            "2,048 rows",
            "0.410 to 0.610",
            "estimated",
            "No b_dec",
        ],
        "gaps": [
            "19.2",
            "0.300",
            "1.56%",
            "12.0",
            "Only more features",
            "18.9",
            "18.1",
            "2,048 held-out rows",
            "0.100",
            "Stopped at 40 steps",
        ],
        "residual": ["0.0104", "8.12 lam", "99.3%", "median 0.0110", "−0.440"],
        "reading": [column.sentence for column in (*vocabulary.PAIR_COLUMNS, *vocabulary.FEATURE_COLUMNS)],
        "machines": ["audit.json", "jaxdict-audit-1"],
    }.items():
        for text in expected:
            assert text in page.text[name], (name, text)
    assert [a["data-table"] for _, a in page.tags if "data-table" in a] == list(page.data["tables"])
    assert page.data["tables"]["pairs"]["values"]["i"][0] == 3
    assert len(page.data["tables"]["features"]["values"]["norm"]) == 512
    worst = max(document["features"], key=lambda row: row["turn_gain"] or 0)
    heads = "Features with most to gain from a turn Feature Most active on Predicts Gain"
    assert f"{heads} {worst['feature']}" in page.text["residual"]


def test_the_first_picture_is_that_of_the_split(document, html, page):
    assert html.index('class="gaps split"') < html.index('class="gaps"')
    widths = re.findall(r'<span class="part (\w+)( unshown)?" style="width:([\d.]+)%"', html)
    parts = [(name, float(width) / 100) for name, _, width in widths[:5]]
    assert parts == [
        ("values", 0.03),
        ("supports", 0.125),
        ("decoder", 0.01),
        ("dictionary", 0.075),
        ("rest", 0.76),
    ]
    assert [bool(pale) for _, pale, _ in widths[:5]] == [False, False, True, False, False]
    whisker = re.findall(r'<path d="M([\d.]+) 6H([\d.]+)', html)[1]  # of the supports, about where they end
    assert [float(end) for end in whisker] == pytest.approx([15.25, 15.75])
    for text in (
        "24.0 ± 0.310 a row",
        "2,048 rows of 112 documents",
        "12.5%",
        "3.00 ± 0.0600",
        "More features were not measured.",
    ):
        assert text in page.text["verdict"]
    console = Console(width=120, file=io.StringIO())
    console.print(audit_summary(document))
    told = console.file.getvalue()
    assert "Where the squared error goes, 24.0 a row" in told
    assert re.search(r"Choice of features +3\.00 +± 0\.0600 +12\.5%", told)


def test_pairs_that_the_objective_leaves_open_are_named_none_or_not_spoken_of(document, page):
    (pair,) = document["undetermined"]
    assert pair["sentence"] in page.text["twins"]
    assert (
        "None: no feature is on only where another is"
        in Page(audit_html(document | {"undetermined": []})).text["twins"]
    )
    assert "does not determine" not in Page(audit_html(document | {"undetermined": None})).text["twins"]


def test_nested_pairs_and_absorption_are_said_where_they_were_looked_for(document, page):
    for name in ("prefix_pairs", "penalty_pairs", "absorption"):
        facts = document[name]
        for text in (facts["sentence"], *(row["sentence"] for row in facts.get("pairs", facts.get("edges")))):
            assert text in page.text["twins"], (name, text)
    assert vocabulary.ABSORPTION in page.text["twins"]
    assert document["absorption"]["criterion"] in page.text["twins"]
    assert document["decoder"]["sentence"] in page.text["features"]
    without = Page(
        audit_html(document | dict.fromkeys(("prefix_pairs", "penalty_pairs", "absorption", "decoder")))
    ).text
    for word in ("Matryoshka", "annealed", "Absorption"):
        assert word not in without["twins"]
    assert len(page.data["tables"]["features"]["values"]["decoder_gain"]) == 512
    assert page.data["tables"]["pairs"]["values"]["absorption"][0] is not None


def test_the_verdict_does_not_repeat_the_gaps_and_keeps_the_other_measures_below(document):
    gaps = document["gaps"]["sentences"]
    page = Page(audit_html(document | {"verdict": [*document["verdict"], gaps["dictionary"]]}))
    assert (page.text["verdict"].count(gaps["dictionary"]), page.text["gaps"].count(gaps["dictionary"])) == (0, 1)
    assert "2 more measures" in page.text["verdict"]
    assert "0.0413% pair_cost" in page.text["verdict"]


def test_an_empty_document_says_so_in_sentences():
    page = Page(audit_html(audit_document.empty_document()))
    assert list(page.sections) == SECTIONS
    assert not [a for _, a in page.tags if "data-table" in a]
    for name, sentence in {
        "verdict": "A standard SAE of 3 features. Audited on 20,000 rows. Nothing can be said without a lam.",
        "about": "Used unknown Source none",
        "gaps": "Not measured: these are gaps of the loss with an L1 penalty, which needs lam, its weight. No lam fits",
        "pairs": "No pair was found",
        "features": "No feature was listed",
        "residual": "which residuals are worth an atom depends on lam",
        "twins": "No two features point opposite ways",
        "cards": "No card was kept",
    }.items():
        assert sentence in page.text[name], name
    assert "Active features a row –" in page.text["verdict"]
    assert "None" not in " ".join(page.text.values())


def test_held_out_rows_may_be_missing(document):
    page = Page(audit_html(document | {"gaps": document["gaps"] | {"held_out": None}}))
    assert "No rows were held out" in page.text["gaps"]


def test_hostile_text_stays_text(page, html):
    kinds = [(tag, attributes.get("type")) for tag, attributes in page.tags if tag == "script"]
    assert kinds == [("script", None), ("script", "application/json")]
    assert not [a for tag, a in page.tags if tag == "img" or any(name.startswith("on") for name in a)]
    assert "<script>alert(1)</script>" in page.text["residual"]
    labels = page.data["tables"]["features"]["values"]["label"]
    assert labels[1] == audit_document.HOSTILE[1]
    assert labels[8] == "{{ 7 * 7 }} {% raw %}"
    assert labels[6] == "line one↵line two⇥tabbed"
    assert not re.search("[\x00-\x08\x1b\u202a-\u202e]", html)
    assert max(map(len, filter(None, labels))) <= 400


@pytest.mark.parametrize("place", ["path", "verdict", "measure", "note", "label", "kind", "sentence"])
def test_no_place_lets_a_script_in(document, place):
    attack = "\"'></script></style></title><script>document.title='broken'</script>"
    changed = json.loads(json.dumps(document))
    if place == "path":
        changed["sae"] |= {"path": attack, "model": attack, "hook": attack, "format": attack}
    if place == "verdict":
        changed["verdict"] = [attack, attack]
    if place == "measure":
        changed["measures"][0] |= {"title": attack, "sentence": attack, "name": attack}
    if place == "note":
        changed["sae"]["notes"], changed["made_with"] = [attack], {attack: attack}
    if place == "label":
        changed["features"][0]["label"] = changed["cards"]["pairs"][0]["rows"][0]["label"] = attack
    if place == "kind":
        changed["pairs"][0]["kind"] = attack
    if place == "sentence":
        changed["lam"] |= {"sentence": attack, "source": attack}
        changed["gaps"] |= {"message": attack, "sentences": {"width": attack}}
    assert sum(tag == "script" for tag, _ in Page(audit_html(changed)).tags) == 2


def test_numbers_that_are_not_finite_become_null(document):
    features = [dict(document["features"][0], norm=float("nan"), residual=None, lam=float("inf"))]
    values = Page(audit_html(document | {"features": features})).data["tables"]["features"]["values"]
    assert (values["norm"], values["residual"], values["lam"]) == ([None], [None], [None])


def test_a_lone_surrogate_can_be_written(document, tmp_path):
    features = [dict(document["features"][0], label="half \ud83d")]
    (tmp_path / "page.html").write_text(audit_html(document | {"features": features}), encoding="utf-8")


def test_a_gap_below_zero_has_no_width_but_its_value(document):
    gaps = document["gaps"] | {"exact": 19.4, "amortisation": -0.2, "dictionary": 1.3}
    html = audit_html(document | {"gaps": gaps})
    assert 'amortisation" style="width:0.000%"' in html
    assert "−0.200" in Page(html).text["gaps"]


def test_another_schema_and_missing_packages_are_refused(document, monkeypatch):
    for make in (audit_html, audit_summary):
        with pytest.raises(ValueError, match=r"schema 'old', expected 'jaxdict-audit-1'"):
            make({"schema": "old"})
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    for make in (audit_html, audit_summary):
        with pytest.raises(ModuleNotFoundError, match=r'pip install "jaxdict\[cli\]"'):
            make(document)


def test_the_page_names_no_other_address(html):
    addresses = set(re.findall(r"""(?:https?:)?//[\w.]+""", html)) - {"//www.w3.org"}
    assert "http://www.w3.org/2000/svg" in html  # the name of SVG elements, never fetched
    assert not {a for a in addresses if a.startswith("http")} - {"http://www.w3.org"}
    assert "default-src 'none'" in html


@pytest.mark.slow
def test_a_hundred_and_thirty_thousand_features(document):
    """The page stays below 15 MB, whatever the labels are made of, with more columns than today's."""
    features = audit_document.many_features(document)
    for row in features:
        row["label"] = "<&>" * 30  # six bytes each where they are escaped
    start = time.process_time()
    page, beside = audit_page.audit_files(document | {"features": features}, "audit.features.js")
    assert time.process_time() - start < 20  # about 5 on an idle machine
    assert len(page.encode()) < 13e6
    assert len(beside.encode()) < 40e6


def test_the_headline_says_what_and_beneath_it_what_to_do(document):
    sentence = (
        "The largest part shown is its decoder: 3.1% +- 0.2% of its squared error. What to do: train the decoder on."
    )
    html = audit_html(document | {"verdict": [sentence, *document["verdict"][1:]]})
    assert '<p class="headline">The largest part shown is its decoder: 3.1% ± 0.2% of its squared error.</p>' in html
    assert '<p class="remedy"><strong>What to do.</strong> Train the decoder on.</p>' in html
    assert "What to do" not in audit_html(document)


def test_a_part_that_is_not_shown_has_no_share(page):
    text = page.text["verdict"]
    assert "Decoder nothing shown 0.240 ± 0.120 A step" in text
    assert "More features not measured More" in text


def test_a_caveat_of_the_file_stands_on_the_first_screen(document):
    caveat = "The file does not say how activations were scaled."
    told = Page(audit_html(document | {"sae": document["sae"] | {"caveat": caveat}})).text["verdict"]
    assert f"Take care. {caveat}" in told
    assert "Take care" not in Page(audit_html(document)).text["verdict"]


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("gpt2-small/8-res-jb", "https://www.neuronpedia.org/gpt2-small/8-res-jb/"),
        (None, None),
        ("gpt2-small", None),
        ("javascript:alert(1)", None),
        ('a/b"><script>', None),
        ("../../evil", None),
    ],
)
def test_neuronpedia_is_linked_where_the_file_names_a_page_and_else_not(document, name, base):
    html = audit_html(document | {"sae": document["sae"] | {"neuronpedia": name}})
    page = Page(html)
    assert page.data["neuronpedia"] == base
    links = [a["href"] for tag, a in page.tags if tag == "a" and not a["href"].startswith("#")]
    assert links == ([] if base is None else [f"{base}0"])
    assert ("neuronpedia.org" in html) == (base is not None)


def test_columns_without_any_value_are_not_shown(document):
    """Of an SAE without lam, four columns of features."""
    of_lam = ("stationarity", "stationarity_exact", "residual", "lam")
    features = [row | dict.fromkeys(of_lam) for row in document["features"]]
    keys = [
        entry["key"]
        for entry in Page(audit_html(document | {"features": features})).data["tables"]["features"]["columns"]
    ]
    assert keys == [column.key for column in vocabulary.FEATURE_COLUMNS if column.key not in of_lam]


def unpacked(column):
    raw = np.frombuffer(base64.b64decode(column["bytes"]), np.uint8)
    if column["kind"] == "int":
        return raw.view(">i4").astype(int)
    three = np.concatenate([raw.reshape(-1, 3), np.zeros((raw.size // 3, 1), np.uint8)], axis=1)
    return np.ascontiguousarray(three).view(">f4").ravel().astype(float)


def test_packed_numbers_are_within_a_unit_of_the_sixteenth_bit():
    rng = np.random.default_rng(0)
    values = rng.normal(size=999) * 10.0 ** rng.integers(-30, 30, 999)
    np.testing.assert_allclose(unpacked(audit_data.packed(values.tolist())), values, rtol=2.0**-16)
    assert np.isnan(unpacked(audit_data.packed([1.0, None])))[1]
    whole = rng.integers(-(2**31), 2**31, 99).tolist()
    assert unpacked(audit_data.packed(whole)).tolist() == whole


@pytest.mark.slow
def test_examples_that_are_too_many_go_into_the_file_beside(document, monkeypatch):
    assert audit_page.audit_files(document, "audit.features.js")[1] is None
    monkeypatch.setattr(audit_data, "EXAMPLE_BYTES", 10_000)
    html, beside = audit_page.audit_files(document, "audit.features.js")
    data = Page(html).data
    digest, text = re.fullmatch(r'jaxdictExamples\("(\w+)", JSON.parse\((".*")\)\);\n', beside).groups()
    assert data["beside"] == {"file": "audit.features.js", "digest": digest}
    assert f"'nonce-{digest}'" in html
    whole = json.loads(json.loads(text))
    assert whole["features"] == [row["feature"] for row in document["features"] if row["rows"]]
    rows = unpacked(whole["rows"]).reshape(-1, 8)
    assert rows.tolist() == [row["rows"] for row in document["features"] if row["rows"]]
    # In the page: the features that it names, with their contexts.
    live = {row["feature"] for row in document["features"] if row["rows"]}
    assert {card["feature"] for card in document["cards"]["features"]} & live <= set(data["examples"]["features"])
    assert 0 < data["examples"]["n"] < whole["n"]
    starts, sizes = (unpacked(data["examples"][name]).tolist() for name in ("starts", "sizes"))
    held = {start + n for start, size in zip(starts, sizes, strict=True) for n in range(size)}
    assert set(unpacked(data["examples"]["rows"]).tolist()) <= held
    # A page that stands alone names no file.
    alone = Page(audit_html(document)).data
    assert (alone["beside"], alone["partly"]) == (None, True)


def test_colours_can_be_read():
    """WCAG AA: 4.5 for text on every ground that it stands on, in both schemes."""
    style = audit_page._part("audit_page.css")
    colours = dict(re.findall(r"--(\w+): light-dark\((#\w{6}, #\w{6})\)", style))
    assert len(colours) >= 13

    def luminance(colour):
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    def contrast(first, second, scheme):
        a, b = sorted(luminance(colours[name].split(", ")[scheme]) for name in (first, second))
        return (b + 0.05) / (a + 0.05)

    for scheme in (0, 1):
        for text in ("ink", "muted", "accent", "bad", "good"):
            for ground in ("paper", "raised", "tint"):
                assert contrast(text, ground, scheme) >= 4.5, (text, ground, scheme)
        for part in ("gap1", "gap2", "strong"):
            assert contrast(part, "paper", scheme) >= 3, (part, scheme)


def test_summary(document):
    def printed(document, width):
        console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="standard")
        console.print(audit_summary(document))
        return re.sub(r"\x1b\[[\d;]*m", "", console.file.getvalue())

    wide, narrow = printed(document, 120), printed(document, 60)
    for text in [*document["verdict"], "84.1%", "3 → 7", "hierarchy", "0.00793"[:3], "█", "▓", "▒", "░", "F = 19.2"]:
        assert text in wide, text
    assert all(len(line) <= 60 for line in narrow.splitlines())
    assert "\x1b" not in wide
    assert "\x07" not in wide
    bar = next(line for line in wide.splitlines() if line.startswith("█▓"))
    assert {fill: bar.count(fill) for fill in "█▓▒░"} == {
        "█": 1,
        "▓": 2,
        "▒": 18,
        "░": 35,
    }  # of 56: .3, .8, 6.1, 12 of 19.2
    empty = printed(audit_document.empty_document(), 80)
    assert "Nothing can be said without a lam." in empty
    assert "None" not in empty
