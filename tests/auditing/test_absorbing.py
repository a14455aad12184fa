"""Absorption in an audit: planted edges are listed with their rates, at none without, and labels say it of concepts."""

from dataclasses import replace

import numpy as np
import pytest

import jaxdict as jd
from jaxdict.auditing.absorbing import absorption_report, edges_of
from jaxdict.auditing.code_tables import CodeTable
from jaxdict.sae.activations import Activation
from jaxdict.sae.models import SAE, Metadata

pytestmark = pytest.mark.slow

D_IN = 8
BASIS = np.linalg.qr(np.random.default_rng(0).normal(size=(D_IN, D_IN)))[0]


def data(absorbed=True, n=1500, seed=0):
    """Concept 0 with a special case 1, concepts 2 to 4 by chance; tokens "s…" hold concept 0. (X, atoms, labels)."""
    rng = np.random.default_rng(seed)
    concept = rng.random(n) < 0.4
    special = concept & (rng.random(n) < 0.3)
    rest = rng.random((n, 3)) < 0.2
    on = np.column_stack([concept, special, rest])
    X = (on * rng.uniform(1, 2, on.shape)) @ BASIS[:5] + 0.01 * rng.normal(size=(n, D_IN))
    atoms = BASIS[:5].copy()
    if absorbed:  # the special case's atom holds the concept, whose own feature is silent beside it
        atoms[1] = (BASIS[0] + BASIS[1]) / np.sqrt(2)
    labels = np.array([f"{'s' if there else 't'}{k}" for k, there in enumerate(concept)])
    return X.astype(np.float32), atoms, labels


def sae_of(atoms, absorbed=True):
    """Encoder rows that are on where the truth is; absorbed: the parent is turned off by its child's direction."""
    W_enc = BASIS[:5].T.copy()
    if absorbed:
        W_enc[:, 0] -= 3 * BASIS[1]
        W_enc[:, 1] *= np.sqrt(2)
    zeros, about = np.zeros(5), Metadata(architecture="jumprelu")
    return SAE(W_enc, zeros, atoms, np.zeros(D_IN), zeros + 0.5, activation=Activation("jumprelu"), metadata=about)


@pytest.fixture(scope="module")
def found():
    X, atoms, labels = data()
    return jd.audit(sae_of(atoms), X, labels=labels, exact_samples=1500, descent_steps=0)


def test_a_planted_edge_is_listed_with_its_rate(found):
    told = found.document["absorption"]
    first = told["edges"][0]
    assert (first["parent"], first["child"]) == (0, 1)
    assert first["beside"] == 0
    assert first["alone"] > 0.99
    assert first["cosine"] == pytest.approx(np.sqrt(0.5), abs=1e-6)
    assert "feature 1, which silences feature 0" in told["sentence"]
    assert "nine in ten" in told["criterion"]


def test_labels_say_it_of_the_concept_by_first_letters(found):
    label = found.document["absorption"]["edges"][0]["label"]
    assert label["name"] == "s"
    assert label["f1"] > 0.8
    assert label["alone"] > 0.99
    assert label["beside"] == 0
    assert "detecting 's'" in found.document["absorption"]["edges"][0]["sentence"]


def test_without_absorption_none_is_listed():
    X, atoms, _ = data(absorbed=False)
    told = jd.audit(sae_of(atoms, absorbed=False), X, exact_samples=1500, descent_steps=0).document
    assert told["absorption"]["edges"] == []
    assert "none shows absorption" in told["absorption"]["sentence"]
    (nested,) = (row for row in told["undetermined"] if (row["parent"], row["child"]) == (0, 1))
    assert nested["absorption"] == pytest.approx(0, abs=0.02)  # on wherever its direction is, child or not
    assert nested["absorption_error"] > 0


def test_signed_codes_have_no_absorption():
    X, atoms, _ = data()
    sae = replace(sae_of(atoms), activation=Activation("abstopk", k=2), threshold=None)
    told = jd.audit(sae, X - X.mean(axis=0), exact_samples=300, descent_steps=0).document["absorption"]
    assert (told["edges"], told["rows"]) == ([], None)
    assert "both signs" in told["sentence"]


def test_edges_are_listed_pairs_then_neighbours_both_ways_dead_ones_left_out():
    features = [
        {"feature": 0, "nearest": 1, "nearest_cosine": 0.5, "dead": False},
        {"feature": 1, "nearest": 0, "nearest_cosine": 0.5, "dead": False},
        {"feature": 2, "nearest": 0, "nearest_cosine": 0.9, "dead": True},
        {"feature": 3, "nearest": 2, "nearest_cosine": 0.1, "dead": False},
    ]
    assert edges_of([{"parent": 3, "child": 1}], features) == [(3, 1), (0, 1), (1, 0)]


def test_a_parent_that_detects_no_label_has_none():
    row = {
        "parent": 0,
        "child": 1,
        "gap": 0.5,
        "standard_error": 0.01,
        "alone": 1.0,
        "beside": 0.5,
        "rows_beside": 9,
        "cosine": 0.5,
    }
    facts = {"criterion": "", "rows": 10, "all": {(0, 1): row | {"shown": True, "label": None}}}
    rng = np.random.default_rng(0)
    table = CodeTable.from_dense((rng.random((200, 2)) < 0.1) * 1.0, np.arange(200))
    (edge,) = absorption_report(facts, table, rng.choice(list("abcdefgh"), 200), 5)["edges"]
    assert edge["label"] is None
    assert "By labels" not in edge["sentence"]
