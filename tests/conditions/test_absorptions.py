"""Absorption: closed forms, NumPy and scikit-learn as judges, and planted absorption found at the rate at which it was planted."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import f1_score

import jaxdict as jd
from jaxdict.conditions import absorption, absorption_by_label, direction_present
from jaxdict.problem import sparse_codes

PARENT, CHILD = 0, 1


def planted(rate, n=4000, seed=0):
    """A parent concept, a child concept within it, a bystander; in a share `rate` of the child's rows its atom carries the parent.

    Orthonormal concepts u, v, w; atoms u, (u + v) / sqrt 2, w. Codes reconstruct the rows exactly: (codes, atoms, X, concept).
    """
    rng = np.random.default_rng(seed)
    concept = rng.random(n) < 0.4
    special = concept & (rng.random(n) < 0.3)
    absorbed = special & (rng.random(n) < rate)
    u, v, w = np.linalg.qr(rng.normal(size=(5, 5)))[0][:3]
    atoms = np.stack([u, (u + v) / np.sqrt(2), w])
    size, other = rng.uniform(1, 2, n), rng.uniform(1, 2, n) * (rng.random(n) < 0.3)
    # Where nothing is absorbed the child's rows hold more of the parent than its own atom does, and the parent is on for the rest.
    codes = np.stack([concept * size * (1 - absorbed), special * (size + 0.2) * np.sqrt(2), other], axis=1)
    return codes, atoms, codes @ atoms, concept


def by_hand(codes, present, i, j):
    on, child = codes[:, i] > 0, codes[:, j] > 0
    return on[present & ~child].mean(), on[present & child].mean()


@pytest.mark.parametrize("rate", [0.0, 0.35, 1.0])
def test_planted_absorption_is_found_at_its_rate(rate):
    codes, atoms, X, concept = planted(rate)
    present = direction_present(jd.Dictionary(jnp.asarray(atoms)), jnp.asarray(codes), jnp.asarray(X), PARENT, CHILD)
    found = absorption(jnp.asarray(codes), present, PARENT, CHILD)
    on, child = codes[:, PARENT] > 0, codes[:, CHILD] > 0
    assert np.mean(np.asarray(present)[on & ~child]) == pytest.approx(0.9, abs=1 / np.sum(on & ~child))
    assert np.asarray(present)[child].all()  # its rows hold at least as much of the direction as the parent's own
    assert not np.asarray(present)[~concept].any()
    truth = 1 - on[child].mean()  # the draw's own rate
    assert float(found.gap) == pytest.approx(truth, abs=1e-12)
    assert abs(float(found.gap) - rate) < 4 * float(found.standard_error)
    told = absorption_by_label(jnp.asarray(codes), np.where(concept, "s", "t"), PARENT, CHILD)
    assert told.labels == "s"
    assert float(told.found.gap) == pytest.approx(truth, abs=1e-12)


def test_shares_are_those_of_the_definition_for_any_mask_sparse_codes_and_many_edges():
    rng = np.random.default_rng(1)
    codes = np.maximum(rng.normal(size=(200, 5)), 0)
    present = rng.random((3, 200)) < 0.5
    i, j = np.array([0, 2, 4]), np.array([1, 3, 0])
    for given in (jnp.asarray(codes), sparse_codes(jnp.asarray(codes))):
        found = absorption(given, present, i, j, n_atoms=5)
        for k in range(3):
            alone, beside = by_hand(codes, present[k], i[k], j[k])
            assert float(found.alone[k]) == pytest.approx(alone, abs=1e-14)
            assert float(found.beside[k]) == pytest.approx(beside, abs=1e-14)
            assert float(found.rows_beside[k]) == np.sum(present[k] & (codes[:, j[k]] > 0))
    all_edges = absorption(jnp.asarray(codes), present[0], i, j)
    assert float(all_edges.alone[1]) == pytest.approx(by_hand(codes, present[0], 2, 3)[0], abs=1e-14)


def test_weights_are_repeated_rows_and_no_rows_are_no_share():
    rng = np.random.default_rng(2)
    codes = np.maximum(rng.normal(size=(60, 3)), 0)
    present, times = rng.random(60) < 0.7, np.arange(60) % 3
    weighted = absorption(jnp.asarray(codes), present, 0, 1, weights=jnp.asarray(times, float))
    repeated = absorption(jnp.asarray(np.repeat(codes, times, axis=0)), np.repeat(present, times), 0, 1)
    assert float(weighted.gap) == pytest.approx(float(repeated.gap), abs=1e-14)
    silent = absorption(jnp.asarray(codes * [1, 0, 1]), present, 0, 1)
    assert np.isnan([float(silent.beside), float(silent.gap), float(silent.standard_error)]).all()
    assert np.isfinite(float(silent.alone))


def test_the_standard_error_is_that_of_resampled_rows():
    codes, _, _, concept = planted(0.35, n=600)
    found = absorption(jnp.asarray(codes), concept, PARENT, CHILD)
    rng, gaps = np.random.default_rng(3), []
    for _ in range(600):
        rows = rng.integers(600, size=600)
        alone, beside = by_hand(codes[rows], concept[rows], PARENT, CHILD)
        gaps.append(alone - beside)
    # 600 resamplings know a spread to 3 percent; one hit and one miss added is as much again at 70 rows
    assert float(found.standard_error) == pytest.approx(np.std(gaps), rel=0.15)


def test_presence_is_that_of_the_definition():
    rng = np.random.default_rng(4)
    codes, scale = np.maximum(rng.normal(size=(300, 4)), 0), np.array([1.0, 2.0, 0.5, 1.0])
    units = rng.normal(size=(4, 3))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    offset = rng.normal(size=3)
    X = codes @ units + offset + 0.3 * rng.normal(size=(300, 3))
    others = X - offset - codes[:, [1, 3]] @ units[[1, 3]]
    along, own = others @ units[2], (codes[:, 2] > 0) & (codes[:, 0] == 0)
    threshold = np.sort(along[own])[int(0.25 * own.sum())]
    D = jd.Dictionary(jnp.asarray(units * scale[:, None]), jnp.asarray(offset))  # norms fold into codes
    found = direction_present(D, jnp.asarray(codes / scale), jnp.asarray(X), 2, 0, quantile=0.25)
    clear = np.abs(along - threshold) > 1e-9
    np.testing.assert_array_equal(np.asarray(found)[clear], (along >= threshold)[clear])
    sparse = direction_present(D, sparse_codes(jnp.asarray(codes / scale)), jnp.asarray(X), 2, 0, quantile=0.25)
    np.testing.assert_array_equal(np.asarray(sparse)[clear], np.asarray(found)[clear])


def test_a_parent_that_is_never_on_alone_has_no_threshold():
    codes, atoms = jnp.array([[1.0, 1.0], [2.0, 1.0], [0.0, 0.0]]), jnp.eye(2)
    assert not np.asarray(direction_present(jd.Dictionary(atoms), codes, codes @ atoms, 0, 1)).any()


def test_labels_are_those_that_parents_detect_best_by_scikit_learns_f1():
    rng = np.random.default_rng(5)
    codes, labels = np.maximum(rng.normal(size=(300, 4)), 0), rng.choice(["a", "b", "c"], 300)
    codes[labels == "b", 2] += 1
    found = absorption_by_label(jnp.asarray(codes), labels, jnp.array([0, 2]), jnp.array([1, 3]))
    for k, parent in enumerate((0, 2)):
        scores = {name: f1_score(labels == name, codes[:, parent] > 0) for name in "abc"}
        assert found.f1[k] == pytest.approx(max(scores.values()), abs=1e-14)
        assert scores[str(found.labels[k])] == max(scores.values())
    assert found.labels[1] == "b"
    named = absorption_by_label(jnp.asarray(codes), labels, 2, 3, classes="a")
    alone, beside = by_hand(codes, labels == "a", 2, 3)
    assert float(named.found.gap) == pytest.approx(alone - beside, abs=1e-14)


CODES, EDGE = np.ones((4, 3)), (0, 1)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: absorption(CODES, np.ones(4), *EDGE), "dtype float64; give booleans"),
        (lambda: absorption(CODES, np.ones((2, 4), bool), *EDGE), r"present has shape \(2, 4\)"),
        (lambda: absorption(-CODES, np.ones(4, bool), *EDGE), "absorption is for codes >= 0"),
        (lambda: absorption_by_label(CODES, ["a", "b"], *EDGE), r"labels have shape \(2,\) but the codes 4"),
        (lambda: absorption_by_label(CODES, list("aabb"), *EDGE, classes="z"), "'z', which is the label of no sample"),
        (lambda: absorption_by_label(CODES, list("aabb"), *EDGE, classes=["a"]), r"classes has shape \(1,\)"),
        (lambda: direction_present(jd.Dictionary(np.eye(3)), CODES, CODES, *EDGE, quantile=1.0), "quantile=1.0"),
    ],
)
def test_what_does_not_fit_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
