"""Rows of orthonormal features, SAEs of them with one planted fault each, and the same figures by NumPy: what arbitration's tests share."""

import itertools

import jax.numpy as jnp
import numpy as np
from scipy.optimize import nnls

import jaxdict as jd
from jaxdict.auditing.parting import parted
from jaxdict.sae.activations import Activation

D_IN, K, ACTIVE, N = 8, 6, 2, 240
BASIS = np.linalg.qr(np.random.default_rng(0).normal(size=(D_IN, D_IN)))[0]
ATOMS = BASIS[:K]
DOCUMENTS = np.arange(N) // 10


def rows(seed=0, n=N):
    """Two of six features in each row, and a little noise."""
    rng = np.random.default_rng(seed)
    on = np.argsort(rng.random((n, K)), axis=1) < ACTIVE
    return (on * rng.uniform(0.8, 1.6, (n, K))) @ ATOMS + 0.05 * rng.normal(size=(n, D_IN))


def top(k=ACTIVE, atoms=ATOMS, shift=0.0, **options):
    """A TopK SAE whose codes are `<d_k, x> - shift`."""
    atoms = jnp.asarray(atoms)
    zeros = jnp.zeros(len(atoms))
    return jd.sae.SAE(atoms.T, zeros - shift, atoms, jnp.zeros(D_IN), activation=Activation("topk", k=k), **options)


def turned():
    """The atoms, the first turned out of their span."""
    atoms = ATOMS.copy()
    atoms[0] = np.cos(0.6) * ATOMS[0] + np.sin(0.6) * BASIS[K]
    return atoms


def bench_model():
    """A model of SynthSAEBench with these atoms, the second feature a child of the first."""
    parents = np.array([-1, 0, -1, -1, -1, -1])
    none = dict.fromkeys(("groups", "factor", "diagonal"))
    levels = parents + 1
    sizes = {name: jnp.full(K, 0.5) for name in ("probabilities", "means", "spreads")}
    return jd.synthetic.BenchModel(
        jd.Dictionary(jnp.asarray(ATOMS), jnp.zeros(D_IN)),
        parents=parents,
        levels=levels,
        scaled=levels > 0,
        depth=1,
        **none,
        **sizes,
    )


def fresh_rows(groups=None):
    """The rows that are kept aside by default."""
    return np.flatnonzero(parted(N, groups).fresh)


def own_errors(sae, X):
    """Squared errors and features on, row by row."""
    f = np.asarray(sae.encode(X))
    return np.sum((X - f @ np.asarray(sae.W_dec)) ** 2, axis=1), np.count_nonzero(f, axis=1)


def best_values(sae, X):
    """Squared errors with the best values on the SAE's own features, by SciPy."""
    D = np.asarray(sae.W_dec)
    return np.array([nnls(D[f > 0].T, x)[1] ** 2 for f, x in zip(np.asarray(sae.encode(X)), X, strict=True)])


def best_supports(sae, X):
    """The least squared errors at each row's own number of features, over all supports, by SciPy."""
    D, f = np.asarray(sae.W_dec), np.asarray(sae.encode(X))
    found = []
    for x, size in zip(X, np.count_nonzero(f, axis=1), strict=True):
        found.append(min(nnls(D[list(S)].T, x)[1] ** 2 for S in itertools.combinations(range(len(D)), size)))
    return np.array(found)


def mean_and_error(values, groups=None):
    """A mean and the standard error of it over documents, or rows."""
    groups = np.arange(len(values)) if groups is None else groups
    left = values - values.mean()
    sums = np.array([left[groups == name].sum() for name in np.unique(groups)])
    return values.mean(), np.sqrt(np.sum(sums**2) * len(sums) / (len(sums) - 1)) / len(values)
