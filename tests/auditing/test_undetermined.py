"""Which pairs an audit calls undetermined (T21), for which architectures, and that it is so."""

import numpy as np
import pytest
from audited import planted, truth_sae

import jaxdict as jd
from jaxdict.auditing import nested
from jaxdict.auditing.code_tables import CodeTable
from jaxdict.auditing.findings import candidate_pairs
from jaxdict.auditing.nested import nested_pairs
from jaxdict.sae.activations import Activation
from jaxdict.sae.models import SAE, Metadata

ROWS, FEATURES, D_IN = 400, 6, 5


@pytest.fixture(scope="module")
def point():
    """Feature 3 on only where feature 1 is; the others by chance."""
    rng = np.random.default_rng(0)
    codes = np.where(rng.random((ROWS, FEATURES)) < 0.25, rng.uniform(0.5, 2, (ROWS, FEATURES)), 0)
    codes[codes[:, 1] == 0, 3] = 0
    units = rng.normal(size=(FEATURES, D_IN))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    return codes, units


def undetermined_pairs(sae, dictionary, table, top):
    """Those of an audit: nested pairs where the loss is by supports, none otherwise."""
    return nested.undetermined_pairs(sae, nested_pairs(dictionary, table), top)


def sae_of(units, kind="topk", architecture="topk", lam=None):
    more = {"threshold": np.ones(FEATURES, np.float32)} if kind == "jumprelu" else {}
    k = 3 if kind == "topk" else None
    about = Metadata(architecture=architecture, lam=lam)
    return SAE(
        units.T, np.zeros(FEATURES), units, np.zeros(D_IN), activation=Activation(kind, k=k), metadata=about, **more
    )


@pytest.mark.parametrize(
    ("kind", "architecture"), [("topk", "topk"), ("jumprelu", "batchtopk"), ("jumprelu", "JumpRelu")]
)
def test_a_nested_pair_is_named_with_the_cosines_it_could_have(point, kind, architecture):
    codes, units = point
    table = CodeTable.from_dense(codes, np.arange(ROWS))
    (row,) = undetermined_pairs(sae_of(units, kind, architecture), jd.Dictionary(units), table, 10)
    assert (row["parent"], row["child"]) == (1, 3)
    on = codes[:, 3] > 0
    assert row["both"] == on.sum()
    lowest = -np.min(codes[on, 1] / codes[on, 3])
    assert row["lowest"] == pytest.approx(lowest, rel=1e-6)  # tables hold float32
    moved, atoms = codes.copy(), units.copy()
    moved[:, 1] += lowest * codes[:, 3]
    atoms[3] -= lowest * units[1]
    np.testing.assert_allclose(moved @ atoms, codes @ units, atol=1e-12)
    assert row["absorbed"] == pytest.approx(atoms[3] @ units[1] / np.linalg.norm(atoms[3]), rel=1e-6)
    assert f"from -1 to {row['absorbed']:.2f}" in row["sentence"]
    assert undetermined_pairs(sae_of(units, kind, architecture), jd.Dictionary(units), table, 0) == []


def test_a_nested_pair_is_not_crowded_out_by_others(point):
    codes, units = point
    codes = codes.copy()
    codes[:, 5] = np.where(codes[:, 4] > 0, 9.0, 0)  # often with its parent, and large, but once alone
    codes[np.flatnonzero(codes[:, 4] == 0)[0], 5] = 9.0
    table = CodeTable.from_dense(codes, np.arange(ROWS))
    (first,) = candidate_pairs(units, table, most=1)
    assert first["q"] < 1
    (nested,) = candidate_pairs(units, table, most=1, share=1.0)
    assert nested["q"] == 1


def test_one_row_without_the_parent_settles_it(point):
    codes, units = point
    codes = codes.copy()
    codes[np.flatnonzero(codes[:, 1] == 0)[0], 3] = 1
    table = CodeTable.from_dense(codes, np.arange(ROWS))
    assert undetermined_pairs(sae_of(units), jd.Dictionary(units), table, 10) == []


@pytest.mark.slow
def test_an_audit_names_the_planted_children_of_a_jumprelu_sae():
    X, atoms, pairs, _ = planted()
    zeros, about = np.zeros(len(atoms)), Metadata(architecture="jumprelu")
    truth = SAE(
        atoms.T,
        zeros,
        atoms,
        np.zeros(X.shape[1]),
        threshold=zeros + 0.4,
        activation=Activation("jumprelu"),
        metadata=about,
    )
    few = {"exact_samples": 100, "descent_steps": 0}
    found = jd.audit(truth, X, **few).document["undetermined"]
    assert {(row["parent"], row["child"]) for row in found} == set(pairs)
    assert jd.audit(truth_sae(atoms), X, **few).document["undetermined"] is None


@pytest.mark.parametrize(
    ("kind", "architecture", "lam"),
    [
        ("relu", "standard", None),
        ("jumprelu", "jumprelu", 0.1),
        ("jumprelu", "gated", None),
        ("jumprelu", "MatryoshkaBatchTopKSAE", None),
        ("relu", "StandardSAE_p_anneal", None),
    ],
)
def test_other_terms_may_determine_pairs(point, kind, architecture, lam):
    codes, units = point
    table = CodeTable.from_dense(codes, np.arange(ROWS))
    assert undetermined_pairs(sae_of(units, kind, architecture, lam), jd.Dictionary(units), table, 10) is None
