"""Plain JAX, the path of accelerators and of installations without numba: a whole sweep and a whole audit."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import Lasso

import jaxdict as jd
from jaxdict.encoding import engines

LAM = 0.3
RNG = np.random.default_rng(0)
ATOMS = np.linalg.qr(RNG.normal(size=(5, 5)))[0][:4]
X = np.where(RNG.random((60, 4)) < 0.4, RNG.uniform(0.5, 2, (60, 4)), 0) @ ATOMS + 0.05 * RNG.normal(size=(60, 5))


@pytest.fixture(scope="module", autouse=True)
def without_kernels():
    """Programs that were compiled with the kernels are forgotten before, and those without them after."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "kernels", lambda: None)
        jax.clear_caches()
        assert not engines.on_numba()
        yield
    jax.clear_caches()


@pytest.mark.slow
def test_a_sweep(tmp_path):
    found = jd.sweep(X, lams=[LAM], n_atoms=4, tol=1e-6, max_steps=200, directory=tmp_path, keep_dictionaries=True)
    (row,) = found.rows
    assert (row["status"], row["stationarity"] <= 1e-6) == (0, True)
    with np.load(tmp_path / f"{row['run']}.npz") as kept:
        D, b = kept["atoms"], kept["offset"]
    assert row["objective"] == pytest.approx(least_objective(D, b), rel=1e-8)


@pytest.mark.slow
def test_an_audit():
    sae = jd.sae.tied_sae(jd.Dictionary(ATOMS, np.zeros(5)), LAM)
    found = jd.audit(sae, X, exact_samples=60, descent_steps=5, held_out=False)
    assert found.gaps.exact == pytest.approx(least_objective(ATOMS, np.zeros(5)), rel=1e-8)
    assert abs(found.gaps.amortisation) < 1e-8  # one proximal step is exact on orthonormal atoms
    assert found.gaps.dictionary > 0


def least_objective(D, b):
    """F with the codes of scikit-learn's coordinate descent: 1/(2 d) ||x - D^T z||^2 + alpha sum z, hence alpha = lam / d."""
    solver = Lasso(alpha=LAM / X.shape[1], positive=True, fit_intercept=False, tol=1e-13, max_iter=100_000)
    Z = np.stack([solver.fit(D.T, row - b).coef_ for row in X])
    return np.mean(0.5 * np.sum((X - b - Z @ D) ** 2, axis=1) + LAM * Z.sum(axis=1))
