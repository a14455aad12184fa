"""The split of an SAE's error: SciPy and NumPy as judges, planted faults that the headline must name, and what has no lam."""

import io
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from audited import ACTIVE, D_IN, FAULTS, LAM, K, bare, noisy_sae, planted, rows, top_three, truth_sae, turned
from rich.console import Console
from scipy.optimize import nnls

import jaxdict as jd
from jaxdict.auditing import split_rows
from jaxdict.auditing.measures import OF_P
from jaxdict.auditing.split_sentences import headline, split_facts
from jaxdict.auditing.splitting import split_error
from jaxdict.auditing.steps import Step, decoder_step, moved
from jaxdict.reporting.audit_page import audit_html
from jaxdict.reporting.audit_summary import audit_summary


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_the_headline_names_the_planted_fault(fault):
    """In 20 of 20 draws."""
    sae = FAULTS[fault]
    for seed in range(20):
        X = jnp.asarray(rows(seed))
        split = split_error(sae.dictionary, X, jd.sparse_codes(sae.encode(X), ACTIVE), signed=False)
        assert fault in headline(split), headline(split)


@pytest.fixture(scope="module")
def found():
    return jd.audit(bare(kind="topk"), rows(0).astype(np.float32), rows=np.arange(0, 300, 2))


@pytest.mark.slow
def test_columns_are_those_of_scipy(found):
    """Own codes, best values by NNLS row by row, and codes of the supports that were found: to 1e-6."""
    sae, X = noisy_sae(kind="topk"), rows(0).astype(np.float32).astype(float)[np.arange(0, 300, 2)]
    D, b = np.asarray(sae.W_dec, float), np.asarray(sae.b_dec, float)
    f, Y = np.asarray(sae.encode(X), float), X - b
    refitted = np.array([nnls(D[row > 0].T, y)[1] ** 2 for row, y in zip(f, Y, strict=True)])
    best = jd.best_subset(jd.Dictionary(D, b), X, np.count_nonzero(f, axis=1), start=jnp.asarray(f))
    left = np.asarray(jd.residual(jd.Dictionary(D, b), best.codes, X))
    errors = [np.sum((Y - f @ D) ** 2, axis=1), refitted, np.sum(left**2, axis=1)]
    split = found.document["split"]
    assert (split["rows"], split["documents"], split["unit"]) == (150, None, "mean squared error a row")
    assert split["own"] == pytest.approx(errors[0].mean(), rel=1e-6)
    assert split["own_standard_error"] == pytest.approx(np.std(errors[0], ddof=1) / np.sqrt(150), rel=1e-6)
    for part, (before, after) in zip(split["parts"][:2], ((errors[0], errors[1]), (errors[1], errors[2])), strict=True):
        assert part["mean"] == pytest.approx(np.mean(before - after), rel=1e-6)
        assert part["standard_error"] == pytest.approx(np.std(before - after, ddof=1) / np.sqrt(150), rel=1e-6)
        assert part["share"] == pytest.approx(part["mean"] / split["own"], rel=1e-12)
        assert part["shown"]
    assert split["pursuit"] >= errors[2].mean()
    assert "exchanges" in split["parts"][1]["sentence"]


def test_the_step_of_the_decoder_is_that_of_the_theorem():
    rng = np.random.default_rng(1)
    X = rows(0)
    Z = np.maximum(X @ turned().T, 0) * (rng.random((400, K)) < 0.5)
    D, b = turned(), 0.1 * rng.normal(size=D_IN)
    step = decoder_step(jd.Dictionary(jnp.asarray(D), jnp.asarray(b)), jd.sparse_codes(jnp.asarray(Z)), jnp.asarray(X))
    R = X - b - Z @ D
    for k in range(K):
        pulls = Z[:, k, None] * (R - np.outer(R @ D[k], D[k]))
        total = pulls.sum(axis=0)
        kept = max(1 - np.sum(pulls**2) / np.sum(total**2), 0)
        np.testing.assert_allclose(step.atoms[k], kept * total / np.sum(Z[:, k] ** 2), atol=1e-12)
    kept = max(1 - np.sum(R**2) / np.sum(R.sum(axis=0) ** 2), 0)
    np.testing.assert_allclose(step.offset, kept * R.mean(axis=0), atol=1e-12)


def test_a_share_of_a_step_goes_where_the_step_points():
    at = moved(
        jd.Dictionary(jnp.eye(2), jnp.array([1.0, 0.0])), Step(2 * jnp.eye(2)[::-1], jnp.array([3.0, -4.0])), 0.5
    )
    np.testing.assert_array_equal(at.atoms, np.ones((2, 2)))
    np.testing.assert_array_equal(at.offset, [2.5, -2.0])


@pytest.mark.slow
def test_without_lam_what_needs_it_is_not_measured(found):
    document = found.document
    assert found.gaps is document["gaps"] is document["new_atom"] is document["barycentre"] is None
    assert (document["lam"]["value"], document["lam"]["source"], document["pairs"]) == (None, "none", None)
    assert all(found.measures[name] is None for name in OF_P)
    assert [failure.message() for failure in found.check("amortisation_share>1")] == [
        "amortisation_share was not measured: fails on amortisation_share>1"
    ]
    assert "Give lam" in document["verdict"][-1]
    assert document["verdict"][0] == document["split"]["sentence"]
    page = audit_html(document)
    assert document["split"]["sentence"].partition(" What to do")[0].replace("+-", "±") in page
    assert "Not tested: the condition is one of the L1 penalty" in page
    assert "every two features can coexist" not in page
    console = Console(width=200, file=io.StringIO())
    console.print(audit_summary(document))
    assert "The largest part shown" in console.file.getvalue()


@pytest.mark.slow
def test_problem_p_stands_beside_the_split_where_it_is_asked_for():
    X = rows(0).astype(np.float32)
    given = jd.audit(bare(kind="topk"), X, LAM, exact_samples=100, descent_steps=0).document
    assert given["gaps"]["amortisation"] >= 0
    assert given["lam"]["source"] == "given"
    assert given["verdict"][0] == given["split"]["sentence"]
    sae = truth_sae(planted()[1])
    annealed = replace(sae, metadata=replace(sae.metadata, lam=None, architecture="p_anneal"))
    assert jd.audit(annealed, planted()[0], exact_samples=100).document["gaps"] is None


@pytest.mark.slow
def test_documents_widen_the_error_and_stay_whole():
    """Each row ten times: as rows they are counted ten times over, as documents once."""
    sae, X = top_three(shift=0.3), np.repeat(rows(0, 60), 10, axis=0).astype(np.float32)
    alone, together = (
        jd.audit(sae, X, rows=np.arange(600), groups=groups).document["split"]
        for groups in (None, np.repeat(np.arange(60), 10))
    )
    assert (alone["documents"], together["documents"]) == (None, 60)
    for first, second in zip(alone["parts"][:1], together["parts"][:1], strict=True):
        assert second["mean"] == pytest.approx(first["mean"], rel=1e-9)
        assert second["standard_error"] == pytest.approx(np.sqrt(10) * first["standard_error"], rel=0.02)
    assert "60 documents" in together["sentence"]
    assert together["parts"][2]["rows"] == 300


@pytest.mark.slow
def test_wide_saes_are_split_on_fewer_rows_unless_they_are_named(monkeypatch):
    X = rows(0).astype(np.float32)
    monkeypatch.setattr(split_rows, "SPLIT_LEAST", 50)
    monkeypatch.setattr(split_rows, "SPLIT_ENTRIES", 0)
    assert jd.audit(top_three(), X, exact_samples=400).document["split"]["rows"] == 50
    assert jd.audit(top_three(), X, rows=np.arange(400)).document["split"]["rows"] == 400


@pytest.mark.slow
def test_signed_codes_have_signed_values():
    sae, X = bare(kind="abstopk"), rows(0)[:60]
    X = np.where(np.arange(60)[:, None] % 2 == 0, X, -X).astype(np.float32)
    split = jd.audit(sae, X, rows=np.arange(60)).document["split"]
    D, f = np.asarray(sae.W_dec, float), np.asarray(sae.encode(X), float)
    Y = X - np.asarray(sae.b_dec, float)
    refitted = [np.sum((y - z @ D[row != 0]) ** 2) for row, y in zip(f, Y, strict=True)
                for z in [np.linalg.lstsq(D[row != 0].T, y, rcond=None)[0]]]  # fmt: skip
    assert np.any(f < 0)
    assert split["parts"][0]["mean"] == pytest.approx(split["own"] - np.mean(refitted), rel=1e-6)


@pytest.mark.slow
def test_a_penalty_is_named_only_where_there_was_one():
    X = jnp.asarray(rows(0))
    sae = top_three(shift=0.3)
    split = split_error(sae.dictionary, X, jd.sparse_codes(sae.encode(X), ACTIVE), signed=False)
    assert "L1 penalty" not in split_facts(split, False)["sentence"]
    assert "(an L1 penalty shrinks its values)" in split_facts(split, False, penalised=True)["sentence"]


@pytest.mark.slow
def test_few_rows_measure_no_decoder():
    X = jnp.asarray(rows(0, 6))
    sae = top_three(shift=0.3)
    facts = split_facts(split_error(sae.dictionary, X, jd.sparse_codes(sae.encode(X)), signed=False), False)
    for name, part in zip(("decoder", "dictionary", "atoms"), facts["parts"][2:], strict=True):
        assert (part["name"], part["mean"], part["share"], part["shown"]) == (name, None, None, False)
        assert "not measured" in part["sentence"]


@pytest.mark.parametrize("normalisation", [pytest.param("layer_norm", marks=pytest.mark.slow), "constant_norm_rescale"])
@pytest.mark.slow
def test_an_sae_that_normalises_says_so(normalisation):
    X = rows(0).astype(np.float32)
    sae = bare(kind="topk", normalisation=normalisation)
    split = jd.audit(sae, X, rows=np.arange(100)).document["split"]
    y, f = np.asarray(sae.normalise(X[:100]), float), np.asarray(sae.encode(X[:100]), float)
    error = np.sum((y - f @ np.asarray(sae.W_dec, float) - np.asarray(sae.b_dec)) ** 2, axis=1).mean()
    assert split["own"] == pytest.approx(error, rel=1e-5)
    assert "normalised" in split["unit"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": [1, 2]}, r"groups has shape \(2,\) but the data 400 rows; "),
        ({"rows": [0, 400]}, "rows names row 400, but the data have 400; "),
        ({"rows": [1, 1]}, "rows names a row twice; "),
        ({"rows": [0.5]}, "dtype float64; "),
    ],
)
def test_bad_rows_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        jd.audit(top_three(), rows(0).astype(np.float32), **options)
