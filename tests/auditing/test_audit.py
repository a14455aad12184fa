"""The audit as a whole: gaps that add up, exact codes that others confirm, planted faults found, a document that is plain."""

import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from audited import LAM, noisy_sae, planted, truth_sae
from compiling import compilations, own
from rich.console import Console
from sklearn.linear_model import Lasso

import jaxdict as jd
from jaxdict.auditing import gaps as gaps_module
from jaxdict.auditing import sentences
from jaxdict.auditing.gaps import HeldOut
from jaxdict.auditing.measures import MEASURES
from jaxdict.reporting import vocabulary
from jaxdict.reporting.audit_page import audit_html
from jaxdict.reporting.audit_summary import audit_summary


@pytest.fixture(scope="module")
def data():
    return planted()


@pytest.fixture(scope="module")
def found(data):
    X, atoms, _, tokens = data
    return jd.audit(truth_sae(atoms, scale=2.0), X, labels=tokens, exact_samples=400, descent_steps=10)


def test_gaps_add_up_and_none_is_negative(found):
    gaps = found.gaps
    assert abs(gaps.amortisation + gaps.dictionary + gaps.width - (gaps.sae - gaps.wide)) <= 1e-12 * gaps.sae
    for part in (gaps.amortisation, gaps.dictionary, gaps.width):
        assert part >= -1e-9
    assert gaps.dictionary > 0  # the truth is no optimum: its hierarchies descend (C1)


def test_exact_codes_are_those_of_an_independent_solver(found, data):
    X, atoms, _, _ = data
    rows = X[found.sample.rows].astype(float)
    # scikit-learn's coordinate descent: 1/(2 d) ||x - D^T z||^2 + alpha sum z, hence alpha = lam / d.
    d = atoms.shape[1]
    solver = Lasso(alpha=LAM / d, positive=True, fit_intercept=False, tol=1e-12, max_iter=100_000)
    Z = np.stack([solver.fit(atoms.astype(np.float32).T.astype(float), row).coef_ for row in rows[:60]])
    own = jd.dense_codes(found.sample.exact.codes, len(atoms))[:60]
    np.testing.assert_allclose(own, Z, atol=1e-6)  # atoms in float32 as stored: 1e-7 of the codes


def test_objective_of_the_sae_is_its_loss(found, data):
    X, atoms, _, _ = data
    sae = truth_sae(atoms)
    x = X[found.sample.rows].astype(float)
    f = np.asarray(sae.encode(x))
    loss = np.mean(0.5 * np.sum((x - f @ atoms) ** 2, axis=1) + LAM * f.sum(axis=1))
    assert found.gaps.sae == pytest.approx(loss, rel=1e-6)  # atoms as stored, float32


def test_measures_over_all_rows(found, data):
    X, atoms, _, _ = data
    f = np.asarray(truth_sae(atoms).encode(X))
    error = np.sum((X - f @ atoms.astype(np.float32)) ** 2)
    measures = found.measures
    assert measures["l0"] == pytest.approx((f > 0).sum(axis=1).mean(), rel=1e-12)
    explained = 1 - error / np.sum((X - X.mean(axis=0)) ** 2)
    assert measures["explained_variance"] == pytest.approx(explained, rel=1e-5)
    assert measures["dead_features"] == 0
    assert tuple(sorted(measures)) == tuple(sorted(MEASURES))


def test_planted_hierarchies_come_first(found, data):
    pairs = data[2]
    ranked = [(pair["parent"], pair["child"]) for pair in found.document["pairs"]]
    assert set(ranked[:3]) == set(pairs)
    assert (6, 7) not in ranked[:3]
    assert (7, 6) not in ranked[:3]
    first = found.document["pairs"][0]
    # C1's rate at exact codes, and a child that never fires alone: T6's interval is the point 1.
    assert first["cost"] > 0
    assert first["guaranteed"] > 0
    assert first["q"] >= 0.99
    assert first["margin"] < 0
    for card in found.document["cards"]["pairs"]:
        assert all(row["label"] == f"row {row['row']}" for row in card["rows"])


def test_norms_frequencies_and_labels_of_features(found, data):
    X, atoms, _, _ = data
    rows = found.document["features"]
    f = np.asarray(truth_sae(atoms).encode(X))
    assert [row["feature"] for row in rows] == list(range(12))
    np.testing.assert_allclose([row["norm"] for row in rows], 0.5, rtol=1e-6)
    np.testing.assert_allclose([row["frequency"] for row in rows], (f > 0).mean(axis=0), rtol=1e-12)
    best = int(np.argmax(f[:, 4]))
    assert rows[4]["label"].startswith(f"row {best}")


def test_document_is_plain_and_readable(found, tmp_path):
    path = found.to_json(tmp_path / "deep" / "audit.json")
    document = json.loads(path.read_text())
    assert document["schema"] == "jaxdict-audit-1"
    assert document == json.loads(json.dumps(found.document))
    assert found.summary() == " ".join(document["verdict"])
    page = found.to_html(tmp_path / "audit.html").read_text()
    assert "row 1" in page


def test_checks(found):
    assert found.check("explained_variance<0.5") == []
    assert [failure.threshold.measure for failure in found.check("l0>0.5", "dead_features>3")] == ["l0"]


def test_lam_is_given_or_read_or_estimated(data):
    X, atoms, _, _ = data
    sae = truth_sae(atoms)
    bare = jd.sae.SAE(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
    options = {"exact_samples": 400, "descent_steps": 0}
    read = jd.audit(sae, X, **options).document["lam"]
    assert (read["source"], read["value"]) == ("metadata", pytest.approx(LAM))
    given = jd.audit(sae, X, 0.2, **options).document["lam"]
    assert (given["source"], given["value"]) == ("given", 0.2)
    estimated = jd.audit(bare, X, **options).document["lam"]
    # One proximal step on orthonormal atoms is exact, and exact codes say lam whatever the dictionary (section 5).
    assert estimated["source"] == "estimated"
    assert estimated["value"] == pytest.approx(LAM, rel=1e-5)
    assert estimated["tenth"] == pytest.approx(LAM, rel=1e-4)


@pytest.mark.slow
def test_the_estimated_lam_is_the_least_squares_one(data):
    """Where features disagree: sum_k zbar_k a_k / sum_k zbar_k^2, which makes the atoms' defect along them least."""
    X, atoms, _, _ = data
    shrunk = truth_sae(atoms, lam=0.1)
    uneven = jd.sae.SAE(shrunk.W_enc, shrunk.b_enc * jnp.linspace(0.5, 2, 12), shrunk.W_dec, shrunk.b_dec)
    told = jd.audit(uneven, X, exact_samples=len(X), descent_steps=0).document["lam"]
    f, D = np.asarray(uneven.encode(X), float), np.asarray(uneven.W_dec, float)
    along, means = np.mean(f * ((X - f @ D) @ D.T), axis=0), f.mean(axis=0)
    grid = np.linspace(0.02, 0.4, 20_001)
    defects = [np.sum((along - lam * means) ** 2) for lam in grid]
    assert told["value"] == pytest.approx(grid[int(np.argmin(defects))], abs=3e-5)
    assert abs(told["value"] - np.mean(along / means)) > 1e-3  # not the mean over features
    own = np.quantile(along / means, [0.1, 0.5, 0.9])
    np.testing.assert_allclose([told[name] for name in ("tenth", "median", "ninetieth")], own, rtol=1e-4)


def test_shares_of_a_pair_are_conditional_probabilities(found, data):
    X, atoms, _, _ = data
    on = np.asarray(truth_sae(atoms).encode(X)) > 0
    for pair in found.document["pairs"]:
        parent, child = on[:, pair["parent"]], on[:, pair["child"]]
        assert pair["both"] == np.sum(parent & child)
        assert pair["q"] == pytest.approx(parent[child].mean(), rel=1e-12)  # P(parent | child)
        assert pair["rho"] == pytest.approx(child[parent].mean(), rel=1e-12)  # P(child | parent)


@pytest.mark.slow
def test_where_no_lam_fits_it_says_so():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 4)).astype(np.float32)
    overshooting = jd.sae.SAE(3 * jnp.eye(4), jnp.zeros(4), jnp.eye(4), jnp.zeros(4))
    document = jd.audit(overshooting, X).document
    assert "No lam fits" in document["verdict"][-1]
    assert document["gaps"] is None
    assert document["split"]["parts"][0]["shown"]  # its codes are three times too large: what needs no lam is said


@pytest.mark.slow
def test_kinds_that_normalise_or_are_signed_are_audited():
    X = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
    for sae in (noisy_sae(kind="topk"), noisy_sae(normalisation="layer_norm"), noisy_sae(kind="jumprelu")):
        document = jd.audit(sae, X, 0.1, exact_samples=50, descent_steps=0).document
        assert document["gaps"]["amortisation"] >= 0


@pytest.mark.parametrize(
    ("X", "options", "message"),
    [
        (np.zeros((5, 3), np.float32), {}, "d_in = 16"),
        (np.zeros((0, 16), np.float32), {}, "empty"),
        (np.full((5, 16), np.nan, np.float32), {}, "NaN"),
        (np.zeros((5, 16), int), {}, "dtype"),
        (np.ones((5, 16), np.float32), {"labels": ["a"]}, "one label a row"),
        (np.ones((5, 16), np.float32), {"lam": -1.0}, "positive"),
    ],
)
def test_bad_input_is_refused(X, options, message):
    with pytest.raises(ValueError, match=message):
        jd.audit(noisy_sae(), X, **options)


def test_without_a_descent_the_dictionary_gap_is_not_measured(data):
    """Not zero: unknown, said so, and every condition on it fails."""
    X, atoms, _, _ = data
    found = jd.audit(truth_sae(atoms), X, exact_samples=400, descent_steps=0)
    gaps, document = found.gaps, found.document
    assert gaps.local is gaps.dictionary is gaps.width is None
    for name in ("dictionary_gap", "dictionary_share", "width_gap", "width_share"):
        assert found.measures[name] is None
        assert [failure.message() for failure in found.check(f"{name}>1")] == [
            f"{name} was not measured: fails on {name}>1"
        ]
    assert found.check("amortisation_share>0.99") == []
    assert "not measured" in document["gaps"]["sentences"]["dictionary"]
    assert "neither" not in document["verdict"][0]
    assert [part["key"] for part in vocabulary.gap_parts(document["gaps"])] == ["amortisation", "width", "wide"]
    assert "Dictionary and width" in audit_html(document)
    console = Console(width=100, file=io.StringIO())
    console.print(audit_summary(document))
    assert "Dictionary and width" in console.file.getvalue()


def test_a_dictionary_too_wide_to_descend_from_says_so(data, monkeypatch):
    X, atoms, _, _ = data
    for module in (gaps_module, sentences):
        monkeypatch.setattr(module, "DESCENT_ATOMS", 5)
    found = jd.audit(truth_sae(atoms), X, exact_samples=400)
    assert found.measures["dictionary_gap"] is None
    assert "more than 5 features" in found.document["gaps"]["sentences"]["dictionary"]


@pytest.mark.slow
def test_a_loss_of_zero_has_no_shares_of_nothing():
    """Two atoms that hold their data exactly, and a lam that rounds to nothing beside it: no "nan%"."""
    beyond = HeldOut(30, 0.0, 0.1)
    assert sentences._held_out_sentence(beyond).startswith(" It loses 0.1 (from a loss of zero) on 30 rows")
    assert sentences._held_out_sentence(HeldOut(30, 0.0, 0.0)).startswith(" It gains 0 (0%) on 30 rows")


def test_pairs_are_those_of_the_pair_condition(found, data):
    X, atoms, _, _ = data
    sae = truth_sae(atoms)
    wanted = jd.conditions.pairs(sae.dictionary, np.asarray(sae.encode(X), float))
    for pair in found.document["pairs"][:5]:
        for name in ("lower", "upper", "margin"):
            assert pair[name] == pytest.approx(float(getattr(wanted, name)[pair["i"], pair["j"]]), rel=1e-5, abs=1e-5)


@pytest.mark.slow
def test_ctrl_c_after_the_pass_keeps_it(data, tmp_path):
    X, atoms, _, _ = data
    asked = {"exact_samples": 200, "descent_steps": 0, "checkpoint": tmp_path / "pass.npz"}

    def stop(stage, done, total):
        if stage == "held-out rows":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jd.audit(truth_sae(atoms), X, progress=stop, **asked)
    stages = []
    again = jd.audit(truth_sae(atoms), X, progress=lambda stage, *_: stages.append(stage), **asked)
    assert "pass over all rows" not in stages
    assert again.measures == jd.audit(truth_sae(atoms), X, exact_samples=200, descent_steps=0).measures
    assert not (tmp_path / "pass.npz").exists()


@pytest.mark.slow
def test_a_second_audit_of_the_same_shapes_compiles_nothing(found, data):
    """Other rows, another lam, other pairs and labels; once more atoms gained and once not, which are programs of other sizes."""
    _, atoms, _, tokens = data
    options = {"labels": tokens, "exact_samples": 400, "descent_steps": 10}
    jd.audit(truth_sae(atoms), planted(seed=1)[0], **options)
    with compilations() as seen:
        jd.audit(truth_sae(atoms, lam=0.14), planted(seed=2)[0], **options)
    assert own(seen) == []
