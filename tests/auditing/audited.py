"""A small SAE with known faults, and data it was not trained well on: what several audit tests share."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

import jaxdict as jd
from jaxdict.sae.activations import Activation
from jaxdict.sae.models import SAE, Metadata

LAM = 0.15


def planted(n_rows=900, seed=0):
    """Rows of a truth with parents and children, correlated and independent features: (X, atoms, pairs, tokens)."""
    rng = np.random.default_rng(seed)
    d, n_features = 16, 12
    atoms = np.linalg.qr(rng.normal(size=(d, d)))[0][:n_features]
    on = rng.random((n_rows, n_features)) < 0.12
    pairs = [(0, 1), (2, 3), (4, 5)]
    for parent, child in pairs:
        on[:, parent] = rng.random(n_rows) < 0.25
        on[:, child] = on[:, parent] & (rng.random(n_rows) < 0.3)
    together = rng.random(n_rows) < 0.1  # correlated, not nested
    on[:, 6] |= together
    on[:, 7] |= together
    codes = on * rng.uniform(0.8, 1.6, on.shape)
    X = codes @ atoms + 0.01 * rng.normal(size=(n_rows, d))
    tokens = np.array([f"row {n}" for n in range(n_rows)])
    return X.astype(np.float32), atoms, pairs, tokens


def truth_sae(atoms, lam=LAM, scale=1.0) -> SAE:
    """The SAE whose decoder is the truth: a hierarchy that no optimum keeps (C1)."""
    sae = jd.sae.tied_sae(jd.Dictionary(jnp.asarray(atoms, jnp.float32), jnp.zeros(atoms.shape[1], jnp.float32)), lam)
    return sae.regauged(jnp.full(len(atoms), scale)) if scale != 1 else sae


def noisy_sae(seed=0, d_in=16, d_sae=24, kind="relu", normalisation="none") -> SAE:
    """Random weights of a kind, rows not of norm one."""
    keys = jax.random.split(jax.random.key(seed), 3)
    W_dec = jax.random.normal(keys[0], (d_sae, d_in)) * 0.4
    return SAE(
        W_dec.T + 0.1 * jax.random.normal(keys[1], (d_in, d_sae)),
        jnp.full(d_sae, -0.3),
        W_dec,
        0.1 * jax.random.normal(keys[2], (d_in,)),
        threshold=jnp.full(d_sae, 0.2) if kind == "jumprelu" else None,
        activation=Activation(kind, k=4) if kind in ("topk", "abstopk") else Activation(kind),
        normalisation=normalisation,
        metadata=Metadata(lam=LAM),
    )


def bare(**options):
    """A random SAE whose file says nothing of lam."""
    return replace(noisy_sae(**options), metadata=Metadata(architecture="topk"))


# Orthonormal features, three of them on in each row: what the split's tests plant faults in.
D_IN, K, ACTIVE = 16, 12, 3
BASIS = np.linalg.qr(np.random.default_rng(0).normal(size=(D_IN, D_IN)))[0]
ATOMS = BASIS[:K]


def rows(seed, n=400):
    """Exactly three of twelve orthonormal features on each row, and a little noise."""
    rng = np.random.default_rng(seed)
    on = np.argsort(rng.random((n, K)), axis=1) < ACTIVE
    return (on * rng.uniform(0.8, 1.6, (n, K))) @ ATOMS + 0.01 * rng.normal(size=(n, D_IN))


def top_three(atoms=ATOMS, shift=0.0, ranking=None):
    """A TopK SAE whose codes are `<d_k, x> - shift`."""
    atoms = jnp.asarray(atoms)
    ranking = None if ranking is None else jnp.asarray(ranking)
    zeros = jnp.zeros(len(atoms))
    return jd.sae.SAE(
        atoms.T, zeros - shift, atoms, jnp.zeros(D_IN), ranking=ranking, activation=Activation("topk", k=ACTIVE)
    )


def turned():
    atoms = ATOMS.copy()
    atoms[0] = np.cos(0.5) * ATOMS[0] + np.sin(0.5) * BASIS[K]
    return atoms


FAULTS = {
    "Nothing shown": top_three(),
    "the values of the features": top_three(shift=0.3),
    "its choice of features": top_three(ranking=np.where(np.arange(K) < 3, 50.0, 1.0)),
    "its decoder": top_three(turned()),
}
